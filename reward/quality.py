"""What ROUGE does not see: signals of a summary's quality, each a pure function of texts.

Four are gates, which a good summary passes whatever else it is: `unseen_tags`, `unseen_numbers`, `repeated_trigrams`
and `is_cut`. The others are matters of degree. Korean is read as morphemes, other text as words.

False alarms of the gates on 2,266 reference summaries of DialogSum in Korean: 0, 0.3, 0.3 and 0.1 percent; on 2,768 in
English: 0, 0.5, 2.6 and 0.7.
"""

import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

from alignment.dialogue import language
from alignment.speakers import MASK, names_in, swap_speakers
from reward.morphemes import Morpheme, morphemes
from reward.numerals import implied_numbers, numbers
from reward.sentences import sentences

_CLOSING = " \n\"'”’)]」』"

# --- what the dialogue does not hold ----------------------------------------------------------------------------------


def unseen_tags(dialogue: str, summary: str) -> int:
    """Speaker tags and masks (#Person3#, #Address#) that the summary has and the dialogue lacks: 0 or more."""
    return len(set(MASK.findall(summary)) - set(MASK.findall(dialogue)))


def unseen_numbers(dialogue: str, summary: str) -> int:
    """Numbers of the summary whose value the dialogue lacks: 0 or more.

    Not counted are one and two, which often stand for no number (한 번, two of them), and how many speakers there are.
    """
    own = {value for value in numbers(summary) if value > 2}  # of most summaries none: the dialogue need not be read
    new = own and own - numbers(dialogue) - {len(names_in(dialogue))}
    return len(new - implied_numbers(dialogue)) if new else 0


# --- form -------------------------------------------------------------------------------------------------------------


def repeated_trigrams(summary: str) -> float:
    """The share of the summary's word trigrams that stood in it before: 0 (none) to 1.

    Source: Paulus et al. 2018 (arXiv 1705.04304), section 2.5, where a decoder must not write one.
    """
    trigrams = _trigrams(summary)
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0


def is_cut(summary: str) -> bool:
    """Whether the text stops in the middle, or never begins: no word, or neither a full stop nor a final ending."""
    last = summary.rstrip(_CLOSING)[-1:]
    nominal = "가" <= last <= "힣" and (ord(last) - ord("가")) % 28 == 16  # a syllable that ends in ㅁ: 만남, 제안함
    return not re.search(r"\w", summary) or not (last in ".!?…。다요죠까" or nominal)


def formal_share(summary: str) -> float:
    """The share of the Korean sentences that end in the formal -니다: 0 to 1, and 1 where there is no Korean one."""
    korean = [one for one in sentences(summary) if any(map(str.isalpha, one)) and language(one) == "ko"]  # 5. has none
    formal = sum(bool(re.search("니다[.!?…]*$", one.rstrip(_CLOSING))) for one in korean)
    return formal / len(korean) if korean else 1.0


def hangul_share(dialogue: str, summary: str) -> float:
    """The share of Hangul among the letters of the summary's words, tags and the dialogue's own foreign words apart.

    0 to 1, and 1 where the dialogue is not Korean or the summary has no such words.
    """
    if language(dialogue) != "ko":
        return 1.0
    known = {word.lower() for word in re.findall(r"[^\W\d_가-힣]+", dialogue)}
    letters = [
        letter
        for word in re.findall(r"[가-힣]+|[^\W\d_가-힣]+", MASK.sub(" ", summary))
        if word.lower() not in known
        for letter in word
    ]
    return sum("가" <= letter <= "힣" for letter in letters) / len(letters) if letters else 1.0


def length_ratio(dialogue: str, summary: str) -> float:
    """Characters of the summary by characters of the dialogue, above 0; DialogSum in Korean has .14 to .33."""
    return len(summary) / max(len(dialogue), 1)


def copy_rate(dialogue: str, summary: str) -> float:
    """The share of the summary's word trigrams that the dialogue holds word for word: 0 to 1.

    Source: the reverse of the novel n-grams of Narayan et al. 2018 (arXiv 1808.08745), section 2.
    """
    trigrams, held = _trigrams(summary), set(_trigrams(dialogue))
    return sum(trigram in held for trigram in trigrams) / len(trigrams) if trigrams else 0.0


def _trigrams(text: str) -> list[tuple[str, ...]]:
    words = [word.strip(".,!?…\"'“”‘’").lower() for word in text.split()]
    return list(zip(words, words[1:], words[2:], strict=False))


# --- who does what ----------------------------------------------------------------------------------------------------


def role_agreement(summary: str, reference: str, tags: list[str] | None = None) -> float:
    """How much better the summary agrees with the reference on who does what than its speaker swap would.

    0 (the roles are the other way round) to 1 (as in the reference); 0.5 where neither can be said, because there are
    not two speaker tags or nothing but tags is in common.

    Args:
        tags: The two speakers, by default the two that the reference names most.
    """
    tags = tags or [tag for tag, _ in Counter(MASK.findall(reference)).most_common()][:2]
    if len(tags) < 2:
        return 0.5
    expected = roles_in(reference)
    as_is, swapped = (_overlap(roles_in(text), expected) for text in (summary, swap_speakers(summary, *tags)))
    return as_is / (as_is + swapped) if as_is + swapped else 0.5


def _overlap(one: Counter, other: Counter) -> int:
    return (one & other).total()


def roles_in(text: str) -> Counter:
    """Pairs of a speaker and a word that is said of it, or a speaker that it acts towards.

    A speaker with a topic particle (은, 는) holds what follows, up to the next one; one with a subject particle (이,
    가) only up to the end of its clause, where the topic takes over again.
    """
    if language(text) != "ko":
        return _english_roles(text)
    units = [*morphemes(text), Morpheme("", "")]
    pairs: Counter = Counter()
    topics: list[str] = []
    subjects: list[str] = []
    waiting: list[str] = []
    for (form, tag), after in pairwise(units):
        if MASK.fullmatch(form):
            waiting.append(form)
            if after.tag == "JX" or (after.tag == "JKS" and not topics):
                topics = subjects = waiting
            elif after.tag == "JKS":
                subjects = waiting
            elif after.tag != "JC":  # 과 and 와 join it to the next one
                pairs.update((subject, f"to {other}") for subject in subjects for other in waiting)
            waiting = waiting if after.tag == "JC" else []
        elif _is_content(tag):
            pairs.update((subject, form) for subject in subjects)
        elif tag in ("ETM", "ETN"):  # the end of a clause within the sentence
            subjects = topics
        elif tag == "SF":
            topics, waiting = [], []
    return pairs


def content_words(text: str, korean: bool) -> list[str]:
    """The words of a text that `roles_in` says of speakers, one by one."""
    if not korean:
        return [word.lower() for word in _ENGLISH_WORD.findall(MASK.sub(" ", text))]
    return [form for form, tag in morphemes(text) if _is_content(tag) and not MASK.fullmatch(form)]


def _is_content(tag: str) -> bool:
    return tag.partition("-")[0] in _CONTENT  # 묻다, 돕다 and 받다 are VV-I and VV-R, for irregular and regular


_ENGLISH_WORD = re.compile(r"[A-Za-z']{4,}")
# A speaker that acts in a clause of its own: right after a comma or conjunction, and no owner, no object, no end.
_OWN_CLAUSE = re.compile(
    rf"(?:,|\b(?:and|but|so|while|because))\s+(?P<tag>{MASK.pattern})"
    r"(?!'s|\s*[.,!?]|\s+(?:to|for|with|about|at|in|on|of|from|by|into|as)\b)"
)
_CONTENT = ("NNG", "NNP", "NR", "VV", "VA", "MAG", "MM", "SL", "SN", "XR")


def _english_roles(text: str) -> Counter:
    pairs: Counter = Counter()
    subjects: list[str] = []
    joining = False  # the words so far are a subject, to which `and` or a comma may join another
    own_clause = {
        match.start("tag")
        for match in _OWN_CLAUSE.finditer(text)
        if not text[: match.start()].rstrip(" ,").endswith("#")  # else it ends a list of speakers
    }
    for match in re.finditer(rf"{MASK.pattern}|\b[Aa]nd\b|{_ENGLISH_WORD.pattern}|[.,!?]", text):
        unit = match.group() if MASK.fullmatch(match.group()) else match.group().lower()
        if MASK.fullmatch(unit) and (joining or not subjects):
            subjects, joining = [*subjects, unit], True
        elif match.start() in own_clause:
            subjects, joining = [unit], True
        elif MASK.fullmatch(unit):
            pairs.update((subject, f"to {unit}") for subject in subjects)
        elif unit in ".!?":
            subjects, joining = [], False
        elif unit not in ("and", ","):
            joining = False
            pairs.update((subject, unit) for subject in subjects)
    return pairs


GATES: dict[str, Callable[[str, str], bool]] = {
    "unseen_tags": lambda dialogue, summary: unseen_tags(dialogue, summary) == 0,
    "unseen_numbers": lambda dialogue, summary: unseen_numbers(dialogue, summary) == 0,
    "repeated_trigrams": lambda _, summary: repeated_trigrams(summary) == 0,
    "is_cut": lambda _, summary: not is_cut(summary),
}
