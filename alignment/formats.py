"""A file -> its rows: JSON, JSON lines or CSV, told apart by content, with faults told by line; and rows -> a file."""

import codecs
import contextlib
import csv
import io
import json
import os
import platform
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from alignment.errors import InputError

EXTENSIONS = (".csv", ".tsv", ".jsonl", ".json")
# An object, or a list of objects or texts; a chat log may well begin with [name] [time].
_JSON = re.compile(r'\{|\[\s*([{\]"]|$)')
_SOMETHING = re.compile(r"[^\s\ufeff]")  # each file of those that were joined may begin with its mark
_TURN = re.compile(r'\[|[^,:："]{1,40}[:：]')  # begins with a speaker, or as chats are exported
# No name of a column: a sentence's end, or its length.
_SENTENCE = re.compile(r".*([.?!…]|니다|[세네해어아예까]요)|.{41,}|.*\s.*\s.*\s.*")
_CHAT = re.compile(r"\W?(\[|\d[^:]*\d:\d\d.*[:：])")  # as messengers export: [time] name, or time - name: ...
# What a file that is no text begins with, and what is to be done.
_SIGNS = {
    b"PK\x03\x04": "it is an Excel workbook or a zip: save the sheet as CSV UTF-8, or unpack it",
    b"\xd0\xcf\x11\xe0": "it is an Excel, Word or Hangul document: save it as CSV UTF-8, or as text",
    b"%PDF": "it is a PDF: save its text as UTF-8",
    b"PAR1": "it is a Parquet file: save it as JSON lines (pandas: to_json, orient='records', lines=True)",
    b"\x1f\x8b": "it is compressed: unpack it with gunzip",
}


def listed(words: Iterable[str]) -> str:
    """Words as they stand in a message, twenty at most."""
    shown = [*words]
    return (", ".join(shown[:20]) or "nothing") + (f" and {len(shown) - 20} more" if len(shown) > 20 else "")


def read_text(path: Path) -> str:
    """The text of a file, with newlines as line ends and without a byte-order mark.

    Raises:
        InputError: The file cannot be read, is neither UTF-8 nor UTF-16 with its mark, or is empty.
    """
    try:
        raw = path.read_bytes()
        marked = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # as Excel's "Unicode text" is
        text = raw.decode("utf-16" if marked else "utf-8").removeprefix("\ufeff")
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        cure = next((cure for sign, cure in _SIGNS.items() if raw.startswith(sign)), "save it as UTF-8")
        if cure == "save it as UTF-8":
            with contextlib.suppress(UnicodeDecodeError):
                raw.decode("cp949")
                cure = "it looks like CP949: save it as UTF-8 (iconv -f CP949 -t UTF-8 does so)"
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; {cure}") from error
    if not text.strip():
        raise InputError(f"{path}: the file is empty")
    return text


def is_plain_text(path: Path, columns: set[str]) -> bool:
    """Whether a file holds bare dialogue: no JSON, and no table, whose first line names columns.

    Args:
        columns: Names by which a table is known. One without any is known by its ending, or by lines of as many fields
            between commas, or in quotes between tabs or semicolons; then it is asked which column is which.
    """
    text = read_text(path).lstrip()
    first_line, _, rest = text.rstrip().partition("\n")
    header = _names(first_line.split(delimiter := _delimiter(first_line)))
    if _JSON.match(first_line) or path.suffix.lower() in EXTENSIONS:
        return False
    if len(header) > 1 and re.search("[:：]", header[0]):  # such as `A: your name, id, and phone?`
        return True
    named = not columns.isdisjoint(name.strip(' "') for name in header)
    heading = named and len(header) == 1 and bool(_TURN.match(rest.lstrip()))  # above the turns of one dialogue
    if heading or (not named and all(_SENTENCE.fullmatch(name) for name in header)):
        return True
    sentence = not rest and re.search(r", |[.!?…]$", first_line)
    table = "," in first_line or (delimiter in first_line and f'{delimiter}"' in rest)  # or chats have tabs too
    if named or not table or sentence or _CHAT.match(first_line):
        return not named
    with contextlib.suppress(InputError):
        _csv_rows(path, text)
        return False
    turns = all(_TURN.match(line) for line in rest.splitlines() if line.strip())
    return turns or any(_SENTENCE.fullmatch(name) for name in header)  # else it is a table with a fault


def partial_of(path: Path) -> Path:
    """Where a file is written before it takes its name: beside it, for this process of this machine alone."""
    return path.with_name(f"{path.name}.{platform.node()}.{os.getpid()}.partial")


def write_text(text: str, path: Path, errors: str = "strict") -> None:
    """Writes text beside its place and renames it, so that a killed run never leaves half a file.

    Args:
        errors: What becomes of half a surrogate pair, as `open` takes it.
    """
    partial = partial_of(path)
    partial.write_text(text, encoding="utf-8", errors=errors, newline="\n")
    os.replace(partial, path)


def write_rows(rows: Iterable[dict[str, Any]], path: Path, keep: bool = False) -> None:
    """Writes one JSON object a line, the file whole or not at all.

    Args:
        keep: Other rows that are there already are not replaced.

    Raises:
        InputError: There are such rows.
    """
    text = json_lines(rows)
    if keep and path.exists() and path.read_bytes() != text.encode():
        raise InputError(
            f"{path}: a model was trained on what it holds, and now it would be other rows, by other settings or by "
            "another version of Yoyak. Choose another --output_dir, or add --overwrite_output_dir true."
        )
    write_text(text, path)


def json_lines(rows: Iterable[dict[str, Any]]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def file_rows(path: Path) -> list[Any]:
    """Reads a file as JSON, JSON lines or CSV, whichever its first character says."""
    text = read_text(path)
    return _json_rows(path, text) if _JSON.match(text.lstrip()) else _csv_rows(path, text)


def _json_rows(path: Path, text: str) -> list[Any]:
    # inside one JSON value, a line that opens a brace never follows a line that closes one: a comma would stand between
    is_json_lines = bool(re.match(r"\s*\{.*\}\s*\n\s*\{", text))
    # not splitlines(): it also splits at U+2028 and U+0085, which JSON strings may hold
    pieces = text.split("\n") if is_json_lines else [text]
    values: list[Any] = []
    for number, piece in enumerate(pieces, 1):
        try:
            values += _json_values(piece)
        except json.JSONDecodeError as error:
            place = f"line {number + error.lineno - 1}, column {error.colno}"
            raise InputError(f"{path}: broken JSON at {place}: {error.msg}; correct it there") from error
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets within brackets
            raise InputError(f"{path}: JSON that cannot be read: {error}") from error
    return [row for value in values for row in _rows_in(value, alone=len(values) == 1)]


def _json_values(text: str) -> Iterator[Any]:
    """One JSON value, or several lists and objects one after another, as `cat *.json` puts them."""
    end = 0
    while found := _SOMETHING.search(text, end):
        if end and found.group() not in "[{":
            raise json.JSONDecodeError("Extra data", text, found.start())
        value, end = json.JSONDecoder().raw_decode(text, found.start())
        yield value


def _rows_in(value: Any, alone: bool) -> list[Any]:
    """The rows of one JSON value: a list's, AI-Hub's data, the documents of a NIKL corpus, or itself.

    Args:
        alone: It is the whole file, whose data may be none and of any kind; elsewhere a list may be a row's own field.
    """
    if isinstance(value, list):
        return value
    for name, part in (("data", None if alone else "body"), ("document", "utterance")):
        rows = value.get(name) if isinstance(value, dict) else None
        if not isinstance(rows, list) or not (rows or alone):
            continue
        if all(isinstance(row, dict) and (not part or part in row) for row in rows):
            return rows
    return [value]


def _names(fields: list[str]) -> list[str]:
    """A header's names, composed (NFC): a Mac may write Hangul in letters, and --columns names it in syllables."""
    return [unicodedata.normalize("NFC", name.strip().strip("\ufeff ")) for name in fields]


def _delimiter(header: str) -> str:
    """Of comma, tab and semicolon that which the header has most of, or the first of these."""
    return max(",\t;", key=header.count)


def _csv_rows(path: Path, text: str) -> list[Any]:
    csv.field_size_limit(sys.maxsize)  # by default a field of an hour's meeting is taken for an open quote
    first_line = text.lstrip().partition("\n")[0]
    delimiter = _delimiter(first_line)
    spaced = f"{delimiter} " in first_line  # quotes come after the blank then
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=spaced, strict=True)
    lines, start = [], 1
    try:
        for fields in reader:
            if fields:  # an empty line is no row
                lines.append((start, fields))
            start = reader.line_num + 1
    except csv.Error as error:
        place = f"in the row that starts at line {start} (noticed at line {reader.line_num})"
        cure = 'close every quote, and write a quote inside a field as ""'
        raise InputError(f"{path}: broken CSV {place}: {error}; {cure}") from error
    while lines[1:] and not any(map(str.strip, lines[-1][1])):  # what a spreadsheet leaves below its rows
        lines.pop()
    header = _names(lines[0][1])
    if repeated := sorted({name for name in header if name and header.count(name) > 1}):
        raise InputError(f"{path}: the header names {listed(repeated)} more than once; rename all but one")
    for start, fields in lines[1:]:
        if _names(fields[:1]) == header[:1] and _names(fields) == header:  # files that were put one after the other
            raise InputError(f"{path}: line {start}: the header comes again; delete that line")
        if len(fields) != len(header):
            cure = "put text with commas or line breaks in double quotes"
            raise InputError(f"{path}: line {start}: {len(fields)} fields, but the header has {len(header)}; {cure}")
        unnamed = [text for name, text in zip(header[1:], fields[1:], strict=True) if not name and text.strip()]
        if unnamed:
            cure = "name it, or put text with commas in double quotes"
            raise InputError(f"{path}: line {start}: {unnamed[0]!r:.40} in a column without a name; {cure}")
    rows = (zip(header, fields, strict=True) for _, fields in lines[1:])
    return [{name: value for name, value in row if name} for row in rows]  # but for the first one: row numbers
