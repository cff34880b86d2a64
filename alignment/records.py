"""One row of any family -> a checked record: where its fields are looked for, and what is a fault of it alone."""

import ast
import contextlib
import json
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

from alignment.errors import InputError

# As Python, pandas, a database, a spreadsheet or a person writes it.
_NOTHING = re.compile(
    r"nan|nat|none|null|n/?a|<na>|\\n|[-\u2010-\u2015\u2212]+|없음|#(name\?|n/a|ref!|value!)", re.IGNORECASE
)
_NO_LETTER = re.compile("[\u200b\u2060\ufeff]|_x000D_(?=\n|\\Z)")  # blanks without width, and Excel's carriage return
_OBJECTS = re.compile(r"\[?\{\s*(['\"])\w+\1\s*:.*\}\s*\]?", re.DOTALL)  # as JSON, Python or numpy writes them
# Where each field of a record is looked for, first match first; `columns` puts the user's own name in their place.
KEYS = {
    "id": ("fname", "id", "번호", "아이디"),
    "dialogue": ("dialogue", "대화", "대화문", "대화내용"),
    "references": ("references", "summaries", "summary", "요약", "요약문"),
    "topic": ("topic", "topic1", "주제"),
}
# Of a turn.
SPEAKERS = ("speaker", "participantID", "role", "speaker_id", "화자")
UTTERANCES = ("utterance", "text", "content", "form", "발화")


@dataclass(frozen=True)
class Record:
    """One dialogue, a turn a line, with none, one or several reference summaries."""

    id: str
    dialogue: str
    references: tuple[str, ...]
    topic: str = ""


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """One row of any family under the names of KEYS, its values unchecked."""
    if isinstance(row.get("body"), dict):  # AI-Hub
        info = _within(row, "header", "dialogueInfo")
        return row["body"] | {"id": _within(info, "dialogueID"), "topic": _within(info, "topic")}
    if isinstance(talk := row.get("input"), dict):  # NIKL
        topic = talk.get("subject_keyword")
        return row | {"dialogue": talk.get("conversation"), "summary": row.get("output"), "topic": topic}
    if isinstance(row.get("utterance"), list):  # a document of NIKL's corpora
        topic = _within(row, "metadata", "topic")
        return {"dialogue": row["utterance"], "topic": topic if isinstance(topic, str) else None} | row
    numbered = sorted((name for name in row if re.fullmatch(r"summary\d+", name)), key=lambda name: int(name[7:]))
    if numbered:  # several references, one a column
        several = [row[name] for name in ("summary", *numbered) if row.get(name) is not None]
        return {"references": several} | row
    return row


def _within(value: Any, *names: str) -> Any:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def pick(row: Any, keys: dict[str, tuple[str, ...]]) -> dict[str, Any]:
    """One row's value for each field, None where it has none."""
    if not isinstance(row, dict):
        raise InputError(f"{row!r:.60} is not an object with named values")
    named = flat(row)
    return {
        key: next((named[name] for name in names if _is_there(named.get(name))), None) for key, names in keys.items()
    }


def _is_there(value: Any) -> bool:
    return value is not None and value == value  # NaN, which pandas writes for nothing, is not


def record_of(fields: dict[str, Any], need_references: bool) -> Record:
    """Checks one row; an InputError here is a fault of this row only."""
    name, dialogue = identity(fields["id"]), fields["dialogue"]
    if isinstance(dialogue, list):
        dialogue = "\n".join(filter(None, (_turn(number, turn) for number, turn in enumerate(dialogue, 1))))
    dialogue = re.sub(r"\n{2,}", "\n", clean("dialogue", dialogue))  # a blank line is no turn
    if not dialogue or _NOTHING.fullmatch(dialogue):
        raise InputError("empty dialogue")
    references = tuple(filter(None, (clean("reference", text) for text in _several(fields["references"]))))
    references = tuple(text for text in references if not _NOTHING.fullmatch(text))
    for text in (dialogue, *(references if need_references else ())):
        if _is_written_out(text):
            kind = "an object" if text.startswith("{") else "a list"
            cure = "several references go in columns summary1, summary2, and turns in lines; or both in JSON lines"
            raise InputError(f"{text!r:.60} is {kind} written as text: {cure}")
    if need_references and not references:
        raise InputError("no reference summary")
    words = map(_as_text, _several(fields["topic"]))  # of which nothing here depends: what is no text is no fault
    topic = ", ".join(clean("topic", word) for word in words if isinstance(word, str))
    return Record(name, dialogue, references, topic)


def _is_written_out(text: str) -> bool:
    """Whether a text is a list or objects; a chat export may well begin with [name] and end with [laughs]."""
    if _OBJECTS.fullmatch(text):
        return True
    if text[:1] + text[-1:] in ("[]", "{}"):
        for read in (json.loads, ast.literal_eval):
            with contextlib.suppress(ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
                return isinstance(read(text), list | dict)
    return False


def _several(value: Any) -> list[Any]:
    return [one for one in (value if isinstance(value, list) else [value]) if _is_there(one)]


def _turn(number: int, turn: Any) -> str:
    """`speaker: utterance` on one line, since a line is a turn from here on; nothing where nothing was said."""
    if isinstance(turn, str):  # "고객: 안녕하세요"
        return clean(f"turn {number}", turn).replace("\n", " ")
    speaker = next((name for key in SPEAKERS if (name := _within(turn, key)) not in (None, "")), None)
    utterance = next((text for key in UTTERANCES if (text := _within(turn, key)) is not None), None)
    for found, names in ((speaker, SPEAKERS), (utterance, UTTERANCES)):
        if found is None:
            raise InputError(f"turn {number} has no {' or '.join(names)}: {turn!r:.60}")
    speaker = clean(f"speaker of turn {number}", _as_text(speaker))
    utterance = clean(f"utterance of turn {number}", utterance)
    return f"{speaker}: {utterance}".replace("\n", " ") if utterance else ""


def identity(value: Any) -> str:
    """An id as text, without what `clean` leaves out.

    Raises:
        InputError: It is neither text nor a whole number, or empty.
    """
    name = clean("id", _as_text(value))
    if not name:
        raise InputError("no id")
    return name


def _as_text(value: Any) -> Any:
    """A whole number as text; pandas makes 1.0 of 1 where one is missing."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:  # above, digits are lost already
        value = int(value)
    return str(value) if isinstance(value, int) else value


def clean(what: str, value: Any) -> str:
    """The text composed (NFC), with newlines as line ends, and without blanks at their ends or around the whole.

    Blanks without width, and what Excel writes for a carriage return, are left out.

    Raises:
        InputError: It is no text, or holds half of a surrogate pair.
    """
    if value is None:
        raise InputError(f"no {what}")
    if not isinstance(value, str):
        raise InputError(f"{what} is {value!r:.60}, not a string")
    if re.search("[\ud800-\udfff]", value):  # JSON can escape one alone; no tokenizer and no file takes it
        raise InputError(f"{what} is not valid Unicode: it has half of a surrogate pair")
    if what != "id":  # Hangul in letters (NFD), as out of a PDF, is neither told as Korean nor known to a tokenizer
        value = unicodedata.normalize("NFC", value)
    lines = _NO_LETTER.sub("", value.replace("\r\n", "\n").replace("\r", "\n")).split("\n")
    return "\n".join(line.rstrip() for line in lines).strip()
