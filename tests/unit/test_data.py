"""alignment/data.py and records.py: every family of files, every fault with its place, and the files we write."""

import json
import os
import unicodedata

import pytest

from alignment.arguments import DataArguments
from alignment.data import (
    Rejected,
    find_split,
    fingerprint,
    hub_holds_out,
    load_records,
    read_predictions,
    write_rejected,
)
from alignment.errors import InputError
from alignment.hub import hub_splits
from alignment.records import Record
from alignment.splits import load_train_and_eval

HELLO = "#Person1#: 안녕하세요.\n#Person2#: 네, 반가워요."


def row(name="a", dialogue=HELLO, **others):
    return {"fname": name, "dialogue": dialogue, **others}


@pytest.fixture
def write(tmp_path):
    """Writes text, bytes, or rows as JSON lines, and gives the path."""

    def write_file(content, name="data.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


def fault_of(path, **options):
    with pytest.raises(InputError) as caught:
        load_records(path, **options)
    return str(caught.value)


# --- families ---------------------------------------------------------------------------------------------------------


def test_csv_with_newlines_commas_and_quotes_inside_quotes(write):
    path = write(f'fname,dialogue,summary,topic\na,"{HELLO}","그는 ""네"", 라고 했다.",인사\nb,#Person1#: 음,짧다,\n')
    assert load_records(path) == (
        [
            Record("a", HELLO, ('그는 "네", 라고 했다.',), "인사"),
            Record("b", "#Person1#: 음", ("짧다",), ""),
        ],
        [],
    )


def test_csv_test_file_without_summary_has_no_references(write):
    records, _ = load_records(write(f'fname,dialogue,topic\na,"{HELLO}",인사\n'))
    assert records == [Record("a", HELLO, (), "인사")]


def test_csv_summary_columns_become_references_in_order_without_blanks(write):
    records, _ = load_records(write("fname,dialogue,summary10,summary2,summary1,summary3\na,A: x,ten,two,one,\n"))
    assert records[0].references == ("one", "two", "ten")


def test_csv_summary_beside_numbered_summaries_comes_first(write):
    records, _ = load_records(write("fname,dialogue,summary2,summary\na,A: x,two,one\n"))
    assert records[0].references == ("one", "two")


def test_dialogsum_jsonl_with_three_references_and_topics(write):
    item = row(summary1="하나", summary2="둘", summary3="셋", topic1="인사", topic2="만남")
    records, _ = load_records(write([item]))
    assert records == [Record("a", HELLO, ("하나", "둘", "셋"), "인사")]


@pytest.mark.parametrize("dump", [lambda items: json.dumps(items, indent=2), lambda items: items])
def test_samsum_as_list_or_lines_with_carriage_returns(write, dump):
    items = [{"id": str(n), "dialogue": "Amanda: Hi\r\nJerry: Hello", "summary": "They greet."} for n in (13818513, 7)]
    records, _ = load_records(write(dump(items)))
    assert records[0] == Record("13818513", "Amanda: Hi\nJerry: Hello", ("They greet.",))
    assert [record.id for record in records] == ["13818513", "7"]


def test_one_json_object_is_one_record(write):
    records, _ = load_records(write(json.dumps(row(), indent=1)))
    assert records == [Record("a", HELLO, ())]


def nikl(output):
    turns = [("SD1", "점심 먹었어?"), ("SD1", "난 아직."), ("SD1", ""), ("SD2", "나도\n아직.")]
    conversation = [{"speaker": speaker, "utterance": utterance} for speaker, utterance in turns]
    return {"id": "n-1", "input": {"conversation": conversation, "subject_keyword": ["점심", "약속"]}, "output": output}


def test_nikl_keeps_speakers_and_consecutive_turns_one_line_each(write):
    records, _ = load_records(write(json.dumps([nikl("둘은 점심을 이야기했다.")])))
    dialogue = "SD1: 점심 먹었어?\nSD1: 난 아직.\nSD2: 나도 아직."
    assert records == [Record("n-1", dialogue, ("둘은 점심을 이야기했다.",), "점심, 약속")]


@pytest.mark.parametrize(("output", "references"), [("", ()), (None, ()), (["하나", "둘"], ("하나", "둘"))])
def test_nikl_output_may_be_empty_or_a_list(write, output, references):
    records, _ = load_records(write(json.dumps([nikl(output)])))
    assert records[0].references == references


def aihub(name, **body):
    turns = [
        {"utteranceID": "U1", "turnID": "T1", "participantID": "P01", "utterance": "뭐해?"},
        {"utteranceID": "U2", "turnID": "T1", "participantID": "P01", "utterance": "자?"},
        {"utteranceID": "U3", "turnID": "T2", "participantID": "P02", "utterance": "아니"},
    ]
    info = {"numberOfTurns": 2, "topic": "일상", "dialogueID": name}
    return {"header": {"dialogueInfo": info}, "body": {"dialogue": turns, **body}}


@pytest.mark.parametrize("separator", ["", "\n"])
def test_aihub_object_with_data(write, separator):
    items = f",{separator}".join(json.dumps(aihub(name, summary="안부를 묻는다.")) for name in ("d1", "d2"))
    path = write(f'{{"numberOfItems": 2, "data": [{separator}{items}{separator}]}}', "aihub.csv")
    records, _ = load_records(path)
    assert records[0] == Record("d1", "P01: 뭐해?\nP01: 자?\nP02: 아니", ("안부를 묻는다.",), "일상")
    assert len(records) == 2


def test_aihub_without_summary(write):
    records, _ = load_records(write(json.dumps({"data": [aihub("d1")]})))
    assert records[0].references == ()


@pytest.mark.parametrize("key", ["references", "summaries", "summary"])
def test_list_of_references_under_any_of_its_keys(write, key):
    records, _ = load_records(write([row(**{key: ["하나", "둘"]})]))
    assert records[0].references == ("하나", "둘")


def test_family_is_told_by_content_not_by_ending(write):
    assert load_records(write([row()], "lines.csv"))[0] == load_records(write(f'id,dialogue\na,"{HELLO}"', "c.json"))[0]


def test_json_lines_are_not_split_at_unicode_line_separators(write):
    records, _ = load_records(write([row(dialogue="A: 하나\u2028둘\x85셋"), row("b")]))
    assert records[0].dialogue == "A: 하나\u2028둘\x85셋"


def test_blank_lines_between_rows_are_no_rows(write):
    lines = f"\n{json.dumps(row())}\n\n{json.dumps(row('b'))}\n\n"
    assert [record.id for record in load_records(write(lines))[0]] == ["a", "b"]
    assert [record.id for record in load_records(write("id,dialogue\n\na,A: x\n\n"))[0]] == ["a"]


def test_byte_order_mark_is_no_part_of_the_header_or_the_json(write):
    marked_csv, marked_json = b"\xef\xbb\xbffname,dialogue\na,A: x\n", b'\xef\xbb\xbf[{"id": "a", "dialogue": "A: x"}]'
    assert load_records(write(marked_csv))[0] == load_records(write(marked_json))[0] == [Record("a", "A: x", ())]


def test_crlf_csv_reads_like_lf(write):
    text = f'fname,dialogue,summary\na,"{HELLO}",안녕\nb,A: x,음\n'
    assert load_records(write(text.replace("\n", "\r\n"), "crlf"))[0] == load_records(write(text, "lf"))[0]


def test_turns_may_be_lines_or_the_messages_of_a_chat(write):
    turns = [
        "고객: 안녕하세요.",
        {"role": "상담사", "content": "네,\n말씀하세요."},
        {"speaker": "고객", "text": "취소요."},
    ]
    expected = "고객: 안녕하세요.\n상담사: 네, 말씀하세요.\n고객: 취소요."
    assert load_records(write([{"id": "a", "dialogue": turns}]))[0][0].dialogue == expected


def test_a_header_in_letters_has_the_names_that_are_typed_in_syllables(write):
    header = unicodedata.normalize("NFD", "번호,대화")
    columns = {"id": "번호", "dialogue": "대화"}
    assert load_records(write(f"{header}\na,A: x\n"), columns=columns)[0] == [Record("a", "A: x", ())]


def test_a_folder_of_many_files_is_told_of_in_short(tmp_path):
    for number in range(99):
        (tmp_path / f"{number:02}.json").touch()
    assert "19.json and 79 more; expected for train one of train" in fault_of(tmp_path)


def test_a_speaker_may_be_a_number_as_nought_or_as_pandas_writes_it(write):
    turns = [{"speaker": 0, "utterance": "네."}, {"speaker": "", "participantID": 1.0, "utterance": "응."}]
    assert load_records(write([{"id": "a", "dialogue": turns}]))[0][0].dialogue == "0: 네.\n1: 응."


def nikl_corpus(*names, **others):
    """As NIKL publishes a corpus: documents in a file."""
    spoken = [("SD1", "점심 먹었어?"), ("SD2", ""), ("SD2", "아직.")]
    turns = [{"form": form, "original_form": f"{form}...", "speaker_id": speaker} for speaker, form in spoken]
    documents = [{"id": name, "metadata": {"topic": "식사"}, "utterance": turns, **others} for name in names]
    return {"id": "SDRW1", "metadata": {"title": "말뭉치"}, "document": documents}


def test_the_documents_of_a_nikl_corpus_are_rows(write):
    records, _ = load_records(write(json.dumps(nikl_corpus("d1", "d2", summary="밥 이야기"), indent=1)))
    assert records == [Record(name, "SD1: 점심 먹었어?\nSD2: 아직.", ("밥 이야기",), "식사") for name in ("d1", "d2")]
    assert load_records(write(json.dumps(nikl_corpus("d1", metadata={"topic": {"x": 1}}))))[0][0].topic == ""


def test_a_list_of_another_kind_named_document_is_a_field(write):
    turns = [{"speaker": "A", "utterance": "x"}]
    path = write(json.dumps({"id": 1, "document": "A: x", "data": [7]}))
    assert load_records(path, columns={"dialogue": "document"})[0] == [Record("1", "A: x", ())]
    assert len(load_records(write([row("a", data=[]), row("b", document=[])]))[0]) == 2
    path = write(json.dumps([{"id": 1, "document": turns}]))
    assert load_records(path, columns={"dialogue": "document"})[0] == [Record("1", "A: x", ())]


def test_turns_named_data_are_a_rows_own_in_json_lines(write):
    turns = [{"speaker": "A", "text": "x"}, {"speaker": "B", "text": "y"}]
    path = write("\n".join(json.dumps({"id": name, "data": turns}) for name in "ab"))
    expected = [Record(name, "A: x\nB: y", ()) for name in "ab"]
    assert load_records(path, columns={"dialogue": "data"})[0] == expected


def test_korean_names_of_columns_and_keys(write):
    turns = [{"화자": "고객", "발화": "네."}]
    rows = [
        {"아이디": "a", "대화내용": turns, "요약문": "답", "주제": "말"},
        {"번호": "b", "대화문": "A: x", "요약": "글"},
    ]
    expected = [Record("a", "고객: 네.", ("답",), "말"), Record("b", "A: x", ("글",))]
    assert load_records(write(rows))[0] == expected
    assert load_records(write("번호,대화,요약\na,A: x,글\n"))[0] == [Record("a", "A: x", ("글",))]


@pytest.mark.parametrize("between", ["\n", "", "\n\ufeff"])
def test_files_of_json_put_one_after_the_other_give_the_rows_of_all(write, between):
    files = [{"data": [aihub("d1")]}, nikl_corpus("d2"), [row("d3"), row("d4")], row("d5")]
    path = write(between.join(json.dumps(file, indent=1) for file in files))
    assert [record.id for record in load_records(path)[0]] == ["d1", "d2", "d3", "d4", "d5"]
    lines = write("\n".join(json.dumps(file) for file in (files[0], files[1], files[3])))
    assert [record.id for record in load_records(lines)[0]] == ["d1", "d2", "d5"]


def test_a_fault_in_joined_files_is_named_with_its_line(write):
    path = write(json.dumps(row(), indent=1) + '\n{\n "id": "b",\n "dialogue" "x"\n}')
    assert "broken JSON at line 7, column 13: Expecting ':' delimiter" in fault_of(path)


def test_text_is_kept_but_for_blanks_at_line_ends_and_blank_lines_and_composed_and_an_id_as_it_is(write):
    decomposed = "\u1100\u1161"  # 가 in letters
    records, _ = load_records(write([row(decomposed, f" A:  {decomposed} \t\n \n\nB:  y  \n", summary=decomposed)]))
    assert records == [Record(decomposed, "A:  가\nB:  y", ("가",))]


def test_what_spreadsheets_and_chats_leave_between_letters_is_left_out(write):
    records, _ = load_records(write([row("a", "\u200bA: x_x000D_\r\nB:\u2060 y_x000D_", summary="\ufeffs")]))
    assert records == [Record("a", "A: x\nB: y", ("s",))]


def test_of_several_references_those_that_are_null_are_passed_over(write):
    assert load_records(write([row("a", references=["p", None])]))[0][0].references == ("p",)


def test_a_number_is_an_id(write):
    assert load_records(write([{"id": 7, "dialogue": "A: x"}]))[0][0].id == "7"


def test_a_null_under_one_name_gives_way_to_the_next_name(write):
    path = write([{"fname": None, "id": "a", "dialogue": "A: x", "references": None, "summary": "s"}])
    assert load_records(path)[0] == [Record("a", "A: x", ("s",))]


def test_columns_rename_fields_and_win_over_the_usual_names(write):
    path = write("fname,key,text,highlights\nx,1,A: x,ref\n")
    columns = {"id": "key", "dialogue": "text", "references": "highlights"}
    assert load_records(path, columns=columns)[0] == [Record("1", "A: x", ("ref",))]


def test_a_name_for_references_does_no_harm_where_none_are_needed(write):
    path, columns = write([{"no": 1, "text": "A: x"}]), {"id": "no", "dialogue": "text", "references": "abstract"}
    assert load_records(path, split="eval", columns=columns)[0] == [Record("1", "A: x", ())]
    assert "no column or key abstract" in fault_of(path, columns=columns, need_references=True)


# --- faults of a file -------------------------------------------------------------------------------------------------


def test_broken_json_line_is_named_with_column_and_the_parsers_word(write):
    path = write(f'{json.dumps(row())}\n\n{{"fname": "b", "dialogue" "x"}}\n')
    assert "broken JSON at line 3, column 27: Expecting ':' delimiter" in fault_of(path)


def test_broken_json_list_is_named_with_line_and_column(write):
    path = write('[\n  {"id": "a", "dialogue": "x"},\n  {"id": "b" "dialogue": "x"}\n]')
    assert f"{path}: broken JSON at line 3, column 14: Expecting ',' delimiter" in fault_of(path)


def test_text_after_the_first_json_line_is_named(write):
    assert "line 2, column 1: Extra data" in fault_of(write(f"{json.dumps(row())}\noops\n"))


def test_unclosed_quote_names_the_row_that_opened_it(write):
    path = write('fname,dialogue\na,"A: x\ny"\nb,"A: z\nc,A: w\n')
    assert f"{path}: broken CSV in the row that starts at line 4 (noticed at line 5)" in fault_of(path)


def test_stray_quote_names_its_row(write):
    assert "broken CSV in the row that starts at line 3" in fault_of(write('id,dialogue\na,x\nb,"he said "no" to"\n'))


@pytest.mark.parametrize(("line", "count"), [("b,A: x, y", 3), ("b", 1)])
def test_wrong_number_of_fields_names_the_line_in_any_mode(write, line, count):
    path = write(f'fname,dialogue\na,"A: x\nB: y"\n{line}\n')
    assert f"line 4: {count} fields, but the header has 2" in fault_of(path, bad_rows="skip")


def test_a_header_name_twice(write):
    assert "names dialogue more than once" in fault_of(write("id,dialogue,dialogue\na,x,y\n"))


def test_missing_file_names_a_close_sibling(write):
    path = write([row()], "train.jsonl")
    assert f"did you mean {path}?" in fault_of(path.with_name("trian.jsonl"))


def test_what_is_there_and_is_no_file_is_told_of(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "gone.csv")
    assert "pipe: not a regular file; write what it gives to one" in fault_of(tmp_path / "pipe")
    assert f"link: a link to {tmp_path / 'gone.csv'}, which is not there" in fault_of(tmp_path / "link")
    assert "cannot be read: File name too long" in fault_of(tmp_path / ("x" * 300))
    assert "~nobody-of-that-name/x.csv: cannot be read" in fault_of("~nobody-of-that-name/x.csv")


def test_missing_file_without_a_close_sibling_names_what_is_expected(tmp_path):
    fault = fault_of(tmp_path / "nowhere" / "x.csv")
    assert "no such file" in fault
    assert "embedded-ko" in fault


@pytest.mark.parametrize("content", ["", "\n \n", "\ufeff"])
def test_empty_file(write, content):
    assert "the file is empty" in fault_of(write(content))


@pytest.mark.parametrize("content", ["fname,dialogue,summary\n", "[]", '{"numberOfItems": 0, "data": []}'])
def test_no_rows(write, content):
    assert "no rows" in fault_of(write(content))


@pytest.mark.parametrize("content", ["fname,name,text\na,b,c\n", [{"fname": "a", "name": "b", "text": "c"}]])
def test_missing_column_names_it_those_present_and_the_cure(write, content):
    fault = fault_of(write(content), bad_rows="skip")
    assert "no column or key dialogue; there are fname, name, text; say which of these" in fault
    assert """for example --columns '{"dialogue": "text"}'""" in fault


def test_of_many_names_the_first_are_told(write):
    fault = fault_of(write([{f"d{i}": "A: x" for i in range(3000)}]))
    assert ", d19 and 2980 more; say which" in fault


@pytest.mark.parametrize("content", ['dialogue\n네.\n" "\n안녕.\n', [{"dialogue": t} for t in ("네.", " ", "안녕.")]])
def test_rows_without_ids_are_numbered_as_messages_number_them(write, content, capsys):
    records, rejected = load_records(write(content), bad_rows="skip")
    assert [(record.id, record.dialogue) for record in records] == [("1", "네."), ("3", "안녕.")]
    assert [(row.row, row.fault) for row in rejected] == [(2, "empty dialogue")]
    assert "no fname or id, so the rows are numbered from 1" in capsys.readouterr().err


def test_rows_without_ids_are_numbered_whatever_the_number_of_summaries(write):
    records, _ = load_records(write([{"dialogue": "네.", "summary1": "답", "summary2": "대답", "topic1": "말"}]))
    assert (records[0].id, records[0].references) == ("1", ("답", "대답"))


def test_a_mapped_id_column_that_is_missing_is_not_made_up(write):
    assert "no column or key no" in fault_of(write([{"dialogue": "네."}]), columns={"id": "no"})


def test_rows_are_not_numbered_where_a_column_of_another_name_may_hold_their_ids(write):
    fault = fault_of(write([{"ID": "a", "dialogue": "네."}]))
    assert "no column or key fname or id; there are ID, dialogue; say which of these" in fault
    assert """for example --columns '{"id": "ID"}'""" in fault
    assert fault.endswith(", or add a column id")


@pytest.mark.parametrize(
    ("values", "could_be_id"),
    [
        (["a", "b", "c"], True),
        ([3, 1, 2], True),
        (["a", "b", "a"], False),
        (["a", "b", ""], False),
        (["a", "b", None], False),
        (["a", "b", "c" * 65], False),
        (["a", "b", "c\nd"], False),
        ([["a"], ["b"], ["c"]], False),
    ],
)
def test_a_column_of_another_name_could_be_an_id_where_each_row_has_its_own_short_value(
    values, could_be_id, write, capsys
):
    path = write([{"담당": value, "dialogue": "네."} for value in values])
    if could_be_id:
        assert "no column or key fname or id; there are 담당, dialogue" in fault_of(path)
        return
    assert [record.id for record in load_records(path)[0]] == ["1", "2", "3"]
    assert "no fname or id, so the rows are numbered from 1" in capsys.readouterr().err


def test_an_id_missing_from_one_row_only_is_a_fault(write):
    assert "row 2: no id" in fault_of(write([row(), {"dialogue": "네."}]))


def test_missing_references_column_matters_only_where_references_are_needed(write):
    path = write([row()])
    assert load_records(path)[0]
    assert "no column or key references or summaries or summary" in fault_of(path, need_references=True)


def test_a_summary_that_is_a_list_as_text_or_nothing_matters_only_where_it_is_needed(write):
    path = write([row("a", summary="['x', 'y']"), row("b", summary="nan"), row("c", summary="['x'] y [z]")])
    assert [record.references for record in load_records(path)[0]] == [("['x', 'y']",), (), ("['x'] y [z]",)]
    fault = fault_of(path, need_references=True)
    assert """row 1: "['x', 'y']" is a list written as text: several references go in columns summary1""" in fault
    assert "row 2: no reference summary" in fault
    assert "row 3" not in fault


def test_a_folder_that_may_not_be_listed_is_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)  # who runs the tests may be root, who may list all
    assert f"{tmp_path}: cannot be read: no permission to list the folder" in fault_of(tmp_path)


def test_a_long_dialogue_on_one_line_and_more_is_looked_at_in_no_time(write):
    path = write([row("a", "#A#: x " * 2000 + "\n#B#: y"), row("b")])
    assert len(load_records(path)[0]) == 2


def test_dialogues_without_summaries_are_told_what_to_do(write):
    path = write("fname,대화\na,A: x\n")
    example = """{"references": "abstract"}"""
    telling = f"training and scoring need summaries: say what holds them, --columns '{example}'"
    assert telling in fault_of(path, need_references=True)


def test_a_mapped_column_that_is_missing(write):
    assert "no column or key text; there are fname, dialogue" in fault_of(write([row()]), columns={"dialogue": "text"})


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"bad_rows": "drop"}, "bad_rows is 'drop'; expected error or skip"),
        (
            {"columns": {"summary": "text"}},
            "columns names summary; the fields of a record are id, dialogue, references",
        ),
    ],
)
def test_options_out_of_range(write, options, fault):
    assert fault in fault_of(write([row()]), **options)


# --- faults of a row --------------------------------------------------------------------------------------------------


BAD_ROWS = [
    (row("b", ""), "empty dialogue"),
    (row("b", " \n "), "empty dialogue"),
    (row("b", None), "no dialogue"),
    (row("b", 5), "dialogue is 5, not a string"),
    (row("b", []), "empty dialogue"),
    (row("b", [{"utterance": "x"}]), "turn 1 has no speaker"),
    (row("b", [{"speaker": "A", "utterance": 3}]), "utterance of turn 1 is 3, not a string"),
    (row("b", [{"speaker": {"id": 1}, "text": "x"}]), "speaker of turn 1 is {'id': 1}, not a string"),
    (row("b", [{"speaker": 0.5, "text": "x"}]), "speaker of turn 1 is 0.5, not a string"),
    (row("b", [7]), "turn 1 has no speaker or participantID or role or speaker_id or 화자: 7"),
    (
        row("b", [{"speaker": "A", "말": "x"}]),
        "turn 1 has no utterance or text or content or form or 발화: {'speaker': 'A', '말': 'x'}",
    ),
    (row("b", "A: \ud800"), "dialogue is not valid Unicode"),
    (row("b", summary=3), "reference is 3, not a string"),
    (row("b", references=["x", 3]), "reference is 3, not a string"),
    (row("b", summary={"text": "x"}), "reference is {'text': 'x'}, not a string"),
    (row("b", "nan"), "empty dialogue"),
    (row("b", "#NAME?"), "empty dialogue"),
    *(
        (row("b", nothing), "empty dialogue")
        for nothing in ("NULL", "n/a", "NA", "<NA>", "NaT", "\\N", "-", "—--", "없음")
    ),
    (row("b", "[{'speaker': 'A'}]"), "\"[{'speaker': 'A'}]\" is a list written as text"),
    (row("b", '["A: x", null]'), "'[\"A: x\", null]' is a list written as text"),
    (row("b", '[{"speaker": "A", "ok": true}]'), '\'[{"speaker": "A", "ok": true}]\' is a list written as text'),
    (
        row("b", "[{'speaker': 'A'}\n {'speaker': 'B'}]"),
        "\"[{'speaker': 'A'}\\n {'speaker': 'B'}]\" is a list written as",
    ),
    (row("b", '{"turns": [null]}'), "'{\"turns\": [null]}' is an object written as text"),
    (row("b", "{}"), "'{}' is an object written as text"),
    (row("first\u200b"), "duplicate id 'first'"),
    (row("first"), "duplicate id 'first', first used by row 1"),
    (row(""), "no id"),
    (row(None), "no id"),
    ({"dialogue": "A: x"}, "no id"),
    ({"fname": "b"}, "no dialogue"),
    (["b"], "['b'] is not an object with named values"),
]


@pytest.mark.parametrize(("bad", "fault"), BAD_ROWS)
def test_bad_row_stops_with_its_number_and_the_way_on(write, bad, fault):
    path = write(json.dumps([row("first"), bad]))
    message = fault_of(path)
    assert message.startswith(f"{path}: 1 bad of 2 rows\n  row 2: {fault}")
    assert message.endswith("--bad_rows skip")


@pytest.mark.parametrize(("bad", "fault"), BAD_ROWS)
def test_bad_row_is_skipped_with_its_content(write, bad, fault):
    path = write(json.dumps([row("first"), bad, row("last")]))
    records, rejected = load_records(path, bad_rows="skip")
    assert [record.id for record in records] == ["first", "last"]
    assert [(one.path, one.row) for one in rejected] == [(str(path), 2)]
    assert rejected[0].fault.startswith(fault)
    assert json.loads(rejected[0].content) == bad


@pytest.mark.parametrize("references", ["", None, [], ["", " "]])
def test_empty_reference_is_a_fault_only_where_needed(write, references):
    path = write(json.dumps([row("first", references="x"), row("b", references=references)]))
    assert load_records(path)[0][1].references == ()
    assert "row 2: no reference summary" in fault_of(path, need_references=True)


def test_first_ten_faults_are_shown_and_the_rest_counted(write):
    message = fault_of(write([row(), *[row(f"b{n}", "") for n in range(13)]]))
    assert message.count("empty dialogue") == 10
    assert "row 11: empty dialogue\n  and 3 more\n" in message


def test_csv_row_number_leaves_out_the_header_and_lines_inside_quotes(write):
    _, rejected = load_records(write(f'fname,dialogue\na,"{HELLO}"\nb,\n'), bad_rows="skip")
    assert (rejected[0].row, json.loads(rejected[0].content)) == (2, {"fname": "b", "dialogue": ""})


def test_skip_is_still_an_error_where_no_row_is_good(write):
    message = fault_of(write([row("a", ""), row("b", "")]), bad_rows="skip")
    assert "2 bad of 2 rows" in message
    assert "--bad_rows" not in message


def test_max_rows_takes_the_first_good_rows_and_looks_no_further(write):
    path = write([row("a", ""), row("b"), row("c"), row("d", "")])
    records, rejected = load_records(path, bad_rows="skip", max_rows=2)
    assert [record.id for record in records] == ["b", "c"]
    assert [one.row for one in rejected] == [1]


def test_a_dialogue_with_a_row_for_each_turn_is_refused(write):
    turns = [{"speaker": name, "대화": text} for name, text in (("A", "안녕"), ("B", "응"), ("A", "가자"))]
    fault = fault_of(write(turns))
    assert fault.endswith(f"a column of speakers, and no line break in any dialogue. {ROW_A_TURN}")
    said = [{"role": "user", "text": text, "summary": text} for text in ("안녕", "가자")]
    assert fault_of(write(said), columns={"dialogue": "text"}).endswith(ROW_A_TURN)
    predictions = [{"role": "assistant", "summary": one["summary"]} for one in said]
    assert read_predictions(write(predictions)) == {"1": "안녕", "2": "가자"}
    whole = [{"role": "상담", "대화": "A: 안녕\nB: 응"}, {"role": "상담", "대화": [{"speaker": "A", "text": "가자"}]}]
    assert [record.dialogue for record in load_records(write(whole))[0]] == ["A: 안녕\nB: 응", "A: 가자"]


ONE_ROW = "It looks like one row a turn: put the turns of each dialogue into one row, one turn a line."
ROW_A_TURN = f"{ONE_ROW} Where each row is a whole dialogue, add a column id."


def test_what_pandas_writes_for_nothing_is_nothing(write):
    nan = float("nan")
    rows = [row("a") | {"summary": nan, "topic": nan}, {"fname": 2.0, "dialogue": "A: x", "summary": "답", "topic": 3}]
    records, _ = load_records(write(rows))
    assert [(one.id, one.references, one.topic) for one in records] == [("a", (), ""), ("2", ("답",), "3")]
    assert "row 1: no reference summary" in fault_of(write(rows), need_references=True)


@pytest.mark.parametrize(
    ("content", "columns", "example"),
    [
        ("text,abstract\nA: x,y\n", None, '{"id": "no", "dialogue": "text"}'),
        ("key,text\nA,x\n", {"id": "key", "topic": "Topic"}, '{"id": "key", "dialogue": "text", "topic": "subject"}'),
    ],
)
def test_the_example_of_columns_gives_each_field_its_own_and_keeps_what_was_given(content, columns, example, write):
    assert f"for example --columns '{example}'" in fault_of(write(content, "data.csv"), columns=columns)


def test_a_float_that_has_lost_digits_is_no_id(write):
    assert "id is 2.02405011234567" in fault_of(write('{"fname": 20240501123456789.0, "dialogue": "A: x"}'))


def test_a_long_number_is_an_id_to_its_last_digit(write):
    assert load_records(write([row(20240501123456789012)]))[0][0].id == "20240501123456789012"


def test_a_list_of_texts_is_no_table(write):
    assert "row 1: 'A: 안녕' is not an object with named values" in fault_of(
        write(json.dumps(["A: 안녕", "B: 응"], ensure_ascii=False))
    )


def test_a_table_with_a_row_for_each_turn_is_refused_whatever_is_done_with_bad_rows(write):
    turns = [row(name, f"{name}{i}") for name in "ab" for i in range(3)]
    for bad_rows in ("error", "skip"):
        fault = fault_of(write(turns), bad_rows=bad_rows)
        assert "4 of 6 rows have an id that is there already, with another dialogue" in fault
        assert fault.endswith(ONE_ROW)
    same = [row(name, name) for name in "aaabbb"]
    assert "4 bad of 6 rows\n  row 2: duplicate id 'a', first used by row 1" in fault_of(write(same))
    assert len(load_records(write(same), bad_rows="skip")[0]) == 2


TAGGED = [
    "고객: 네. 상담원: 아. 고객: 끝",
    "A:네/B：아/A:끝",
    "A: 네|B: 아|A: 끝",
    "A: 네</s>B: 아</s>A: 끝",
    "A: 네.B: 아.A: 끝",
    "A: 네;B: 아;A: 끝",
    "Mr.Kim: 네 Ms.Lee: 아 Mr.Kim: 끝",
]
ONE_TURN = [
    "공지: 10:30 시작, 10:00 시작, 12:00 끝",
    "참고: https://a https://b",
    "A: 네 A: 아 A: 끝",
    "A: 네 B: 아 C: 끝",
    "네 A: 아 B: 네 A: 끝",
]


@pytest.mark.parametrize(("text", "refused"), [(text, text in TAGGED) for text in TAGGED + ONE_TURN])
def test_names_within_a_line_are_turns_where_one_speaks_again(text, refused, write):
    path = write([row("a", text), row("b", text), row("c")])
    if refused:
        assert "2 of 3 dialogues have several turns on a line" in fault_of(path)
    else:
        assert len(load_records(path)[0]) == 3


@pytest.mark.parametrize(
    "chat",
    [
        "[홍길동] [오전 10:12] 안녕\n[김철수] [오후 1:13] 응",
        "2024년 1월 5일 오전 10:12, 홍길동 : 안녕\n둘째 줄\n2024년 1월 5일 오전 10:13, 김철수 : 응",
        "--- 2024년 1월 5일 ---\n[홍길동] [10:12 AM] 안녕\n[김철수] [10:13 AM] 응",
        "홍길동 님과 카카오톡 대화\n저장한 날짜 : 2024-01-05\n홍길동 : 안녕",
    ],
)
def test_what_messengers_export_is_refused(chat, write):
    path = write([row("a", chat), row("b", chat), row("c")])
    assert "2 of 3 dialogues are as messengers export them, with dates and times" in fault_of(path)
    assert len(load_records(write([row("a", chat), row("c")]))[0]) == 2


def test_names_in_brackets_and_times_before_turns_are_no_export(write):
    times = row("a", "[00:10] 고객: 10:12, 맞죠 : 네\n[00:11] 상담원: 네")
    assert len(load_records(write([times, row("b", "[고객] 안녕\n[상담원] [웃음] 네")]))[0]) == 2


@pytest.mark.parametrize("written", ["\\n", "<br>", "<BR />", "&lt;br&gt;", " "])
def test_dialogues_without_line_breaks_are_refused(written, write):
    flat, whole = row("a", written.join(["#A#: x", "#B#: y"])), row("b", f"#A#: x{written}z\n#B#: y")
    assert "2 of 3 dialogues have several turns on a line, with" in fault_of(
        write([flat, row("c", flat["dialogue"]), whole])
    )
    assert len(load_records(write([flat, whole]))[0]) == 2


# --- folders, embedded sets, the Hub ----------------------------------------------------------------------------------


def test_folder_splits_by_stem(write, tmp_path):
    train, dev = write([row()], "train.csv"), write([row("b")], "dev.json")
    write([row("c")], "test.jsonl")
    write([row("d")], "dev_second.jsonl")
    assert (find_split(tmp_path, "train"), find_split(tmp_path, "eval")) == (train, dev)
    assert load_records(tmp_path)[0][0].id == "a"
    assert load_records(str(tmp_path), split="eval")[0][0].id == "b"


def test_a_test_file_is_scored_and_never_held_out(write, tmp_path):
    path = write([row()], "test.jsonl")
    assert (find_split(tmp_path, "eval"), find_split(tmp_path, "held_out")) == (path, None)
    dev = write([row()], "dev.jsonl")
    assert find_split(tmp_path, "eval") == find_split(tmp_path, "held_out") == dev


def test_eval_stems_in_their_order(write, tmp_path):
    for stem in ("test", "val", "valid", "validation", "dev", "eval"):
        path = write([row()], f"{stem}.jsonl")
        assert find_split(tmp_path, "eval") == path


def test_folder_without_the_split_names_what_is_there(write, tmp_path):
    write([row()], "train.jsonl")
    write("read me", "notes.md")
    assert find_split(tmp_path, "eval") is None
    assert f"{tmp_path} holds notes.md, train.jsonl; expected for eval one of eval, dev" in fault_of(
        tmp_path, split="eval"
    )


def test_a_folder_of_json_files_is_told_how_to_join_them(write, tmp_path):
    write(json.dumps(row()), "call1.json")
    assert "join the files" not in fault_of(tmp_path)
    write(json.dumps(row("b")), "call2.json")
    assert f"; or join the files, `cat {tmp_path}/*.json > all.json`, and give that one" in fault_of(tmp_path)


def test_empty_folder(tmp_path):
    assert f"{tmp_path} holds nothing; expected for train one of train" in fault_of(tmp_path)


def test_two_files_for_one_stem(write, tmp_path):
    write([row()], "train.jsonl")
    write([row()], "train.csv")
    assert f"{tmp_path} holds train.csv, train.jsonl; keep one" in fault_of(tmp_path)


def test_one_file_is_read_for_either_split_but_holds_no_eval_split(write):
    path = write([row()])
    assert load_records(path, split="eval") == load_records(path, split="train")
    assert (find_split(path, "train"), find_split(path, "eval")) == (path, None)


@pytest.mark.parametrize(
    ("name", "split", "rows", "references"),
    [
        ("embedded-ko", "train", 128, 1),
        ("embedded-ko", "eval", 32, 2),
        ("embedded-en", "train", 22, None),
        ("embedded-en", "eval", 10, None),
    ],
)
def test_embedded_sets(name, split, rows, references):
    records, rejected = load_records(name, split=split, need_references=True)
    assert (len(records), rejected) == (rows, [])
    assert references is None or {len(record.references) for record in records} == {references}


def test_embedded_splits_share_no_dialogue():
    for name in ("embedded-ko", "embedded-en"):
        train, evaluation = load_records(name)[0], load_records(name, split="eval")[0]
        assert {record.dialogue for record in train}.isdisjoint(record.dialogue for record in evaluation)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Stands in for `load_dataset`, which needs a network; no folder here shadows a name."""
    monkeypatch.chdir(tmp_path)
    splits = {}

    def load_dataset(name):
        if not splits:
            raise ConnectionError(f"cannot reach {name}")
        return splits

    monkeypatch.setattr("alignment.hub.load_dataset", load_dataset)
    hub_splits.cache_clear()
    return splits


def test_hub_data_set_with_columns(hub):
    hub["train"] = [{"uid": 1, "text": "A: x", "abstract": "s", "fname": None}]
    columns = {"id": "uid", "dialogue": "text", "references": "abstract"}
    assert load_records("owner/name", columns=columns)[0] == [Record("1", "A: x", ("s",))]


def test_the_validation_split_of_a_hub_data_set_is_held_out(hub):
    of_split = {"train": "ab", "test": "t", "validation": "v"}
    rows = {split: [row(name, f"A: {name}", summary="s") for name in names] for split, names in of_split.items()}
    hub.update(train=rows["train"], test=rows["test"])
    assert not hub_holds_out("owner/name")  # a test split is not for choosing a checkpoint
    hub["validation"] = rows["validation"]
    (train, held_out), _ = load_train_and_eval(DataArguments(dataset_path="owner/name"))
    assert ([one.id for one in train], [one.id for one in held_out]) == (["a", "b"], ["v"])


def test_hub_eval_prefers_validation_then_dev_then_test(hub):
    for split in ("test", "dev", "validation"):
        hub[split] = [row(split)]
        assert load_records("owner/name", split="eval")[0][0].id == split
    assert "no train split (train); the data set has test, dev, validation" in fault_of("owner/name")


def test_hub_out_of_reach_says_how_to_bring_a_file(hub):
    fault = fault_of("owner/name")
    assert "ConnectionError: cannot reach owner/name" in fault
    assert "give the path of that file" in fault


def test_hub_name_has_no_split_on_disk(hub):
    assert find_split("owner/name", "eval") is None


@pytest.mark.parametrize("path", ["data/train.csv", "there/train"])
def test_a_mistyped_local_path_is_no_hub_name(hub, tmp_path, path):
    (tmp_path / "there").mkdir()
    assert "no such file" in fault_of(path)


# --- what is written and read back ------------------------------------------------------------------------------------


def test_write_rejected_writes_json_lines_even_of_broken_unicode(tmp_path):
    rejected = [Rejected("f.csv", 2, "empty dialogue", '{"id": "가"}'), Rejected("f.csv", 3, "x", '"\ud800"')]
    write_rejected(rejected, tmp_path / "new" / "rejected.jsonl")
    text = (tmp_path / "new" / "rejected.jsonl").read_text(encoding="utf-8")
    assert "가" in text
    assert [Rejected(**json.loads(line)) for line in text.splitlines()] == rejected
    write_rejected([], tmp_path / "new" / "rejected.jsonl")
    assert not (tmp_path / "new" / "rejected.jsonl").exists()  # it was of another run


@pytest.mark.parametrize(
    "content",
    [
        'fname,summary\na," x  "\nb,\n',
        "id,summary\na,x\nb,\n",
        [{"fname": "a", "summary": "x "}, {"fname": "b", "summary": ""}],
        [{"id": "a", "summary": "x"}, {"id": "b", "summary": ""}],
        "번호,요약\na,x\nb,\n",
        "아이디,요약문\na,x\nb,\n",
    ],
)
def test_read_predictions_by_either_key_stripped_and_perhaps_empty(write, content):
    assert read_predictions(write(content)) == {"a": "x", "b": ""}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("fname,summary\na,x\na,y\n", "row 2: duplicate id 'a'"),
        ([{"id": "a", "summary": 5}], "row 1: summary is 5, not a string"),
        ([{"id": "a", "summary": None}], "row 1: no summary"),
        ("fname,prediction\na,x\n", "no column or key summary; there are fname, prediction"),
        ("", "the file is empty"),
    ],
)
def test_read_predictions_faults(write, content, fault):
    with pytest.raises(InputError, match=fault):
        read_predictions(write(content))


def test_fingerprint_is_stable_and_sees_order_and_every_field():
    records = [Record("a", "A: x", ("r",), "t"), Record("b", "A: y", ())]
    assert fingerprint(records) == "7a4f1ce152b4208377276861722e3f812c13acd98301afac4860f4c4d000801a"
    changed = [
        records[::-1],
        records[:1],
        [Record("z", "A: x", ("r",), "t"), records[1]],
        [Record("a", "A: z", ("r",), "t"), records[1]],
        [Record("a", "A: x", ("z",), "t"), records[1]],
        [Record("a", "A: x", ("r",), "z"), records[1]],
    ]
    assert len({fingerprint(version) for version in [records, *changed]}) == 7
