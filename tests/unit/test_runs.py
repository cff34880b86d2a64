"""reward/runs.py: what is read of evaluated systems, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.errors import InputError
from alignment.records import Record
from reward.runs import read_runs

RECORDS = [
    Record("a", "Ann: hello\nBob: good day", ("red green blue",), "greeting"),
    Record("b", "Ann: it rains\nBob: it does\nCat: a lot", ("red green blue", "one two three")),
]
KNOWN = {"parameters": 7, "trained_parameters": None, "seconds": 1.5, "peak_memory_gib": 2, "disk_bytes": 9}
EXACT, HALF, NONE = ["red green blue", "red green blue"], ["red green blue", "nothing else here"], ["x", ""]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder as recipes/evaluate.py does: `run("dev", phase1=[...])`."""

    def write(name: str, records: list[Record] = RECORDS, system: dict | None = None, **systems: list[str]) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        rows: list[dict[str, Any]] = []
        for own, summaries in systems.items():
            file = f"predictions-{own}.csv"
            lines = [f"{record.id},{text}" for record, text in zip(records, summaries, strict=True)]
            (folder / file).write_text("\n".join(["fname,summary", *lines]), "utf-8")
            for profile in ("english", "strict"):
                rows.append({"name": own, "profile": profile, "predictions": file, "system": system} | KNOWN)
        (folder / "results.json").write_text(json.dumps(rows), "utf-8")
        dialogues = [json.dumps(vars(record)) for record in records]
        (folder / "dialogues.jsonl").write_text("\n".join(dialogues), "utf-8")
        return folder

    return write


def results_in(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "results.json").read_text("utf-8"))


def test_a_run_is_read_once_for_each_system(run):
    folder = run("dev", one=EXACT, two=NONE)
    records, entries = read_runs([folder])
    assert records == RECORDS
    assert [(one.name, one.run, one.summaries, one.system) for one in entries] == [
        ("one", folder, EXACT, None), ("two", folder, NONE, None),
    ]  # fmt: skip
    assert entries[0].costs == KNOWN


def test_names_that_clash_get_as_much_of_their_folders_as_tells_them_apart(run):
    folders = [run("x/dev", one=EXACT, two=EXACT), run("y/dev", one=EXACT), run("z", one=EXACT)]
    names = [own.name for own in read_runs(folders)[1]]
    assert names == ["x/dev/one", "two", "y/dev/one", "z/one"]


def test_manifests_of_models_that_are_still_there_are_read(run, tmp_path):
    manifest = {"finished": True, "settings": {}, "log": [{"step": 1, "loss": 2.0}], "seconds": 60}
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    models = [str(tmp_path / "model"), str(tmp_path / "gone"), "embedded"]
    (own,) = read_runs([run("dev", system={"models": models}, one=EXACT)])[1]
    assert own.manifests == {str(tmp_path / "model"): manifest}
    assert own.system == {"models": models}


def test_a_folder_that_was_not_evaluated_into_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match=rf"^{folder}: no results.json.*an output folder of recipes/evaluate.py"):
            read_runs([folder])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "cannot be read"),
        ("", "cannot be read"),
        ("[]", "expected a list with an entry"),
        ('{"name": "one"}', "expected a list with an entry"),
        ("[1]", "expected a list with an entry"),
    ],
)
def test_damaged_results_are_told(content, message, run):
    folder = run("dev", one=EXACT)
    (folder / "results.json").write_text(content, "utf-8")
    with pytest.raises(InputError, match=rf"results\.json.*{message}.*evaluate it again"):
        read_runs([folder])


def test_results_that_are_not_utf8_are_told(run):
    folder = run("dev", one=EXACT)
    (folder / "results.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read"):
        read_runs([folder])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("predictions", None, "entry 2: predictions is None; expected str"),
        ("name", 3, "entry 2: name is 3; expected str"),
        ("seconds", "long", "entry 2: seconds is 'long'; expected int or float or null"),
        ("system", "embedded", "entry 2: system is 'embedded'; expected dict or null"),
    ],
)
def test_a_wrong_value_of_the_results_is_told(key, value, message, run):
    folder = run("dev", one=EXACT)
    rows = results_in(folder)
    rows[1][key] = value
    (folder / "results.json").write_text(json.dumps(rows), "utf-8")
    with pytest.raises(InputError, match=message):
        read_runs([folder])


def test_a_missing_key_of_the_results_is_told(run):
    folder = run("dev", one=EXACT)
    rows = results_in(folder)
    del rows[0]["disk_bytes"]
    (folder / "results.json").write_text(json.dumps(rows), "utf-8")
    with pytest.raises(InputError, match="entry 1: no disk_bytes; expected int or float or null"):
        read_runs([folder])


def test_missing_predictions_are_told(run):
    folder = run("dev", one=EXACT)
    (folder / "predictions-one.csv").unlink()
    with pytest.raises(InputError, match=r"predictions-one\.csv: not there, but .*results\.json names it for one"):
        read_runs([folder])


def test_predictions_of_other_rows_are_told(run):
    folder = run("dev", one=EXACT)
    (folder / "predictions-one.csv").write_text("fname,summary\na,x\nz,x", "utf-8")
    with pytest.raises(
        InputError, match=r"predictions-one\.csv: its ids do not match .*1 missing \(b\).*1 unknown \(z\)"
    ):
        read_runs([folder])


def test_missing_dialogues_are_told(run):
    folder = run("dev", one=EXACT)
    (folder / "dialogues.jsonl").unlink()
    with pytest.raises(InputError, match=r"dialogues\.jsonl: not there; expected the dialogues"):
        read_runs([folder])


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (RECORDS[:1], "row 2 is 'b' there and missing here"),
        ([RECORDS[1], RECORDS[0]], "row 1 is 'a' there and 'b' here"),
        ([RECORDS[0], Record("b", "Ann: no", ("red",))], r"row 2 \('b'\) has another text"),
        ([*RECORDS, Record("c", "Ann: no", ("red",))], "row 3 is missing there and 'c' here"),
    ],
)
def test_runs_on_other_dialogues_are_refused(others, message, run):
    first, second = run("first", one=EXACT), run("second", records=others, two=["x"] * len(others))
    counts = rf"^{second}: scored on other dialogues \({len(others)} rows\) than {first} \(2 rows\)"
    with pytest.raises(InputError, match=f"{counts}: {message}"):
        read_runs([first, second])


def test_the_same_run_twice_is_refused(run):
    folder = run("dev", one=EXACT)
    with pytest.raises(InputError, match="the same run twice"):
        read_runs([folder, folder / ".." / "dev"])
