"""Files, folders and Hub data sets of dialogues, read into checked records; what was dropped, and why.

A file's family is told by its content, never by its ending. A fault of the whole file (encoding, syntax, a missing
column) always stops the reading; a fault of one row stops it too, unless bad_rows is "skip".
"""

import difflib
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from alignment.errors import InputError
from alignment.formats import EXTENSIONS, file_rows, json_lines, listed, write_rows, write_text
from alignment.hub import HUB_HELD_OUT, hub_rows, hub_splits
from alignment.records import KEYS, SPEAKERS, Record, clean, flat, identity, pick, record_of
from alignment.run import is_main_process, say
from alignment.turns import check_turns

EMBEDDED = {f"embedded-{language}": Path(__file__).parent / "dialogues" / language for language in ("ko", "en")}
HELD_OUT = ("eval", "dev", "validation", "valid", "val")  # a test file is not for choosing a checkpoint
SPLIT_STEMS = {"train": ("train",), "held_out": HELD_OUT, "eval": (*HELD_OUT, "test")}


@dataclass(frozen=True)
class Rejected:
    """One row left out: its 1-based number in the file (a CSV header is not counted), its fault, itself as JSON."""

    path: str
    row: int
    fault: str
    content: str


def load_records(
    path: str | Path,
    *,
    split: str = "train",
    need_references: bool = False,
    bad_rows: str = "error",
    columns: dict[str, str] | None = None,
    max_rows: int | None = None,
) -> tuple[list[Record], list[Rejected]]:
    """Reads a file, a folder's split, an embedded set or a Hub data set, up to `max_rows` good rows.

    Where nothing in the rows could be an id, they get their numbers, from 1, and the user is told so.

    Raises:
        InputError: the data cannot be read, no row is good, or one is bad and `bad_rows` is "error".
    """
    columns = columns or {}
    if bad_rows not in ("error", "skip"):
        raise InputError(f"bad_rows is {bad_rows!r}; expected error or skip")
    if unknown := [field for field in columns if field not in KEYS]:
        raise InputError(f"columns names {listed(unknown)}; the fields of a record are {listed(KEYS)}")
    keys = _keys(columns)
    needed = {"id", "dialogue", *(columns.keys() - {"references"}), *(["references"] if need_references else [])}
    source, rows = _find_rows(path, split, keys, needed)

    records: list[Record] = []
    rejected: list[Rejected] = []
    first: dict[str, tuple[int, str]] = {}  # by id, its row and dialogue
    other_turns = 0  # rows of an id that is there already, with another dialogue
    for number, row in enumerate(rows, 1):
        if len(records) == max_rows:
            break
        try:
            record = record_of(pick(row, keys), need_references)
            if record.id in first:
                other_turns += record.dialogue != first[record.id][1]
                raise InputError(f"duplicate id {record.id!r}, first used by row {first[record.id][0]}")
        except InputError as fault:
            content = json.dumps(row, ensure_ascii=False, default=str)
            rejected.append(Rejected(source, number, str(fault), content))
        else:
            first[record.id] = number, record.dialogue
            records.append(record)

    if other_turns * 2 > (read := len(records) + len(rejected)):
        raise InputError(
            f"{source}: {other_turns} of {read} rows have an id that is there already, with another dialogue. "
            f"{_ROW_A_TURN}"
        )
    if rejected and (bad_rows == "error" or not records):
        shown = [f"  row {bad.row}: {bad.fault}" for bad in rejected[:10]]
        more = [f"  and {len(rejected) - 10} more"] if len(rejected) > 10 else []
        cure = "Correct them, or go on without them: --bad_rows skip" if bad_rows == "error" else "No good row is left"
        raise InputError("\n".join([f"{source}: {len(rejected)} bad of {len(rows)} rows", *shown, *more, cure]))
    check_turns(source, [record.dialogue for record in records])
    return records, rejected


_ROW_A_TURN = "It looks like one row a turn: put the turns of each dialogue into one row, one turn a line."


def find_split(path: str | Path, split: str) -> Path | None:
    """The file that holds a split; None where a folder lacks it, for a Hub name, and for the eval split of one file.

    Raises:
        InputError: nothing is there, or two files of the folder could be meant.
    """
    place = place_of(path)
    if place.is_file():
        return place if split == "train" else None
    if _is_hub_name(path):
        return None
    if place.exists() and not place.is_dir():  # a pipe, which is read but once
        raise InputError(f"{path}: not a regular file; write what it gives to one")
    if not place.is_dir():
        if place.is_symlink():
            raise InputError(f"{path}: a link to {place.readlink()}, which is not there")
        siblings = [file.name for file in place.parent.iterdir()] if place.parent.is_dir() else []
        close = difflib.get_close_matches(place.name, siblings, n=1)
        expected = f"expected a file, a folder, {listed(EMBEDDED)} or a Hub data set as owner/name"
        raise InputError(f"{path}: no such file; {f'did you mean {place.parent / close[0]}?' if close else expected}")
    for stem in SPLIT_STEMS[split]:
        found = [file for extension in EXTENSIONS if (file := place / f"{stem}{extension}").is_file()]
        if len(found) > 1:
            raise InputError(f"{place} holds {listed(file.name for file in found)}; keep one, or give its path")
        if found:
            return found[0]
    return None


def write_rejected(rejected: list[Rejected], path: str | Path) -> None:
    """Writes the rows left out, one JSON object a line: path, row, fault, content; and says so. None: no such file."""
    if not is_main_process():
        return
    if not rejected:
        Path(path).unlink(missing_ok=True)  # of an earlier run
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    # backslashreplace: a lone surrogate is a fault that lands here, and its escape is valid JSON
    write_text(json_lines(map(asdict, rejected)), Path(path), errors="backslashreplace")
    say(f"{len(rejected)} bad rows were left out: {path}.")


def write_records(records: list[Record], path: Path) -> None:
    """Writes records as JSON lines that `load_records` reads."""
    if is_main_process():
        write_rows((asdict(record) for record in records), path)


def read_predictions(path: str | Path) -> dict[str, str]:
    """Reads summaries by id from `fname,summary` (or `id`) in CSV, JSON or JSON lines; a summary may be empty.

    Raises:
        InputError: the file cannot be read, a key is missing, an id comes twice, or a summary is not a string.
    """
    keys = {"id": KEYS["id"], "summary": ("summary", "요약", "요약문")}
    source, rows = _find_rows(path, "train", keys, {"id", "summary"})
    predictions: dict[str, str] = {}
    for number, row in enumerate(rows, 1):
        try:
            fields = pick(row, keys)
            name = identity(fields["id"])
            if name in predictions:
                raise InputError(f"duplicate id {name!r}")
            predictions[name] = clean("summary", fields["summary"])
        except InputError as fault:
            raise InputError(f"{source}: row {number}: {fault}") from None
    return predictions


def match_predictions(predictions: dict[str, str], records: list[Record], source: str) -> list[str]:
    """The predicted summaries in the records' order.

    Raises:
        InputError: An id of one side is not on the other.
    """
    missing = [record.id for record in records if record.id not in predictions]
    extra = sorted(predictions.keys() - {record.id for record in records})
    if missing or extra:
        faults = [
            f"{len(ids)} {what} ({listed(ids[:3])})" for ids, what in ((missing, "missing"), (extra, "unknown")) if ids
        ]
        raise InputError(
            f"{source}: its ids do not match the dialogues: {' and '.join(faults)}; give the file made for them"
        )
    return [predictions[record.id] for record in records]


def stamp(records: list[Record]) -> dict[str, Any]:
    """What a manifest says of records: how many, and their fingerprint."""
    return {"rows": len(records), "sha256": fingerprint(records)}


def fingerprint(records: Iterable[Record]) -> str:
    """SHA-256, in hex, of the records' content in their order."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps([record.id, record.dialogue, record.references, record.topic]).encode() + b"\n")
    return digest.hexdigest()


def column_names(columns: dict[str, str] | None) -> set[str]:
    """All names by which a column of a file is known, with the user's own."""
    return {name for names in _keys(columns).values() for name in names}


def _keys(columns: dict[str, str] | None) -> dict[str, tuple[str, ...]]:
    return KEYS | {field: (unicodedata.normalize("NFC", name),) for field, name in (columns or {}).items()}


def place_of(path: str | Path) -> Path:
    """Where an embedded name or a path lies, whether or not anything is there.

    Raises:
        InputError: It cannot be read: no permission, a name that is too long.
    """
    try:
        place = EMBEDDED.get(str(path)) or Path(path).expanduser()
        locked = place.is_dir() and not os.access(place, os.R_OK | os.X_OK)
    except (OSError, RuntimeError) as error:  # no permission further up, a name that is too long, ~nobody
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if locked:
        raise InputError(f"{path}: cannot be read: no permission to list the folder")
    return place


def _is_hub_name(path: str | Path) -> bool:
    """`owner/name`, unless something is there, or it reads as a mistyped file (its ending, or its folder exists)."""
    is_pair = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(path))
    return bool(is_pair) and Path(path).suffix not in EXTENSIONS and not Path(path).parent.is_dir()


def _find_rows(
    path: str | Path, split: str, keys: dict[str, tuple[str, ...]], needed: set[str]
) -> tuple[str, list[Any]]:
    """The source to name in messages, and its rows; a needed field that no row has is told once, not for each row."""
    place = place_of(path)
    file = find_split(path, split) or place  # one file is read whole, whichever split it stands for
    if file.is_dir():
        there, wanted = listed(sorted(entry.name for entry in file.iterdir())), listed(SPLIT_STEMS[split])
        expected = f"expected for {split} one of {wanted}, ending in {listed(EXTENSIONS)}"
        if len(list(file.glob("*.json"))) > 1:
            expected += f"; or join the files, `cat {file}/*.json > all.json`, and give that one"
        raise InputError(f"{file} holds {there}; {expected}")
    source, rows = (str(file), file_rows(file)) if file.is_file() else (str(path), hub_rows(str(path), split))
    if not rows:
        raise InputError(f"{source}: no rows; expected at least one")
    named = [flat(row) for row in rows if isinstance(row, dict)]
    known = {name for row in named for name in row}
    others = {name for field, names in keys.items() if field != "id" for name in names}
    others |= {name for name in known if re.fullmatch(r"(summary|topic)\d+", name)}
    is_without_ids = keys["id"] == KEYS["id"] and known.isdisjoint(keys["id"])
    is_numbered = is_without_ids and bool(known) and not any(_could_be_id(named, name) for name in known - others)
    if is_numbered:
        known.add(keys["id"][0])
    missing = [field for field, names in keys.items() if field in needed and known.isdisjoint(names)]
    if missing and known:
        present = dict.fromkeys(str(name) for row in rows if isinstance(row, dict) for name in row)
        samples = {"id": "no", "dialogue": "text", "references": "abstract", "topic": "subject"}
        ids = (name for name in present if name in known - others - {*samples.values()} and _could_be_id(named, name))
        samples["id"] = next(ids, "no")
        raise InputError(
            f"{source}: no column or key {listed(_told(keys[field]) for field in missing)}; "
            f"there are {listed(present)}; {_cure(keys, missing, samples)}"
        )
    if is_numbered:
        said = [row[name] for row in named for name in keys.get("dialogue", ()) if name in row]
        if said and not known.isdisjoint(SPEAKERS) and all(isinstance(text, str) and "\n" not in text for text in said):
            raise InputError(
                f"{source}: a column of speakers, and no line break in any dialogue. {_ROW_A_TURN} Where each row is a "
                "whole dialogue, add a column id."
            )
        _say_once(f"{source}: no {_told(keys['id'])}, so the rows are numbered from 1.")
        rows = [{keys["id"][0]: number} | row if isinstance(row, dict) else row for number, row in enumerate(rows, 1)]
    return source, rows


@cache
def _say_once(message: str) -> None:  # a recipe reads a file for several purposes
    say(message)


def _told(names: tuple[str, ...]) -> str:
    """The names of a field as messages tell them: the English ones, or the user's own."""
    return " or ".join([name for name in names if name.isascii()] or names)


def _could_be_id(rows: list[dict[str, Any]], name: str) -> bool:
    """Whether a column of an unknown name has a short value of its own in each row."""
    values = {value for row in rows if isinstance(value := row.get(name), str | int) and value != ""}
    return len(values) == len(rows) and all(len(str(value)) <= 64 and "\n" not in str(value) for value in values)


def _cure(keys: dict[str, tuple[str, ...]], missing: list[str], samples: dict[str, str]) -> str:
    """What is to be done where these fields have no column.

    Args:
        samples: Names of columns for the example, by field; it keeps those that the user has given.
    """
    cure = "rename the ones that are meant"
    if "dialogue" in keys:
        given = {field: names[0] for field, names in keys.items() if names != KEYS[field]}
        columns = {
            field: samples[field] if field in missing else given[field]
            for field in samples
            if field in {*missing, *given}
        }
        example = json.dumps(columns, ensure_ascii=False)
        cure = f"say which of these holds which field, for example --columns '{example}'"
        if missing == ["references"]:
            cure = f"training and scoring need summaries: say what holds them, --columns '{example}'"
            cure += ", or have them written by recipes/summarize.py"
    if "id" in missing:
        cure += f", or add a column {_told(keys['id']).split()[-1]}"
    return cure


def hub_holds_out(path: str | Path) -> bool:
    """Whether this is a Hub data set with a split to hold out.

    Raises:
        InputError: It is not loaded.
    """
    return _is_hub_name(path) and any(split in HUB_HELD_OUT for split in hub_splits(str(path)))
