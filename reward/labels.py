"""One label for a candidate: ROUGE against the references and the signals that ROUGE is blind to, less failed gates.

The label is the weighted mean of parts between 0 and 1, minus `gate_penalty` for each gate that fails. Length is held
under control where labels are compared: `reward/pairs.py` pairs candidates of like length.
"""

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from alignment.errors import InputError
from alignment.formats import file_rows
from alignment.progress import show_table
from alignment.records import Record, clean, identity
from alignment.speakers import Naming, two_speakers
from alignment.submission import one_line
from reward.candidates import Candidate
from reward.quality import GATES, copy_rate, formal_share, hangul_share, length_ratio, role_agreement
from reward.rouge import check_profiles, rouge, usual_profiles


@dataclass
class LabelArguments:
    """What makes a summary good, and how much."""

    label_profile: str | None = field(
        default=None, metadata={"help": "ROUGE profile of the label; by default strict, or english for English."}
    )
    rouge_weight: float = field(default=1.0, metadata={"help": "Weight of ROUGE (mean of three) in the label."})
    roles_weight: float = field(default=1.0, metadata={"help": "Weight of who does what, against the reference."})
    formal_weight: float = field(default=0.1, metadata={"help": "Weight of formal endings (-니다)."})
    hangul_weight: float = field(default=0.1, metadata={"help": "Weight of Korean words for a Korean dialogue."})
    own_words_weight: float = field(default=0.1, metadata={"help": "Weight of words that are not copied."})
    gate_penalty: float = field(default=0.5, metadata={"help": "Taken off for each gate that a summary fails."})
    ratings_weight: float = field(default=0.5, metadata={"help": "Share of a human rating in a label, from 0 to 1."})
    min_margin: float = field(default=0.05, metadata={"help": "Least difference of two labels that makes a pair."})
    max_length_ratio: float = field(
        default=1.25,
        metadata={"help": "Summaries whose lengths differ more are compared only where a gate or ratings decide."},
    )

    def __post_init__(self) -> None:
        bounds = dict.fromkeys([*_WEIGHTS.values(), "gate_penalty", "min_margin"], (0.0, math.inf))
        for name, (low, high) in (bounds | {"ratings_weight": (0.0, 1.0), "max_length_ratio": (1.0, math.inf)}).items():
            value = getattr(self, name)
            if not low <= value <= high or math.isinf(value):
                most = "more" if math.isinf(high) else f"up to {high:g}"
                raise InputError(f"--{name} {value}: expected a number, {low:g} or {most}.")
        if not sum(getattr(self, name) for name in _WEIGHTS.values()):
            raise InputError(f"{', '.join('--' + name for name in _WEIGHTS.values())}: all 0. Set one above 0.")
        check_profiles("--label_profile", self.label_profile)


# The parts of a label, and the setting that weighs each.
_WEIGHTS = {
    "rouge": "rouge_weight", "roles": "roles_weight", "formal": "formal_weight", "hangul": "hangul_weight",
    "own_words": "own_words_weight",
}  # fmt: skip


_RATING_FORMS = (("id", "candidate", "rating"), ("id", "chosen", "rejected"))


@dataclass(frozen=True)
class Label:
    """A candidate with its label and every component of it.

    Attributes:
        label: At most 1; below 0 where several gates fail.
        rouge: Mean of ROUGE-1, -2 and -L against the references, 0 to 1; 1 for a reference itself.
        roles: Who does what, agreement with the reference; 0 to 1, 0.5 where it cannot be said.
        failed: The gates that the summary fails and every reference passes; one that a reference fails says nothing.
        length_ratio: Characters of the summary by those of the dialogue; kept beside the label, and no part of it.
        rating: A human's, from 0 to 1 over the file, or None.
    """

    id: str
    kind: str
    text: str
    label: float
    rouge: float
    roles: float
    formal: float
    hangul: float
    own_words: float
    failed: tuple[str, ...]
    length_ratio: float
    rating: float | None = None


def label_candidates(
    candidates: list[Candidate],
    records: list[Record],
    args: LabelArguments,
    ratings: dict[tuple[str, str], float],
) -> list[Label]:
    """Labels every candidate; those with the same id and text, but for blanks, are labelled once.

    Args:
        ratings: By id and text, from 0 to 1; mixed into the label with `ratings_weight`.
    """
    by_id = {record.id: record for record in records}
    first = {_key(candidate): candidate for candidate in reversed(candidates)}
    kept = [candidate for candidate in candidates if first[_key(candidate)] is candidate]
    references = [list(by_id[candidate.id].references) for candidate in kept]
    profile = args.label_profile or usual_profiles([record.dialogue for record in records])[-1]
    scores = rouge([candidate.text for candidate in kept], references, profile).rows
    return [
        _label(candidate, by_id[candidate.id], score["mean"] / 100, args, ratings.get(_key(candidate)))
        for candidate, score in zip(kept, scores, strict=True)
    ]


def _key(candidate: Candidate) -> tuple[str, str]:
    return candidate.id, " ".join(candidate.text.split())


def _label(candidate: Candidate, record: Record, score: float, args: LabelArguments, rating: float | None) -> Label:
    dialogue, text = record.dialogue, candidate.text
    naming = Naming.of(dialogue)
    tagged = naming.tag_record(record)
    parts = {
        "rouge": 1.0 if text in record.references else score,
        "roles": max(
            role_agreement(naming.tag(text), one, two_speakers(replace(tagged, references=(one,))))
            for one in tagged.references
        ),
        "formal": formal_share(text),
        "hangul": hangul_share(dialogue, text),
        "own_words": 1 - copy_rate(dialogue, text),
    }
    failed = tuple(
        name
        for name, passes in GATES.items()
        if not passes(dialogue, text) and all(passes(dialogue, reference) for reference in record.references)
    )
    weights = [getattr(args, _WEIGHTS[name]) for name in parts]
    label = float(np.average(list(parts.values()), weights=weights)) - args.gate_penalty * len(failed)
    if rating is not None:
        label = (1 - args.ratings_weight) * label + args.ratings_weight * rating
    return Label(
        candidate.id, candidate.kind, text, label, **parts,
        failed=failed, length_ratio=length_ratio(dialogue, text), rating=rating,
    )  # fmt: skip


def show_examples(labels: list[Label]) -> None:
    """Prints the candidates of the first three dialogues, best label first; the file of labels has every component."""
    for name in list(dict.fromkeys(label.id for label in labels))[:3]:
        own = sorted((label for label in labels if label.id == name), key=lambda label: -label.label)
        rows = [asdict(label) | {"failed": ", ".join(label.failed) or "-"} for label in own]
        show_table(f"Labels of {name}", ("text", "kind", "label", "rouge", "roles", "failed"), rows)


def read_ratings(path: Path, records: list[Record]) -> tuple[list[Candidate], dict[tuple[str, str], float], list[dict]]:
    """Reads human judgements: `id,candidate,rating`, or pairwise `id,chosen,rejected`.

    Returns:
        The summaries rated, as candidates; their ratings from 0 to 1 (lowest and highest of the file) by id and text;
        and the pairs, as rows of id, chosen and rejected.

    Raises:
        InputError: The file cannot be read, has neither form, an unknown id, or a rating that is no finite number.
    """
    known = {record.id for record in records}
    candidates: list[Candidate] = []
    values: dict[tuple[str, str], float] = {}
    pairs: list[dict[str, str]] = []
    for number, row in enumerate(file_rows(path), 1):
        where = f"{path}: row {number}"
        form = next((form for form in _RATING_FORMS if isinstance(row, dict) and set(form) <= set(row)), None)
        if form is None:
            found = ", ".join(map(str, row)) if isinstance(row, dict) else f"{row!r:.80}"
            raise InputError(f"{where}: expected id,candidate,rating or id,chosen,rejected, found {found}")
        try:
            name = identity(row["id"])
            lines = [one_line(clean(key, row[key])) for key in form if key not in ("id", "rating")]
        except InputError as fault:
            raise InputError(f"{where}: {fault}") from None
        if not all(lines) or len(set(lines)) < len(lines):
            raise InputError(f"{where}: expected texts, none empty and no two the same, found {lines!r:.80}")
        if name not in known:
            raise InputError(f"{where}: id {name!r} is none of the {len(known)} dialogues; rate theirs")
        if "rating" not in form:
            pairs.append({"id": name, "chosen": lines[0], "rejected": lines[1]})
            continue
        try:
            value = float(row["rating"])
        except (TypeError, ValueError, OverflowError):
            value = math.nan
        if not math.isfinite(value) or isinstance(row["rating"], bool):
            raise InputError(f"{where}: rating {row['rating']!r}: expected a finite number, such as 1 to 5")
        candidate = Candidate(name, "rated", lines[0])
        if _key(candidate) in values:
            raise InputError(f"{where}: this summary of {name!r} is rated twice; give one rating, such as the mean")
        candidates.append(candidate)
        values[_key(candidate)] = value
    if not values and not pairs:
        raise InputError(f"{path}: no rows. Expected id,candidate,rating or id,chosen,rejected, and rows of them.")
    low, high = min(values.values(), default=0.0), max(values.values(), default=0.0)
    if values and low == high:
        raise InputError(f"{path}: every rating is {low:g}; expected ratings that tell summaries apart")
    return candidates, {key: (value - low) / (high - low) for key, value in values.items()}, pairs
