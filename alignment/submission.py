"""Summaries by id -> a submission file, `fname,summary`."""

import csv
import os
from pathlib import Path
from typing import IO

from alignment.errors import InputError


def write_submission(
    ids: list[str], summaries: list[str], path: str | Path | IO[str], allow_empty: bool = False
) -> None:
    """Writes the CSV `fname,summary`, a row for each id in the given order; into a file whole or not at all.

    Raises:
        InputError: the lengths differ, or a summary is empty (which only a submission minds).
    """
    if len(ids) != len(summaries):
        raise InputError(f"{len(ids)} ids but {len(summaries)} summaries; a submission has one summary for each id")
    rows = [(name, one_line(text)) for name, text in zip(ids, summaries, strict=True)]
    if not allow_empty and (empty := [name for name, text in rows if not text]):
        raise InputError(f"{len(empty)} empty summaries, the first for {empty[0]!r}; a submission has none")
    if not isinstance(path, (str, Path)):
        csv.writer(path, lineterminator="\n").writerows([("fname", "summary"), *rows])
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")  # several processes may write the same file
    with temporary.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("fname", "summary"), *rows])
    os.replace(temporary, path)


def one_line(text: str) -> str:
    """The text with its lines joined by spaces."""
    return " ".join(filter(None, map(str.strip, text.splitlines())))
