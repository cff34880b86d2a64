"""Folders of recipes/evaluate.py read back: the dialogues that all of them share, and the systems with summaries."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.data import fingerprint, load_records, match_predictions, read_predictions
from alignment.errors import InputError
from alignment.formats import listed
from alignment.records import Record
from alignment.run import read_manifest

RESULTS, DIALOGUES = "results.json", "dialogues.jsonl"
COSTS = ("parameters", "trained_parameters", "seconds", "peak_memory_gib", "disk_bytes")


@dataclass(frozen=True)
class Entry:
    """One evaluated system.

    Attributes:
        name: Unlike that of any other entry.
        run: The folder that it was evaluated into.
        costs: By the names of COSTS; None where it is not known.
        system: How the summaries were made, or None for a predictions file.
        manifests: Of the models that made them, by path, as far as they are still there.
    """

    name: str
    run: Path
    summaries: list[str]
    costs: dict[str, float | None]
    system: dict[str, Any] | None
    manifests: dict[str, dict[str, Any]]


def read_runs(folders: list[Path]) -> tuple[list[Record], list[Entry]]:
    """Reads what recipes/evaluate.py wrote into these folders: the dialogues that all of them share, and the systems.

    Raises:
        InputError: A folder is none of its outputs, is given twice, or lacks a file; or two have other dialogues.
    """
    if twice := [str(folder) for folder, n in Counter(map(Path.resolve, folders)).items() if n > 1]:
        raise InputError(f"{listed(twice)}: the same run twice; name each once")
    records: list[Record] = []
    found: list[tuple[Path, dict[str, Any], list[str]]] = []
    for folder in folders:
        systems = _read_results(folder / RESULTS)
        own = _read_dialogues(folder / DIALOGUES)
        records = records or own
        _check_same(folders[0], records, folder, own)
        for row in systems:
            path = folder / row["predictions"]
            if not path.is_file():
                raise InputError(f"{path}: not there, but {folder / RESULTS} names it for {row['name']}; {_AGAIN}")
            found.append((folder, row, match_predictions(read_predictions(path), records, str(path))))
    names = _unique_names([(folder, row["name"]) for folder, row, _ in found])
    return records, [_entry(name, *one) for name, one in zip(names, found, strict=True)]


_AGAIN = "evaluate it again into another folder"


def _read_results(path: Path) -> list[dict[str, Any]]:
    """The first of the lines of each system: they differ by profile alone."""
    if not path.is_file():
        raise InputError(f"{path.parent}: no {path.name} there; expected an output folder of recipes/evaluate.py")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # what is not UTF-8 is a ValueError too
        raise InputError(f"{path}: cannot be read ({error}); {_AGAIN}") from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: expected a list with an entry for each system and profile; {_AGAIN}")
    for number, row in enumerate(rows, 1):
        kinds: dict[str, tuple[type, ...]] = {"name": (str,), "predictions": (str,), "system": (dict, type(None))}
        kinds |= dict.fromkeys(COSTS, (int, float, type(None)))
        for key, kind in kinds.items():
            if key not in row or not isinstance(row[key], kind):
                value = f"{key} is {row[key]!r:.60}" if key in row else f"no {key}"
                wanted = " or ".join(one.__name__.replace("NoneType", "null") for one in kind)
                raise InputError(f"{path}: entry {number}: {value}; expected {wanted}; {_AGAIN}")
    return list({row["name"]: row for row in reversed(rows)}.values())[::-1]


def _read_dialogues(path: Path) -> list[Record]:
    if not path.is_file():
        raise InputError(f"{path}: not there; expected the dialogues that the systems were scored on; {_AGAIN}")
    return load_records(path, split="eval", need_references=True)[0]


def _check_same(first: Path, records: list[Record], folder: Path, own: list[Record]) -> None:
    if fingerprint(records) == fingerprint(own):
        return
    at = next((i for i, (a, b) in enumerate(zip(records, own, strict=False)) if a != b), min(len(records), len(own)))
    rows = [repr(side[at].id) if at < len(side) else "missing" for side in (records, own)]
    where = f"({rows[0]}) has another text" if rows[0] == rows[1] else f"is {rows[0]} there and {rows[1]} here"
    raise InputError(
        f"{folder}: scored on other dialogues ({len(own)} rows) than {first} ({len(records)} rows): row {at + 1} "
        f"{where}; expected runs on the same data, so evaluate both on one file"
    )


def _unique_names(systems: list[tuple[Path, str]]) -> list[str]:
    """Their own names; where two clash, with as much of their folders' paths before them as tells them apart."""
    names = [name for _, name in systems]
    parts = [folder.resolve().parts for folder, _ in systems]
    for depth in range(1, max(map(len, parts)) + 1):
        count = Counter(names)
        if max(count.values()) == 1:
            break
        names = [
            f"{'/'.join(own[-depth:])}/{system}" if count[name] > 1 else name
            for name, own, (_, system) in zip(names, parts, systems, strict=True)
        ]
    return names


def _entry(name: str, folder: Path, row: dict[str, Any], summaries: list[str]) -> Entry:
    models = (row["system"] or {}).get("models", [])
    manifests = {str(path): manifest for path in models if (manifest := read_manifest(path))}
    return Entry(name, folder, summaries, {key: row[key] for key in COSTS}, row["system"], manifests)
