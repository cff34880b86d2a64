"""Bare text -> dialogues, with blank lines or rules between them; what is laid out in another way is refused."""

import re
from pathlib import Path

from alignment.errors import InputError
from alignment.formats import read_text
from alignment.records import clean
from alignment.turns import KAKAOTALK, check_turns

_RULE = re.compile(r"^ *([-=*_] ?){3,}$", re.MULTILINE)
_NOTE = re.compile(r"[(\[<][^\n]{0,40}[)\]>]")  # (끝) and the like, alone between blank lines
_TURN = re.compile(r"(#\w+#|[^:：\n]{1,40})((?<!\d)[:：]|[:：](?!\d)).*")  # 화자1: is a speaker, and 3:30 a time
_SUBTITLE = re.compile(r"^(\d+:)?\d+:\d\d[.,]\d{3} --> ", re.MULTILINE)
_SPOKEN = re.compile(r"[^:：\n]{1,40} [\[(]?(\d+:)?\d+:\d\d[\])]?")  # 참석자 1 00:00, above what was said


def dialogues_in(path: Path) -> list[str]:
    """The dialogues of a file of bare text, a turn a line.

    Raises:
        InputError: There is none; or blank lines, headings, or dates and times stand where turns should.
    """
    text = clean("dialogue", read_text(path))
    blocks = [block.strip() for block in re.split(r"\n{2,}", _RULE.sub("", text))]
    blocks = [block for block in blocks if block and not _NOTE.fullmatch(block)]
    if not blocks:
        raise InputError(f"{path}: the file is empty")
    cure = "Write its turns as `이름: 말`, one a line, with a blank line between dialogues."
    if KAKAOTALK.match(text):
        raise InputError(f"{path}: what KakaoTalk exports has dates and times among the turns. {cure}")
    if _SUBTITLE.search(text) or sum(map(_is_spoken, blocks)) * 2 > len(blocks):
        raise InputError(f"{path}: what subtitles or speech recognition give has times among the turns. {cure}")
    check_turns(str(path), blocks)
    _check_blanks(path, blocks)
    return blocks


def _check_blanks(path: Path, blocks: list[str]) -> None:
    """Refuses blank lines within a dialogue: they stand between dialogues."""
    names = [match.group(1) for block in blocks if (match := _TURN.fullmatch(block))]
    if len(names) > len(blocks) / 2 and 1 < len(set(names)) < len(names):  # who speaks again speaks in a dialogue
        cure = "Take out the blank lines between turns: they stand between dialogues, which have one turn a line."
        raise InputError(f"{path}: most of its {len(blocks)} dialogues are a single turn. {cure}")
    turns = [sum(bool(_TURN.fullmatch(line)) for line in block.split("\n")) for block in blocks]
    if max(turns) > 1 and 0 in turns:
        block = blocks[turns.index(0)].replace("\n", " ")
        raise InputError(
            f"{path}: {block[:40]!r} has no turns (`이름: 말`), and other dialogues have. If it is a heading, or part "
            "of a dialogue, take out that line, or the blank line: blank lines stand between dialogues."
        )


def _is_spoken(block: str) -> bool:
    """Whether a block is a name with a time, and below it what was said."""
    first, _, rest = block.partition("\n")
    return bool(rest and _SPOKEN.fullmatch(first) and not _TURN.match(rest))
