"""Rules that mend the form of generated summaries and leave what they say alone.

They are applied in the order of `RULES`: first what hides a tag goes, then come tags, the spaces around them, and whole
sentences last. Each is safe alone, none empties a summary, and a second pass changes nothing.

False alarms on reference summaries of DialogSum: 0 of 2,714 in Korean; 4 of 2,768 in English, each of which does have a
fault (`#PErson2#`, a space before a full stop or none after a tag).

ROUGE hardly sees any of it in a trained model, and `cut_ending` costs some where summaries are cut short: what stands
of the last sentence was mostly right (-0.4 of aistages with all cut at 16 words). It is for readers, not for a score.

What is not mended, and why:

- A particle that does not fit its tag (`#Person2#은`): 7 percent of those in Korean references do not either, and to
  make them fit lowers ROUGE.
- A tag that the dialogue lacks: the sentence may be true of another speaker, and nothing tells of which. It is rare,
  too: 1 of 2,531 summaries of trained models.
- A tag that is gone with nothing left of it; and a word apart from its tag that need not be a particle (`만`, `도`).
- A cut last sentence in English: nothing but the full stop tells it from a whole one, and references lack that too.
"""

import difflib
import re
from collections.abc import Callable, Sequence

from alignment.dialogue import language
from alignment.errors import InputError
from alignment.speakers import MASK, fitting_particle
from reward.morphemes import morphemes
from reward.quality import is_cut
from reward.rouge import paired_bootstrap, rouge
from reward.sentences import sentences

# --- leftovers of the tokenizer and of the prompt ---------------------------------------------------------------------

_MARKER = re.compile(
    r"""<\|(?:im_start|start_header_id)\|>(?:(?:assistant|user|system)\b)?  # whose turn it is goes with it
    | <start_of_turn>(?:(?:model|user)\b)? | <end_of_turn>
    | <\|[^<>|\s]{1,40}\|>
    | </?(?:s|pad|eos|bos|sep|cls|usr|sys)> | <unused\d+> | \[/?(?:PAD|BOS|EOS|SEP|CLS|INST)\]
    | \#\#\#[ ]?(?:Instruction|Input|Response|Output)\b:?""",
    re.VERBOSE | re.IGNORECASE,
)
# What stands for a lost character goes only where it stands alone; in a word, what is left might be another name.
_LOST = re.compile(r"(?<![\w<>#�])(?:<unk>|<mask>|\[UNK\]|\[MASK\]|�)+(?![\w<>#�])", re.IGNORECASE)
_GAP = "\x00"  # in the place of what is removed


def special_tokens(dialogue: str, summary: str) -> str:
    """Removes special tokens and heads of the prompt (`</s>`, `<|...|>`, `### Response:`) that the dialogue lacks."""
    marked = summary
    for pattern in (_MARKER, _LOST):
        marked = pattern.sub(lambda found: found.group() if found.group() in dialogue else _GAP, marked)
    if _GAP not in marked:
        return summary
    # One space takes the place of all, and none stands before a full stop or at the ends.
    bare = re.sub(rf"\s*{_GAP}[\s{_GAP}]*(?=[.,!?…](?:\s|$))", "", marked)
    bare = re.sub(rf"\s*{_GAP}[\s{_GAP}]*", " ", bare).strip()
    return special_tokens(dialogue, bare) or summary  # again, for what has come together


# --- tags -------------------------------------------------------------------------------------------------------------


def tags(dialogue: str, summary: str) -> str:
    """Restores a tag that lacks a hash, is written in other letters, or has spaces in it (`# person 1 #`).

    Only to a tag of the dialogue, only if no other fits, and not where the dialogue itself writes it so.
    """
    known = set(MASK.findall(dialogue))
    if not known:
        return summary
    by_name: dict[str, list[str]] = {}
    for tag in known:
        by_name.setdefault(_plain(tag), []).append(tag)
    names = "|".join(_spelt(tag) for tag in sorted(known, key=len, reverse=True))
    no_opening = rf"(?![^\S\n]*(?:{names})|[A-Za-z]+\d+\#)"  # the hash is not that of the next tag
    malformed = re.compile(
        rf"""\#[^\S\n]*(?:{names})[^\S\n]*\#{no_opening}  # both hashes, with spaces or other letters
        | (?<![A-Za-z0-9_])@?(?:{names})\#{no_opening}
        | \#(?:{names})(?![A-Za-z0-9_])""",
        re.VERBOSE | re.IGNORECASE | re.ASCII,
    )
    untagged = MASK.sub(" ", dialogue)

    def restored(match: re.Match[str]) -> str:
        fitting = by_name[_plain(match.group())]
        return fitting[0] if len(fitting) == 1 and match.group() not in untagged else match.group()

    # Whole tags stand as they are, so that the hash of one is not taken for a neighbour's.
    parts = re.split("(" + "|".join(map(re.escape, sorted(known))) + ")", summary)
    mended = "".join(part if part in known else malformed.sub(restored, part) for part in parts)
    return mended if mended == summary else tags(dialogue, mended)  # again: a whole tag may part two others


def _plain(tag: str) -> str:
    return re.sub(r"[\W_]", "", tag).lower()


def _spelt(tag: str) -> str:
    """A pattern of the tag's name, in which a space, a hyphen or an underscore may stand before its number."""
    return r"[ _-]?".join(filter(None, re.split(r"[ _-]|(?<=[A-Za-z])(?=\d)", tag.strip("#"))))


# --- spaces -----------------------------------------------------------------------------------------------------------

# Words that after a tag are particles. Left out are those that may stand alone: 만, 도, 나, 보다, and the verbs of
# 가 보다 and 와 있다.
_PARTICLE = (
    r"은|는|이|을|를|의|(?:에게|한테)(?:서|로)?(?:는|도|만)?|께서?(?:는|도)?|가(?!\s+(?:보|봐|봤|본|볼|봅|있|계))"
    r"|과(?:의|는|도)?|와(?!\s+(?:보|봐|봤|본|볼|봅|있|계|달|주|줘|줄|준))(?:의|는|도)?"
    r"|으?로(?:부터|서|써)?(?:는|도)?|까지|부터|처럼"
)
_APART = re.compile(rf"({MASK.pattern})[^\S\n]+({_PARTICLE})(?![가-힣A-Za-z0-9])", re.ASCII)
_BEFORE_LATIN = re.compile(rf"{MASK.pattern}(?=[A-Za-z]{{2}})", re.ASCII)


def spaces(dialogue: str, summary: str) -> str:
    """Puts the spaces right: one at a time, none before a particle or a stop, one between a tag and a Latin word."""
    text = re.sub(r"[^\S\n]*\n[^\S\n]*", "\n", summary)
    text = re.sub(r"[^\S\n]{2,}|\t", " ", text).strip()
    text = re.sub(r"(?<=\S) (?=[.,!?](?:[\s\"'”’)]|$))", "", text)
    text = _BEFORE_LATIN.sub(lambda tag: tag.group() + " " * (tag.group() in dialogue), text)
    return _APART.sub(_joined, text) or summary


def _joined(match: re.Match[str]) -> str:
    tag, particle = match.groups()
    # Where the sound does not fit, `#Person2# 이 책` is more likely "this book".
    fits = particle not in ("이", "가") or fitting_particle(tag, particle) == particle
    return tag + particle if fits else match.group()


# --- sentences --------------------------------------------------------------------------------------------------------

_FEWEST_WORDS = 3  # of a sentence that is repeated: 네. 네. may be meant, a repeated trigram is not


_TURN = re.compile(r"(?:^|[\n.!?…]\s*)[^\s:]{1,30} ?:(?:\s|$)")  # a speaker and a colon


def repeated_sentences(dialogue: str, summary: str) -> str:
    """Drops each sentence of three words or more that stood in the summary before, word for word.

    Not in a text of turns, whose next sentence would pass to another speaker.
    """
    if _TURN.search(summary):
        return summary
    seen, kept = set(), []
    for sentence in sentences(summary):
        words = tuple(sentence.rstrip(" \n.!?…").split())
        if len(words) < _FEWEST_WORDS or words not in seen:
            kept.append(sentence)
        seen.add(words)
    text = "".join(kept)
    return summary if text == summary else text.rstrip()


# Casual endings (먹었어, 했네, 만나자), and a number with what it counts: a sentence may end so without a stop.
_MAY_END = re.compile(r"(?:[아어야해돼지자네군]|구나|(?<![\w#])\d[\d,.]*\s?(?:[가-힣%]|달러|시간|퍼센트))$")


_NOUN = re.compile("NN.|NR|XSN|ETN|SL|W_.*")  # tags of Kiwi


def cut_ending(dialogue: str, summary: str) -> str:
    """Drops a Korean last sentence that stops in the middle, if the sentence before it is whole."""
    bare = re.sub(r"[^\w]+$", "", summary)  # 좋아해요~ is whole
    if not bare or language(summary) != "ko" or not is_cut(summary) or not is_cut(bare) or _MAY_END.search(bare):
        return summary
    *before, last = sentences(summary)
    kept = "".join(before).rstrip()
    whole = not is_cut(kept.rstrip(".!?… "))  # a final ending stands before the stop
    # Notes end in a noun (환불 처리 예정), a name, an address or a long number, though hardly in a speaker; and where a
    # whole sentence may hide in the last one, all of it stays.
    noun = bool(_NOUN.fullmatch(morphemes(bare)[-1].tag)) or bool(re.search(r"\d{3}$", bare))
    noun = noun and not summary.endswith(",") and not re.search(r"#Person\d+$", bare)
    return kept if whole and not noun and not re.search(r"[다요죠까][.!?…]", last) else summary


# --- all of them ------------------------------------------------------------------------------------------------------

RULES: dict[str, Callable[[str, str], str]] = {
    "special_tokens": special_tokens,
    "tags": tags,
    "spaces": spaces,
    "repeated_sentences": repeated_sentences,
    "cut_ending": cut_ending,
}


def postprocess(dialogue: str, summary: str, rules: Sequence[str]) -> str:
    """The summary after these rules, applied in the order of `RULES`.

    Raises:
        InputError: An unknown rule.
    """
    for name in check_rules(list(rules)):
        summary = RULES[name](dialogue, summary)
    return summary


def mend(dialogues: list[str], summaries: list[str], rules: Sequence[str]) -> list[str]:
    """Each summary after these rules."""
    return [postprocess(*pair, rules) for pair in zip(dialogues, summaries, strict=True)]


def check_rules(names: list[str]) -> list[str]:
    """The rules that are meant, in their order: `all`, `none`, or names.

    Raises:
        InputError: An unknown name, or `all` or `none` among others.
    """
    if names in (["all"], ["none"]):
        return list(RULES) if names == ["all"] else []
    for name in names:
        if name in ("all", "none"):
            raise InputError(f"--postprocess {' '.join(names)}: expected {name} alone, or names.")
        if name not in RULES:
            near = difflib.get_close_matches(name, [*RULES, "all", "none"], n=2, cutoff=0.4)
            meant = f" Did you mean {' or '.join(f'`{one}`' for one in near)}?" if near else ""
            raise InputError(
                f"--postprocess {name}: unknown rule.{meant} Expected all, none, or some of {', '.join(RULES)}."
            )
    return [name for name in RULES if name in names]


def effects(
    dialogues: list[str], summaries: list[str], references: list[list[str]], rules: Sequence[str], profile: str
) -> list[dict[str, str | int | float]]:
    """What each rule alone does to these summaries, and all of them together (`all`).

    Returns:
        For each: `rule`, `changed` (rows), and `difference`, `low`, `high` and `p` of the mean ROUGE in percent, after
        against before, as `paired_bootstrap` says; where nothing changes 0, 0, 0 and 1.

    Raises:
        InputError: An unknown rule or profile.
    """
    names = check_rules(list(rules))
    before = [row["mean"] for row in rouge(summaries, references, profile).rows]
    found: list[dict[str, str | int | float]] = []
    for rule, applied in [*((name, [name]) for name in names), ("all", names)]:
        mended = mend(dialogues, summaries, applied)
        changed = [row for row, text in enumerate(mended) if text != summaries[row]]
        figures = {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
        if changed:  # only those rows are scored again
            scored = rouge([mended[row] for row in changed], [references[row] for row in changed], profile)
            after = list(before)
            for row, score in zip(changed, scored.rows, strict=True):
                after[row] = score["mean"]
            figures = paired_bootstrap(before, after)
        found.append({"rule": rule, "changed": len(changed), **figures})
    return found
