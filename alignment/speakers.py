"""Speakers by tag or name: the particles that fit them, names as tags, and a dialogue with two of them exchanged."""

import functools
import re
from dataclasses import dataclass, replace

from alignment.dialogue import language
from alignment.records import Record

MASK = re.compile(r"#[A-Za-z]\w*#", re.ASCII)

# A particle after a tag, by whether the tag's last sound is a consonant or a vowel.
_PARTICLES = {
    "은": "는", "이": "가", "을": "를", "과": "와", "으로": "로", "이랑": "랑", "이나": "나", "이라고": "라고",
}  # fmt: skip
_AFTER_VOWEL = {vowel: consonant for consonant, vowel in _PARTICLES.items()}
# The final consonant of what ends so: 영, 일, 삼, 육, 칠, 팔; of names, Daniel is 다니엘 and Tom 톰, but Smith 스미스.
_FINAL_OF_DIGIT = dict(zip("013678", "ㅇㄹㅁㄱㄹㄹ", strict=True))
_FINAL_OF_LETTER = dict(zip("lmn", "ㄹㅁㄴ", strict=True)) | dict.fromkeys("adefhijorsuvwxyz", "")
# A lone 이 or 가 must not go on: #Person1#이다 is a copula, and right after any tag.
_AFTER_TAG = "|".join(
    rf"{particle}(?![가-힣])" if particle in "이가" else particle for particle in (*_PARTICLES, *_AFTER_VOWEL)
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
    """The form of a particle that fits the last sound of a tag or name: `은` after #Person1#, `는` after #Person2#."""
    last = tag.strip("#")[-1]
    if "가" <= last <= "힣":
        final = " ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ"[(ord(last) - ord("가")) % 28].strip()
    elif last.isdigit():
        final = _FINAL_OF_DIGIT.get(last, "")
    elif tag.startswith("#") or (len(tag) > 1 and last.lower() not in _FINAL_OF_LETTER):
        return particle  # Jack ends in a consonant, and Mark (마크) does not
    else:  # a lone letter is read by its name: 비, 엘, 알
        final = "ㄹ" if tag in ("R", "r") else _FINAL_OF_LETTER.get(last.lower(), "")
    if particle in ("으로", "로"):  # after ㄹ it is 로 as after a vowel
        return "로" if final in ("", "ㄹ") else "으로"
    return _AFTER_VOWEL.get(particle, particle) if final else _PARTICLES.get(particle, particle)


# What may follow a name of Hangul, for it not to be the beginning of a longer word.
_NAME_ENDS = (
    r"(?=(?:님|씨)?(?:(?:께서|에게서?|한테서?|으?로(?:서|부터)?|이?랑|과|와|보다|처럼|까지|부터|에)?(?:은|는|도|만|의)?"
    r"|이|가|을|를|이?나|이?라[고는며]|이[고며다]|인|입니다|아|야)(?!\w))"
)


@dataclass(frozen=True)
class Naming:
    """The speakers of a dialogue whose turns begin with names (`고객: ...`) instead of tags."""

    names: tuple[str, ...]

    @classmethod
    @functools.lru_cache(maxsize=1024)  # many summaries are of one dialogue
    def of(cls, dialogue: str) -> "Naming":
        """The names before the turns, in order; none where turns begin with tags, or one alone speaks."""
        found = [] if _TURN.search(dialogue) else list(dict.fromkeys(_names(dialogue)))
        names = tuple(name for name in found if _is_name(name, dialogue))
        return cls(names if len(names) > 1 else ())

    def tag(self, text: str) -> str:
        """The text with #Speaker1# and so on for each name, and its particles as they are."""
        if not self.names:
            return text
        tags = {name: f"#Speaker{number}#" for number, name in enumerate(self.names, 1)}
        return _pattern_of(self.names).sub(lambda match: tags[match.group(1)] + (match.group(2) or ""), text)

    def swap(self, text: str, one: str, other: str) -> str:
        """The text, with names, of two speakers exchanged, who are given by their tags."""
        if not self.names:
            return swap_speakers(text, one, other)
        first, second = (self.names[int(tag.strip("#").removeprefix("Speaker")) - 1] for tag in (one, other))

        def exchanged(match: re.Match[str]) -> str:
            if match.group(1) not in (first, second):
                return match.group()
            name = second if match.group(1) == first else first
            return name + fitting_particle(name, match.group(2) or "")

        return _pattern_of(self.names).sub(exchanged, text)

    def tag_record(self, record: Record) -> Record:
        """The record with tags for names in its dialogue and references."""
        references = tuple(map(self.tag, record.references))
        return replace(record, dialogue=self.tag(record.dialogue), references=references) if self.names else record


def _is_name(name: str, dialogue: str) -> bool:
    """Whether a name is told from words: not 수 or 나, no article or will and may of English, and no time or number."""
    if language(dialogue) == "ko":
        return bool(re.search("[가-힣]{2}|[A-Za-z]", name))
    is_word = re.search(rf"\b{re.escape(name.lower())}\b", dialogue)
    return len(name) > 1 and bool(re.search(r"[^\W\d_]", name)) and not is_word


@functools.lru_cache(maxsize=1024)
def _pattern_of(names: tuple[str, ...]) -> re.Pattern[str]:
    """Matches a name (first group), and the particle after it if there is one (second)."""
    longest_first = sorted(names, key=len, reverse=True)
    is_short = {name: len(name) == 1 or bool(re.search("[가-힣]$", name)) for name in names}  # A형 and A/S are words
    ends = {name: _NAME_ENDS if is_short[name] else "(?![A-Za-z0-9_])" for name in names}
    either = "|".join(re.escape(name) + ends[name] for name in longest_first)
    return re.compile(rf"(?<![\w#/])({either})(?!/)({_AFTER_TAG})?")


# [00:12], where transcripts have it in front of a turn.
_TIME = r"(?:[\[(]?\d{1,2}:\d\d(?::\d\d)?(?:[\])][^\S\n]*|[^\S\n]+))?"
_TURN = re.compile(rf"^[^\S\n]*{_TIME}({MASK.pattern})[^\S\n]*[:：]", re.ASCII | re.MULTILINE)


def turns_of(dialogue: str) -> dict[str, list[str]]:
    """What stands behind each speaker tag, turn by turn; speakers in order of their first, none without a tag."""
    _, *parts = _TURN.split(dialogue)
    turns: dict[str, list[str]] = {}
    for tag, text in zip(parts[::2], parts[1::2], strict=True):
        turns.setdefault(tag, []).append(text.strip())
    return turns


def names_in(dialogue: str) -> set[str]:
    """Who speaks in a dialogue: tags or names before a colon, at the beginning of a line or after a time there."""
    return set(_names(dialogue))


def _names(dialogue: str) -> list[str]:
    return [line.group(1).strip() for line in re.finditer(rf"^{_TIME}([^:：\n]+)[:：](?!//)", dialogue, re.MULTILINE)]


def two_speakers(record: Record) -> list[str]:
    """The tags of two speakers of the dialogue, those first that its first reference names; or fewer."""
    speakers = turns_of(record.dialogue)
    named = MASK.findall(record.references[0]) if record.references else []
    return [tag for tag in dict.fromkeys([*named, *speakers]) if tag in speakers][:2]


def mirror_image(record: Record) -> Record | None:
    """The record with two speakers exchanged throughout, dialogue and references; None without two speakers."""
    naming = Naming.of(record.dialogue)
    tagged = naming.tag_record(record)
    tags = two_speakers(tagged)
    if len(tags) < 2:
        return None
    exchanged = [naming.swap(text, *tags) for text in (record.dialogue, *record.references)]
    return replace(record, dialogue=exchanged[0], references=tuple(exchanged[1:]))
