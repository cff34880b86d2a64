"""Labels -> preference pairs with margins, in TRL's columns; no dialogue stands in two splits.

Two summaries of a dialogue make a pair where their labels differ by `min_margin` or more. Length must not decide: a
pair's two summaries are of like length (`max_length_ratio`), unless a gate or a person decides between them. What
gates teach of length cancels out: a cut text loses by being shorter, a repetition by being longer. A corruption is
never the better one, nor are two references compared: which of them is better, the labels cannot say.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import combinations, groupby
from typing import Any

from alignment.errors import InputError
from alignment.progress import show_table
from alignment.records import Record
from alignment.run import say
from reward.candidates import CORRUPTED
from reward.labels import Label, LabelArguments

BINS = ("chosen shorter", "like length", "chosen longer")


@dataclass(frozen=True)
class Pair:
    """Two summaries of a dialogue, the better one first.

    Attributes:
        margin: By how much the scores are to differ: the difference of the labels, or `ratings_weight` for a human's.
        kind: The kinds of the two candidates: `reference > speaker_swap`.
        length_bin: One of `BINS`, by the characters of the two; like length within `max_length_ratio`.
    """

    id: str
    chosen: str
    rejected: str
    margin: float
    kind: str
    length_bin: str


def length_bin(chosen: str, rejected: str, max_ratio: float) -> str:
    """Which of `BINS` two texts belong to."""
    difference = math.log(max(len(chosen), 1) / max(len(rejected), 1))
    return BINS[1] if abs(difference) <= math.log(max_ratio) else BINS[0] if difference < 0 else BINS[2]


def make_pairs(labels: list[Label], args: LabelArguments, human: Iterable[dict[str, str]] = ()) -> list[Pair]:
    """All pairs of each dialogue that labels and lengths allow, and the human ones, whose margin is `ratings_weight`.

    What a human has compared, labels do not.

    Raises:
        InputError: No pair at all, with the reason.
    """
    known = {label.id for label in labels}
    human = [row for row in human if row["id"] in known]
    judged = {(row["id"], _words(row["chosen"], row["rejected"])) for row in human}
    pairs = []
    for _, group in groupby(sorted(labels, key=lambda label: label.id), key=lambda label: label.id):
        for one, other in combinations(group, 2):
            better, worse = (one, other) if one.label >= other.label else (other, one)
            margin = better.label - worse.label
            where = length_bin(better.text, worse.text, args.max_length_ratio)
            comparable = where == BINS[1] or len(worse.failed) > len(better.failed) or _rated_above(better, worse)
            comparable = comparable and not one.kind == other.kind == "reference"
            comparable = comparable and (one.id, _words(one.text, other.text)) not in judged
            if comparable and margin > 0 and margin >= args.min_margin and better.kind not in CORRUPTED:
                kind = f"{better.kind} > {worse.kind}"
                pairs.append(Pair(better.id, better.text, worse.text, margin, kind, where))
    for row in human:
        where = length_bin(row["chosen"], row["rejected"], args.max_length_ratio)
        pairs.append(Pair(row["id"], row["chosen"], row["rejected"], args.ratings_weight, "human", where))
    if not pairs:
        alone = sum(count == 1 for count in Counter(label.id for label in labels).values())
        raise InputError(
            f"{len(labels)} candidates and no pair among them: {alone} dialogues have one candidate only, and in the "
            f"others no two labels differ by {args.min_margin} (--min_margin) at like length. Raise --samples, or give "
            "other --candidates."
        )
    return pairs


def _rated_above(better: Label, worse: Label) -> bool:
    return better.rating is not None and worse.rating is not None and better.rating > worse.rating


def _words(*texts: str) -> frozenset[str]:
    return frozenset(" ".join(text.split()) for text in texts)


def check_ids(train: list[Record], held_out: list[Record]) -> None:
    """Holds that no id is in both, as files of candidates and ratings name dialogues by it."""
    both = {record.id for record in train} & {record.id for record in held_out}
    if both:
        raise InputError(
            f"{len(both)} ids of dialogues to train on are those of held-out ones too, such as {min(both)!r:.60}. "
            "Candidates and ratings go by id: rename those of one file, or give both a column id."
        )


def as_rows(pairs: list[Pair], prompts: dict[str, str]) -> list[dict[str, Any]]:
    """The pairs as TRL's preference columns `prompt`, `chosen`, `rejected`, `margin`, and ours.

    Args:
        prompts: By the dialogue's id.
    """
    return [{"prompt": prompts[pair.id], **asdict(pair)} for pair in pairs]


def stamp(pairs: list[Pair]) -> dict[str, Any]:
    """What a manifest says of pairs: how many, and their fingerprint."""
    lines = "\n".join(json.dumps(asdict(pair)) for pair in pairs)
    return {"pairs": len(pairs), "sha256": hashlib.sha256(lines.encode()).hexdigest()}


def show_counts(pairs: dict[str, list[Pair]], labels: dict[str, list[Label]]) -> None:
    """Prints the table of `counts` of the pairs to train on; and, where summaries are rated, what became of ratings.

    Args:
        pairs: By split.
        labels: What they were made of, by split.
    """
    train = pairs["train"]
    show_table(f"{len(train)} pairs to train on", ("kind", "pairs", *BINS), counts(train))
    rated = {(label.id, label.text) for split in labels for label in labels[split] if label.rating is not None}
    if rated:
        used = {
            pair.id
            for split in pairs
            for pair in pairs[split]
            if (pair.id, pair.chosen) in rated and (pair.id, pair.rejected) in rated
        }
        say(f"Ratings: {len(rated)}; dialogues with a pair of two rated summaries: {len(used)}.")


def counts(pairs: list[Pair]) -> list[dict[str, Any]]:
    """How many pairs there are of each kind, in all and by length bin, the most frequent kind first."""
    kinds = Counter(pair.kind for pair in pairs)
    bins = Counter((pair.kind, pair.length_bin) for pair in pairs)
    return [
        {"kind": kind, "pairs": number} | {name: bins[kind, name] for name in BINS}
        for kind, number in kinds.most_common()
    ]
