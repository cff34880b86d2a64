"""Summaries -> a file, whole or not at all: a submission `fname,summary`, or one summary a line."""

import csv
import io
from pathlib import Path
from typing import IO

from alignment.formats import write_text
from alignment.run import say

Destination = str | Path | IO[str]


def write_submission(ids: list[str], summaries: list[str], destination: Destination) -> None:
    """Writes the CSV `fname,summary`, a row for each id in the given order."""
    rows = [(name, one_line(text)) for name, text in zip(ids, summaries, strict=True)]
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([("fname", "summary"), *rows])
    _write(table.getvalue(), destination)


def fill_empty(dialogues: list[str], summaries: list[str]) -> list[str]:
    """The summaries, with a dialogue's first turn for an empty one: it would have the whole submission refused."""
    for i, summary in enumerate(summaries, 1):
        if not one_line(summary):
            say(f"Dialogue {i}: the model wrote nothing; its first turn stands in.")
    pairs = zip(dialogues, summaries, strict=True)
    return [summary if one_line(summary) else text.partition("\n")[0] for text, summary in pairs]


def write_lines(summaries: list[str], destination: Destination) -> None:
    """Writes one summary a line."""
    _write("".join(f"{one_line(summary)}\n" for summary in summaries), destination)


def one_line(text: str) -> str:
    """The text with its lines joined by spaces."""
    return " ".join(filter(None, map(str.strip, text.splitlines())))


def _write(text: str, destination: Destination) -> None:
    if isinstance(destination, (str, Path)):
        Path(destination).parent.mkdir(parents=True, exist_ok=True)
        write_text(text, Path(destination))
    else:
        destination.write(text)
        destination.flush()  # a reader who has left is told of here, and not when Python ends
