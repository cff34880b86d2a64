"""What users get wrong, through the real recipes: one message with what, where and what to do, and nothing written."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from alignment import outputs, run
from alignment.errors import InputError
from alignment.formats import partial_of
from alignment.launch import launch
from recipes import evaluate, sft

TALK = "#Person1#: 안녕하세요.\n#Person2#: 네, 반가워요."
GOOD = {"fname": "a", "dialogue": TALK, "summary": "둘은 인사했다."}
OTHER = {"fname": "b", "dialogue": "#Person1#: 점심 먹자.\n#Person2#: 좋아.", "summary": "둘은 점심을 먹는다."}
HEADER = "fname,dialogue,summary\n"


def json_lines(*rows: dict) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.fixture
def data(tmp_path) -> Callable[[str | bytes], Path]:
    """Writes a data file."""

    def write(content: str | bytes) -> Path:
        path = tmp_path / "data.txt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def short_flags(sft_flags_for, tmp_path):
    """Flags of a phase 1 of one epoch, without evaluation."""

    def flags(**changes):
        quick = {"phases": "1", "num_train_epochs": 1, "rouge_eval_rows": 0, "eval_strategy": "no"}
        quick |= {"save_strategy": "no", "load_best_model_at_end": False, "output_dir": tmp_path / "out"}
        return sft_flags_for(**quick | changes)

    return flags


@pytest.fixture
def evaluate_flags(tiny_model, dialogues, tmp_path):
    def flags(**changes):
        values = {
            "model": tiny_model, "dataset_path": dialogues, "output_dir": tmp_path / "out", "max_new_tokens": 4,
            "dtype": "float32",
        } | changes  # fmt: skip
        return [str(word) for name, value in values.items() if value is not None for word in (f"--{name}", value)]

    return flags


def files_in(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(main: Callable[[list[str]], None], argv: list[str], folder: Path, *telling: object) -> None:
    """The recipe stops with a message that has these words, and `folder` is as it was."""
    outputs.release()  # as `launch` does, which the tests leave out
    before = files_in(folder)
    with pytest.raises(InputError) as caught:
        main(argv)
    outputs.release()
    message = str(caught.value)
    assert [word for word in map(str, telling) if word not in message] == [], message
    assert files_in(folder) == before


# --- data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "telling"),
    [
        ("", ["the file is empty"]),
        (HEADER, ["no rows", "expected at least one"]),
        ("fname,text,summary\na,안녕,인사\n", ["no column or key dialogue", "there are fname, text, summary"]),
        (json_lines(GOOD, OTHER | {"dialogue": " \n"}), ["row 2: empty dialogue", "--bad_rows skip"]),
        (json_lines(GOOD, OTHER | {"summary": ""}), ["row 2: no reference summary", "--bad_rows skip"]),
        (json_lines(GOOD | {"references": [5]}, OTHER), ["row 1: reference is 5, not a string", "--bad_rows skip"]),
        (json_lines(GOOD | {"references": {"x": 1}}, OTHER), ["row 1: reference is {'x': 1}, not a string"]),
        (
            f"{HEADER}a,안녕,인사\na,응,인사\na,그래,인사\n",
            ["2 of 3 rows have an id that is there already", "put the turns of each dialogue into one row"],
        ),
        (json_lines(GOOD, OTHER, GOOD), ["row 3: duplicate id 'a', first used by row 1", "--bad_rows skip"]),
        (json_lines(GOOD) + '{"fname": "b", \n', ["broken JSON at line 2, column", "correct it there"]),
        (json.dumps([GOOD, OTHER], indent=1)[:-1] + ",", ["broken JSON at line 12", "correct it there"]),
        (f'{HEADER}a,"안녕",인사\nb,"열린,인사\n', ["broken CSV", "row that starts at line 3", "close every quote"]),
        (f"{HEADER}a,안녕, 잘 가,인사\n", ["line 2: 4 fields, but the header has 3", "double quotes"]),
        (f"{HEADER}a,안녕,인사\n".encode("cp949"), ["not UTF-8 at byte", "CP949", "iconv -f CP949"]),
    ],
    ids=[
        "empty", "no-rows", "missing-column", "empty-dialogue", "empty-summary", "reference-number", "reference-object",
        "row-a-turn", "duplicate-id", "json-line", "json-list", "open-quote", "unquoted-comma", "encoding",
    ],
)  # fmt: skip
@pytest.mark.parametrize("recipe", ["sft", "evaluate"])
def test_faulty_data(recipe, content, telling, data, short_flags, evaluate_flags, tmp_path):
    main, flags = (sft.main, short_flags) if recipe == "sft" else (evaluate.main, evaluate_flags)
    path = data(content)
    refused(main, flags(dataset_path=path), tmp_path, path, *telling)


def test_a_missing_file_names_one_like_it(data, short_flags, tmp_path):
    path = data(json_lines(GOOD))
    wrong = path.with_name("dat.txt")
    refused(sft.main, short_flags(dataset_path=wrong), tmp_path, wrong, "no such file", f"did you mean {path}?")


@pytest.mark.parametrize("change", [lambda text: "\ufeff" + text, lambda text: text.replace("\n", "\r\n")])
def test_a_byte_order_mark_and_crlf_are_simply_read(change, data, short_flags, tmp_path):
    csv_text = HEADER + "".join(f'{row["fname"]},"{row["dialogue"]}",{row["summary"]}\n' for row in (GOOD, OTHER))
    manifests = []
    for name, content in (("plain", csv_text), ("changed", change(csv_text))):
        sft.main(short_flags(dataset_path=data(content), output_dir=tmp_path / name))
        manifests.append(run.read_manifest(tmp_path / name / "phase1"))
    assert manifests[0]["data"] == manifests[1]["data"]
    assert all(manifest["finished"] for manifest in manifests)


def test_bad_rows_skip_goes_on_and_lists_them(data, short_flags, evaluate_flags, tmp_path):
    path = data(json_lines(GOOD, OTHER | {"summary": ""}, OTHER))
    short = partial(short_flags, phases="1,2")
    recipes = ((sft.main, short, "rejected.jsonl"), (evaluate.main, evaluate_flags, "evaluate.rejected.jsonl"))
    for main, flags, file in recipes:
        main(flags(dataset_path=path, output_dir=tmp_path / "both", bad_rows="skip"))
        (rejected,) = map(json.loads, (tmp_path / "both" / file).read_text("utf-8").splitlines())
        assert (rejected["path"], rejected["row"], rejected["fault"]) == (str(path), 2, "no reference summary")
        assert json.loads(rejected["content"]) == OTHER | {"summary": ""}
    assert (tmp_path / "both" / "rejected.jsonl").is_file()  # which rows were not trained on


# --- length -----------------------------------------------------------------------------------------------------------


def test_a_dialogue_longer_than_the_context_is_shortened_and_listed(data, short_flags, tmp_path, capsys):
    long = {"fname": "long", "dialogue": "\n".join(["#Person1#: 네, 그렇습니다."] * 400), "summary": "길다."}
    held = long | {"fname": "held", "dialogue": long["dialogue"].replace("네", "예")}
    (tmp_path / "eval.jsonl").write_text(json_lines(held), "utf-8")
    train = data(json_lines(GOOD, OTHER, long))
    sft.main(short_flags(dataset_path=train, eval_dataset_path=tmp_path / "eval.jsonl", max_length=2048))
    listed = json.loads((tmp_path / "out" / "shortened.json").read_text("utf-8"))
    assert {item["id"] for item in listed} == {"long", "held"}
    assert all(2 < item["kept_turns"] < item["turns"] == 400 for item in listed)
    most = f"the most: 400 turns to {min(item['kept_turns'] for item in listed)}."
    assert f"{tmp_path / 'out' / 'shortened.json'} lists what each lost, {most}" in capsys.readouterr().err


def test_one_turn_longer_than_the_context(data, short_flags, tmp_path):
    long = OTHER | {"fname": "long", "dialogue": "#Person1#: " + "길게 " * 3000}
    telling = ["Dialogue long: the first turn", "--bad_rows skip", "2048 tokens", "Split the turn", "--max_length"]
    refused(sft.main, short_flags(dataset_path=data(json_lines(GOOD, long)), max_length=2048), tmp_path, *telling)


def test_a_max_length_beyond_the_context(short_flags, tmp_path):
    refused(sft.main, short_flags(max_length=4096), tmp_path, "--max_length 4096", "at most 2048", "context")


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "telling"),
    [
        ("lora_alfa: 8", ["unknown key `lora_alfa`", "Did you mean `lora_alpha`?"]),
        ("lora_r: 5.5", ["lora_r", "5.5", "expected int"]),
        ("phases: [1, 2]", ["phases [1, 2]", "expected one value"]),
        ("- lora_r", ["expected lines of `key: value`", "list"]),
        ("lora_r: [8\nlora_alpha: 16", ["not valid YAML", "line 2"]),
    ],
    ids=["unknown-key", "wrong-type", "list", "no-keys", "broken"],
)
def test_faulty_yaml(line, telling, short_flags, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(line + "\n", "utf-8")
    refused(sft.main, [*short_flags(), "--config", str(path)], tmp_path, path, *telling)


@pytest.mark.parametrize(
    ("words", "telling"),
    [
        (["--learning", "1e-4"], ["unknown argument `--learning`", "Did you mean `learning_rate`?"]),
        (["--config=mine.yaml"], ["--config=mine.yaml", "write `--config mine.yaml`, with a space"]),
        (["--config", "mine.yaml"], ["--config mine.yaml: no such file", "embedded.yaml"]),
        (["--phases", "3"], ["--phases 3: expected 1, 2 or 1,2."]),
        (["--phases", "2"], ["phase1 holds no finished result", "--phases 1,2"]),
        (["--prompt_form", "chatml"], ["--prompt_form chatml: expected one of instruction, chat, template"]),
        (["--prompt_form", "template"], ["no chat template; use instruction or chat"]),
        (["--max_train_rows", "0"], ["--max_train_rows 0: expected 1 or more"]),
        (["--max_eval_rows", "-1"], ["--max_eval_rows -1: expected 1 or more"]),
        (["--bad_rows", "drop"], ["bad_rows is 'drop'; expected error or skip"]),
    ],
    ids=lambda value: "-".join(value).strip("-") if value[0].startswith("--") and len(value) < 3 else "",
)
def test_faulty_flags(words, telling, short_flags, tmp_path):
    refused(sft.main, [*short_flags(), *words], tmp_path, *telling)


# --- models -----------------------------------------------------------------------------------------------------------


def test_a_missing_model_folder(short_flags, evaluate_flags, tmp_path):
    for main, argv in (
        (sft.main, short_flags(model_name_or_path=tmp_path / "nowhere")),
        (evaluate.main, evaluate_flags(model=tmp_path / "nowhere")),
    ):
        refused(main, argv, tmp_path, tmp_path / "nowhere", "no such folder", "Hub name")


def test_an_adapter_on_another_base(short_flags, evaluate_flags, tiny_model, tmp_path):
    other = tmp_path / "other"
    config = AutoConfig.from_pretrained(tiny_model, hidden_size=32, head_dim=8)
    AutoModelForCausalLM.from_config(config).save_pretrained(other)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(other)
    sft.main(short_flags())

    # to go on training: stopped by name, and the right base can still be named
    phase2 = tmp_path / "out" / "phase2"
    with pytest.raises(InputError, match=rf"is for {tiny_model}, not for {other}.*--model_name_or_path {tiny_model}"):
        sft.main(short_flags(model_name_or_path=other, phases="2"))
    sft.main(short_flags(phases="2"))
    assert run.read_manifest(phase2)["finished"]

    # to use: its folder names another base by now
    settings = json.loads((phase2 / "adapter_config.json").read_text("utf-8"))
    (phase2 / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": str(other)}), "utf-8")
    argv = evaluate_flags(model=phase2, output_dir=tmp_path / "scores")
    refused(evaluate.main, argv, tmp_path, phase2, "does not fit the base model", other)


# --- output -----------------------------------------------------------------------------------------------------------


def test_an_output_folder_that_cannot_be_written(evaluate_flags, tmp_path):
    (tmp_path / "file").touch()
    argv = evaluate_flags(output_dir=tmp_path / "file" / "out")
    refused(
        evaluate.main, argv, tmp_path, "--output_dir", tmp_path / "file", "cannot be written", "Choose another folder"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(evaluate_flags, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    partial_of(tmp_path / "out" / "predictions.csv").symlink_to("/dev/full")
    with pytest.raises(SystemExit) as caught:
        launch(lambda: evaluate.main(evaluate_flags()))
    assert caught.value.code == 2
    assert "the disk is full" in (message := capsys.readouterr().err)
    assert "The same command goes on" in message
    assert not (tmp_path / "out" / "results.json").exists()


def test_an_existing_output(short_flags, tmp_path):
    (tmp_path / "out" / "phase1").mkdir(parents=True)
    (tmp_path / "out" / "phase1" / "thesis.txt").write_text("mine", "utf-8")
    telling = [tmp_path / "out" / "phase1", "not empty", "Choose another --output_dir"]
    refused(sft.main, short_flags(), tmp_path, *telling)
    refused(sft.main, short_flags(overwrite_output_dir=True), tmp_path, "not deleted")


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_evaluation_without_summaries(data, evaluate_flags, tmp_path):
    path = data(f'fname,dialogue\na,"{TALK}"\n')
    telling = [path, "no column or key references or summaries or summary", "there are fname, dialogue"]
    refused(evaluate.main, evaluate_flags(dataset_path=path), tmp_path, *telling)


@pytest.mark.parametrize(
    ("rows", "telling"),
    [
        ("a,x\nc,y\n", ["1 missing (b)", "1 unknown (c)", "give the file made for them"]),
        ("a,x\n", ["1 missing (b)"]),
        ("a,x\na,y\nb,z\n", ["row 2: duplicate id 'a'"]),
    ],
    ids=["other", "missing", "twice"],
)
def test_predictions_whose_ids_do_not_match(rows, telling, data, evaluate_flags, tmp_path):
    predictions = tmp_path / "predictions.csv"
    predictions.write_text("fname,summary\n" + rows, "utf-8")
    argv = evaluate_flags(model=None, predictions=predictions, dataset_path=data(json_lines(GOOD, OTHER)))
    refused(evaluate.main, argv, tmp_path, predictions, *telling)


def test_a_model_and_predictions_at_once(evaluate_flags, tmp_path):
    refused(
        evaluate.main, evaluate_flags(predictions="predictions.csv"), tmp_path, "--model, --predictions and --compare"
    )


@pytest.mark.parametrize("option", ["num_beams", "batch_size"])
def test_predictions_and_options_of_decoding_at_once(option, evaluate_flags, tmp_path):
    flags = evaluate_flags(**{"model": None, "predictions": "predictions.csv", option: 4})
    refused(evaluate.main, flags, tmp_path, "--predictions: nothing to combine or decode. Leave out")


# --- the real command -------------------------------------------------------------------------------------------------


def test_the_command_ends_with_one_message_and_exit_code_2(data, evaluate_flags):
    path = data(json_lines(GOOD, OTHER, GOOD))
    flags = evaluate_flags(dataset_path=path)
    done = subprocess.run([sys.executable, evaluate.__file__, *flags], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {path}: 1 bad of 3 rows")
    assert done.stderr.count("duplicate id 'a'") == 1
    assert "Traceback" not in done.stderr
