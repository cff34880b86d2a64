"""recipes/summarize.py: every format of input, as files and through standard input and output."""

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from alignment import outputs
from alignment.arguments import ModelArguments
from alignment.errors import InputError
from alignment.formats import partial_of
from alignment.journal import Journal
from alignment.summarizer import Summarizer
from recipes import summarize

FIRST = "#Person1#: 내일 3시에 볼까?\n#Person2#: 좋아, 역에서 봐."
SECOND = "#Person1#: 점심 먹었어, 너?\n#Person2#: 아직."


def nikl(name: str, dialogue: str) -> dict:
    turns = [dict(zip(("speaker", "utterance"), line.split(": "), strict=True)) for line in dialogue.split("\n")]
    return {"id": name, "input": {"conversation": turns, "subject_keyword": ["약속"]}, "output": ""}


def aihub(name: str, dialogue: str) -> dict:
    turns = [dict(zip(("participantID", "utterance"), line.split(": "), strict=True)) for line in dialogue.split("\n")]
    return {"header": {"dialogueInfo": {"dialogueID": name}}, "body": {"dialogue": turns}}


ROWS = (("b", FIRST), ("a", SECOND), ("c", FIRST))
FORMATS = {
    "csv": "fname,dialogue\n" + "".join(f'{name},"{text}"\n' for name, text in ROWS),
    "json lines": "\n".join(json.dumps({"fname": name, "dialogue": text}) for name, text in ROWS),
    "json": json.dumps([{"id": name, "dialogue": text, "summary": "x"} for name, text in ROWS], indent=1),
    "nikl": json.dumps([nikl(*row) for row in ROWS]),
    "aihub": json.dumps({"numberOfItems": 3, "data": [aihub(*row) for row in ROWS]}),
}


@pytest.fixture(scope="module")
def summaries(tiny_model) -> dict[str, str]:
    """The summary of each dialogue, made alone."""
    summarizer = Summarizer.load(str(tiny_model), ModelArguments(dtype="float32"))
    summarizer.max_new_tokens = 8
    return {text: " ".join(summarizer.summarize([text])[0].split("\n")) for text in (FIRST, SECOND)}


@pytest.fixture
def run(tiny_model, tmp_path):
    """Runs the recipe on a file of this content; keyword arguments replace or add flags."""

    def run_recipe(content: str | None = None, **flags: object) -> None:
        if content is not None:
            (tmp_path / "input").write_text(content, "utf-8")
            flags = {"input": tmp_path / "input"} | flags
        flags = {"model": tiny_model, "max_new_tokens": 8, "dtype": "float32"} | flags
        try:
            summarize.main([f"--{name}={value}" for name, value in flags.items()])
        finally:
            outputs.release()  # as `launch` does

    return run_recipe


def rows_of(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


@pytest.mark.parametrize("family", FORMATS)
def test_a_file_becomes_a_csv_with_a_row_for_each_in_order(family, run, summaries, tmp_path):
    run(FORMATS[family], output=tmp_path / "submission.csv")
    rows = rows_of((tmp_path / "submission.csv").read_text("utf-8"))
    assert rows == [["fname", "summary"], *([name, summaries[text]] for name, text in ROWS)]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["input", "submission.csv"]


def test_a_folder_gives_its_held_out_dialogues(run, dialogues, tmp_path):
    run(input=dialogues, output=tmp_path / "submission.csv")
    ids = [json.loads(line)["fname"] for line in (dialogues / "eval.jsonl").read_text("utf-8").splitlines()]
    assert [row[0] for row in rows_of((tmp_path / "submission.csv").read_text("utf-8"))] == ["fname", *ids]


def test_a_csv_may_go_to_standard_output(run, summaries, capsys):
    run(FORMATS["csv"])
    assert rows_of(capsys.readouterr().out) == [["fname", "summary"], *([name, summaries[text]] for name, text in ROWS)]


def test_plain_text_becomes_a_line_for_each_dialogue(run, summaries, capsys):
    run(f"{FIRST}\n \t\n{SECOND}\n\n\n{FIRST}\n")
    assert capsys.readouterr().out == "".join(f"{summaries[text]}\n" for text in (FIRST, SECOND, FIRST))


def test_plain_text_with_commas_and_crlf(run, summaries, capsys):
    run(f"{SECOND}\n".replace("\n", "\r\n"))
    assert capsys.readouterr().out == f"{summaries[SECOND]}\n"


def test_plain_text_to_a_file(run, summaries, tmp_path):
    run(FIRST, output=tmp_path / "summary.txt")
    assert (tmp_path / "summary.txt").read_text("utf-8") == f"{summaries[FIRST]}\n"


def test_what_kakaotalk_exports_is_not_taken_for_dialogues(run):
    with pytest.raises(InputError, match="what KakaoTalk exports has dates and times among the turns"):
        run("민수 님과 카카오톡 대화\n저장한 날짜 : 2026-11-01 10:00:00\n\n[민수] [오전 9:00] 안녕\n")


@pytest.mark.parametrize(
    "content",
    [
        "1\n00:00:00,000 --> 00:00:02,000\n고객: 네\n\n2\n00:00:03,000 --> 00:00:05,000\n상담원: 아\n",
        "참석자 1 00:00\n여보세요\n\n참석자 2 00:03 \n네, 2:30에 봐요\n",
        "새로운 노트\n\n화자 1 [00:00]\n여보세요\n\n화자 2 [01:02:03]\n네\n",
    ],
)
def test_what_subtitles_and_speech_recognition_give_is_not_taken_for_dialogues(content, run):
    with pytest.raises(InputError, match=r"has times among the turns\. Write its turns as `이름: 말`"):
        run(content)


def test_turns_of_plain_text_on_one_line_or_as_messengers_export_them_are_refused(run):
    with pytest.raises(InputError, match=r"input: 1 of 1 dialogues have several turns on a line"):
        run("고객: 여보세요 상담원: 네 고객: 신고요\n")
    with pytest.raises(InputError, match=r"input: 1 of 1 dialogues are as messengers export them"):
        run("[민수] [오전 9:00] 안녕\n[지수] [오전 9:01] 응\n")


def test_a_note_in_brackets_and_a_rule_with_blanks_are_no_dialogues(run, summaries, tmp_path):
    run(f"{FIRST}\n\n* * *\n\n{SECOND}\n\n(통화 종료)\n", output=tmp_path / "out.txt")
    assert (tmp_path / "out.txt").read_text("utf-8") == f"{summaries[FIRST]}\n{summaries[SECOND]}\n"


def test_a_heading_within_plain_text_is_refused(run):
    with pytest.raises(InputError, match=r"'통화 녹취록 1월' has no turns .* take out that line, or the blank line"):
        run(f"통화 녹취록\n1월\n\n{FIRST}\n")


@pytest.mark.parametrize("rule", ["---", "=====", "***", "____"])
def test_a_rule_parts_dialogues_and_their_number_is_said(rule, run, summaries, capsys):
    run(f"{rule}\n{FIRST}\n{rule}\n{SECOND}\n")
    said = capsys.readouterr()
    assert said.out == "".join(f"{summaries[text]}\n" for text in (FIRST, SECOND))
    assert said.err.count("2 dialogues, as blank lines part them") == 1
    run(FIRST)
    assert "blank lines" not in capsys.readouterr().err


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".XLSX", ".tsv"])
def test_an_output_of_another_kind_is_refused(ending, run, tmp_path, monkeypatch):
    monkeypatch.setattr(Summarizer, "load", None)
    with pytest.raises(InputError, match=rf"--output .*out\{ending}: summaries are written as CSV"):
        run(FORMATS["csv"], output=tmp_path / f"out{ending}")


def test_a_dialogue_with_blank_lines_between_its_turns_is_not_taken_for_many(run):
    with pytest.raises(InputError, match=r"most of its 3 dialogues are a single turn\. Take out the blank"):
        run("민수: 안녕\n\n지수: 응\n\n민수: 잘 가\n")
    with pytest.raises(InputError, match=r"most of its 3 dialogues are a single turn"):
        run("화자1: 안녕\n\n화자2: 응\n\n화자1: 잘 가\n")
    with pytest.raises(InputError, match=r"most of its 3 dialogues are a single turn"):
        run("#Person1#: 안녕\n\n#Person2#: 응\n\n#Person1#: 잘 가\n")


def test_dialogues_that_begin_with_a_heading_are_no_single_turns(run, capsys):
    run("공지\n민수: 안녕\n\n공지\n지수: 응\n\n공지\n민수: 잘 가\n")
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_a_dialogue_in_place_of_its_file(run):
    with pytest.raises(InputError, match="cannot be read: File name too long"):
        run(input="#Person1#: 안녕하세요, 오늘은 어디로 갈까요? " * 20)


def test_texts_of_one_line_are_summarised_one_by_one(run, capsys):
    run("A: 내일은 휴강입니다.\n\u200b\nB: 점심은 김밥입니다.\n\n\u200b\n회의는 10:30에 시작했다.\n")
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize("content", [FIRST, FORMATS["json lines"]], ids=["text", "json lines"])
def test_standard_input(content, run, capsys, monkeypatch):
    run(content)
    expected = capsys.readouterr().out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    run()
    assert capsys.readouterr().out == expected != ""


@pytest.mark.parametrize(
    ("content", "fault"),
    [("", "standard input: the file is empty"), ("fname,dialogue\n1,\n", "standard input: 1 bad of 1 rows")],
)
def test_what_is_wrong_is_said_of_standard_input(content, fault, run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
    with pytest.raises(InputError, match=f"^{fault}"):
        run()


def test_where_there_is_no_standard_input_a_file_is_asked_for(run, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)  # as where it was closed
    with pytest.raises(InputError, match=r"--input -: there is no standard input\. Give it dialogues, or --input FILE"):
        run()


def test_a_real_pipe_has_the_summary_and_nothing_else_on_standard_output(tiny_model, summaries, tmp_path):
    recipe = Path(summarize.__file__)
    command = [sys.executable, recipe, "--model", tiny_model, "--max_new_tokens", "8", "--dtype", "float32"]
    done = subprocess.run(command, input=FIRST.encode(), capture_output=True, check=True, cwd=tmp_path)
    assert done.stdout.decode() == f"{summaries[FIRST]}\n"


def test_a_summary_of_several_lines_is_written_as_one(run, tmp_path, monkeypatch):
    monkeypatch.setattr(Summarizer, "summarize", lambda self, texts, *_: ["하나\n\n 둘"] * len(texts))
    run(f"{FIRST}\n\n{SECOND}", output=tmp_path / "summary.txt")
    assert (tmp_path / "summary.txt").read_text("utf-8") == "하나 둘\n하나 둘\n"


def test_a_killed_run_makes_only_what_is_missing(run, tmp_path, monkeypatch):
    add, output = Journal.add, tmp_path / "out.csv"

    def add_and_die(journal: Journal, index: int, text: str) -> None:
        add(journal, index, f"표시 {index}")  # made again, it would be another text
        raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add", add_and_die)
    with pytest.raises(KeyboardInterrupt):
        run(FORMATS["csv"], output=output)
    monkeypatch.undo()
    assert not output.exists()

    run(FORMATS["csv"], output=output)
    rows = output.read_text("utf-8").splitlines()[1:]
    assert [row.partition(",")[0] for row in rows] == ["b", "a", "c"]
    assert sum("표시" in row for row in rows) == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["input", "out.csv"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_what_was_written_by_the_model_survives_a_full_disk(run, tmp_path):
    output = tmp_path / "out.csv"
    partial = partial_of(tmp_path / "out.csv")
    partial.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        run(FORMATS["csv"], output=output)
    (journal,) = tmp_path.glob("*.journal")
    assert len(journal.read_text("utf-8").splitlines()) == 1 + len(ROWS)
    partial.unlink()
    run(FORMATS["csv"], output=output)
    assert len(rows_of(output.read_text("utf-8"))) == 1 + len(ROWS)
    assert not journal.exists()


def test_an_existing_output_is_refused_and_kept(run, tmp_path):
    (tmp_path / "old.csv").write_text("mine", "utf-8")
    with pytest.raises(InputError, match=r"old\.csv: exists.*--overwrite true"):
        run(FORMATS["csv"], output=tmp_path / "old.csv")
    assert (tmp_path / "old.csv").read_text("utf-8") == "mine"


def test_an_existing_output_is_replaced_where_asked(run, tmp_path):
    (tmp_path / "old.csv").write_text("mine", "utf-8")
    run(FORMATS["csv"], output=tmp_path / "old.csv", overwrite=True)
    assert len(rows_of((tmp_path / "old.csv").read_text("utf-8"))) == 4


def test_an_output_that_cannot_be_written_is_refused_before_the_model_is_loaded(run, monkeypatch):
    monkeypatch.setattr(Summarizer, "load", None)
    with pytest.raises(InputError, match=r"--output /proc: cannot be written|no such folder /proc"):
        run(FORMATS["csv"], output="/proc/submission.csv")


def test_a_csv_of_one_column_is_no_plain_text(run, summaries, tmp_path):
    run(f'dialogue\n"{FIRST}"\n"{SECOND}"\n', output=tmp_path / "out.csv")
    rows = rows_of((tmp_path / "out.csv").read_text("utf-8"))
    assert rows[1:] == [["1", summaries[FIRST]], ["2", summaries[SECOND]]]


def test_rows_left_out_of_a_file_are_listed_beside_it(run, tmp_path):
    run(FORMATS["csv"] + 'd,""\n', output=tmp_path / "out.csv", bad_rows="skip")
    (line,) = (tmp_path / "out.csv.rejected.jsonl").read_text("utf-8").splitlines()
    assert (json.loads(line)["row"], json.loads(line)["fault"]) == (4, "empty dialogue")


def test_an_output_in_a_missing_folder_is_refused(run, tmp_path):
    with pytest.raises(InputError, match=r"--output .*: no such folder .*/missing"):
        run(FORMATS["csv"], output=tmp_path / "missing" / "submission.csv")
    assert not (tmp_path / "missing").exists()


def test_a_missing_input_is_refused(run, tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.csv: no such file"):
        run(input=tmp_path / "nowhere.csv", output=tmp_path / "submission.csv")
    assert not (tmp_path / "submission.csv").exists()
