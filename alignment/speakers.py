"""Speaker tags: the particles that fit them, and a dialogue with two of its speakers exchanged."""

import re
from dataclasses import replace

from alignment.data import Record

MASK = re.compile(r"#[A-Za-z]\w*#", re.ASCII)

# A particle after a tag, by whether the tag's last sound is a consonant or a vowel.
_PARTICLES = {
    "은": "는", "이": "가", "을": "를", "과": "와", "으로": "로", "이랑": "랑", "이나": "나", "이라고": "라고",
}  # fmt: skip
_AFTER_VOWEL = {vowel: consonant for consonant, vowel in _PARTICLES.items()}
_CONSONANT_DIGITS = "013678"  # 영, 일, 삼, 육, 칠, 팔 end in a consonant
# A lone 이 or 가 must not go on: #Person1#이다 is a copula, and right after any tag.
_AFTER_TAG = "|".join(
    rf"{particle}(?![가-힣])" if particle in "이가" else particle
    for particle in sorted([*_PARTICLES, *_AFTER_VOWEL], key=len, reverse=True)
)
_TAG_AND_PARTICLE = re.compile(rf"({MASK.pattern})({_AFTER_TAG})?", re.ASCII)


def swap_speakers(text: str, one: str, other: str) -> str:
    """The text with two speaker tags exchanged, and the particles after them made to fit (`은` and `는`)."""

    def exchanged(match: re.Match[str]) -> str:
        tag, particle = match.group(1), match.group(2) or ""
        if tag not in (one, other):
            return match.group()
        tag = other if tag == one else one
        return tag + fitting_particle(tag, particle)

    return _TAG_AND_PARTICLE.sub(exchanged, text)


def fitting_particle(tag: str, particle: str) -> str:
    """The form of a particle that fits the last sound of a tag: `은` after #Person1#, `는` after #Person2#."""
    last = tag.strip("#")[-1]
    if not last.isdigit():
        return particle
    consonant = last in _CONSONANT_DIGITS
    if particle in ("으로", "로"):  # after ㄹ (일, 칠, 팔) it is 로 as after a vowel
        return "으로" if consonant and last not in "178" else "로"
    return _AFTER_VOWEL.get(particle, particle) if consonant else _PARTICLES.get(particle, particle)


_TURN = re.compile(rf"^[^\S\n]*({MASK.pattern})[^\S\n]*[:：]", re.ASCII | re.MULTILINE)


def turns_of(dialogue: str) -> dict[str, list[str]]:
    """What stands behind each speaker tag, turn by turn; speakers in order of their first, none without a tag."""
    _, *parts = _TURN.split(dialogue)
    turns: dict[str, list[str]] = {}
    for tag, text in zip(parts[::2], parts[1::2], strict=True):
        turns.setdefault(tag, []).append(text.strip())
    return turns


def names_in(dialogue: str) -> set[str]:
    """Who speaks in a dialogue: what stands before a colon at the beginning of a line, tag or name."""
    return {line.group(1).strip() for line in re.finditer(r"^([^:：\n]+)[:：](?!//)", dialogue, re.MULTILINE)}


def two_speakers(record: Record) -> list[str]:
    """The tags of two speakers of the dialogue, those first that its first reference names; or fewer."""
    speakers = turns_of(record.dialogue)
    named = MASK.findall(record.references[0]) if record.references else []
    return [tag for tag in dict.fromkeys([*named, *speakers]) if tag in speakers][:2]


def mirror_image(record: Record) -> Record | None:
    """The record with two speakers exchanged throughout, dialogue and references; None without two tagged speakers."""
    tags = two_speakers(record)
    if len(tags) < 2:
        return None
    exchanged = [swap_speakers(text, *tags) for text in (record.dialogue, *record.references)]
    return replace(record, dialogue=exchanged[0], references=tuple(exchanged[1:]))
