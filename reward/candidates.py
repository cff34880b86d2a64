"""What gets labelled: samples of a model, the references, and corruptions of them whose fault is known."""

import json
import random
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, combinations
from pathlib import Path
from typing import Any

from alignment.data import fingerprint
from alignment.errors import InputError
from alignment.formats import file_rows, write_rows
from alignment.generation import Decoding
from alignment.records import Record, clean, identity
from alignment.speakers import MASK, Naming, mirror_image, names_in, two_speakers
from alignment.submission import one_line
from alignment.summarizer import Summarizer
from reward.numerals import numbers
from reward.quality import role_agreement
from reward.sentences import sentences

_WHOLE_NUMBER = re.compile(r"(?<![\d.:])[1-9][\d,]*(?![\d.:]*\d)")


@dataclass(frozen=True)
class Candidate:
    """One summary of a dialogue, and where it comes from: `sample`, `reference`, or the name of a corruption."""

    id: str
    kind: str
    text: str


def swapped_speakers(record: Record, reference: str, rng: random.Random) -> str | None:
    """The reference with two speakers exchanged, or None where that says the same, or there are no two."""
    naming = Naming.of(record.dialogue)
    tags = two_speakers(naming.tag_record(record))
    swapped = naming.swap(reference, *tags) if len(tags) == 2 else reference
    same = swapped == reference or role_agreement(naming.tag(swapped), naming.tag(reference), tags) >= 0.5
    return None if same else swapped


def changed_number(record: Record, reference: str, rng: random.Random) -> str | None:
    """The reference with one number in digits changed to one that the dialogue lacks, or None where it has none."""
    names = "|".join(map(re.escape, sorted(names_in(record.dialogue), key=len, reverse=True)))
    tags = rf"{MASK.pattern}|(?<!\d)(?:{names})(?!\d)" if names else MASK.pattern
    bare = re.sub(tags, lambda match: " " * len(match.group()), reference)  # the digits of a name are no number
    places = list(_WHOLE_NUMBER.finditer(bare))
    if not places:
        return None
    place = rng.choice(places)
    digits = place.group().rstrip(",")
    value = int(digits.replace(",", ""))
    # Near the true one and as round, so that it is not told by its looks.
    step = 10 ** (len(str(value)) - len(str(value).rstrip("0")))
    others = [value + sign * factor * step for factor in (1, 2, 3, 4, 5) for sign in (1, -1)]
    rng.shuffle(others)
    known = numbers(record.dialogue) | numbers(reference)
    for other in others:
        written = f"{other:,}" if "," in digits else str(other)
        changed = reference[: place.start()] + written + reference[place.start() + len(digits) :]
        # Judged in its place: 30 is new, and 30만 may not be.
        if other > 0 and len(written) == len(digits) and numbers(changed) - known:
            return changed
    return None


def cut_short(record: Record, reference: str, rng: random.Random) -> str | None:
    """The first half of the reference's words, or None where it has fewer than four."""
    words = reference.split()
    return " ".join(words[: len(words) // 2]) if len(words) >= 4 else None


def repeated_sentence(record: Record, reference: str, rng: random.Random) -> str:
    """The reference with one of its sentences twice."""
    parts = [sentence.strip() for sentence in sentences(reference.strip())]
    index = rng.randrange(len(parts))
    return " ".join([*parts[: index + 1], *parts[index:]])


def turns_in_a_row(record: Record, reference: str, rng: random.Random) -> str:
    """Turns in a row, word for word: those that together are nearest to the reference in length."""
    turns = record.dialogue.splitlines()
    before = [0, *accumulate(len(turn) + 1 for turn in turns)]  # characters, with a blank after each turn
    stretches = combinations(range(len(before)), 2)
    start, end = min(stretches, key=lambda one: abs(before[one[1]] - before[one[0]] - 1 - len(reference)))
    return " ".join(turns[start:end])


CORRUPTIONS: dict[str, Callable[[Record, str, random.Random], str | None]] = {
    "speaker_swap": swapped_speakers,
    "number_change": changed_number,
    "cut": cut_short,
    "repetition": repeated_sentence,
    "copy": turns_in_a_row,
}


CORRUPTED = (*CORRUPTIONS, "other_dialogue")  # the kinds whose fault is known


def corruptions(records: list[Record], seed: int = 42) -> list[Candidate]:
    """Each record's reference made worse in every way that applies to it, and another dialogue's reference.

    The other dialogue is the one of nearest length among ten at random, so that length does not give it away.
    """
    candidates = []
    with_reference = [record for record in records if record.references]
    for record in with_reference:
        rng = random.Random(f"{seed} {record.id}")
        reference = record.references[0]
        for kind, corrupt in CORRUPTIONS.items():
            if text := corrupt(record, reference, rng):
                candidates.append(Candidate(record.id, kind, text))
        others = [other for other in with_reference if other.dialogue != record.dialogue]
        others = rng.sample(others, min(10, len(others)))
        if others:
            nearest = min(others, key=lambda other: abs(len(other.references[0]) - len(reference)))
            candidates.append(Candidate(record.id, "other_dialogue", nearest.references[0]))
    return candidates


def references(records: list[Record]) -> list[Candidate]:
    """Every reference as a candidate."""
    return [Candidate(record.id, "reference", text) for record in records for text in record.references]


def mirrored(records: list[Record]) -> tuple[list[Record], list[Candidate]]:
    """Each dialogue with its two speakers exchanged throughout, and so with exchanged references; and its candidates.

    What is right for a dialogue is wrong for its mirror image and the other way round, so that only who said what tells
    them apart, and no habit of summaries does. The candidates are the reference, and its speaker swap.
    """
    images, candidates = [], []
    for record in records:
        reference, image = record.references[0], mirror_image(record)
        if image and swapped_speakers(record, reference, random.Random(0)):
            images.append(replace(image, id=f"{record.id} mirrored"))
            candidates.append(Candidate(images[-1].id, "reference", image.references[0]))
            candidates.append(Candidate(images[-1].id, "speaker_swap", reference))
    return images, candidates


def without_model(records: list[Record], given: list[Candidate], seed: int) -> list[Candidate]:
    """All candidates of these records that need no model: references, corruptions, and those given for them."""
    ids = {record.id for record in records}
    return references(records) + corruptions(records, seed) + [one for one in given if one.id in ids]


def samples(
    load: Callable[[], Summarizer],
    records: list[Record],
    count: int,
    temperatures: list[float],
    decoding: Decoding,
    path: Path,
    facts: dict[str, Any],
    overwrite: bool = False,
) -> list[Candidate]:
    """`count` samples for each record, written to a file; a killed run goes on from its journals beside that file.

    Batches are shared across dialogues, and the temperatures across the samples of each, in turn. Where the file is
    there already, it is read, and no model is loaded.

    Args:
        facts: What the samples depend on, kept beside the file.
        overwrite: Make them anew where they were made otherwise.

    Raises:
        InputError: The file is there and holds samples of another model, or of other dialogues.
    """
    facts = facts | {
        "count": count,
        "temperatures": temperatures,
        "seed": decoding.seed,
        "dialogues": fingerprint(records),
    }
    kept = path.with_suffix(".facts.json")
    if path.exists() and kept.exists():
        before = json.loads(kept.read_text(encoding="utf-8"))
        changed = [name for name in facts if before.get(name) != json.loads(json.dumps(facts[name]))]
        if not changed:
            return read_candidates(path, records)
        if not overwrite:
            raise InputError(
                f"{path}: holds samples made otherwise ({', '.join(changed)}). Choose another --output_dir, or add "
                "--overwrite_output_dir true to make them anew."
            )
    summarizer = load()
    by_temperature: dict[float, list[Record]] = {}
    for number in range(count):
        by_temperature.setdefault(temperatures[number % len(temperatures)], []).extend(records)
    candidates = []
    with ExitStack() as journals:  # which stay until all is written
        for number, (temperature, part) in enumerate(by_temperature.items()):
            # Each with noise of its own, or a dialogue's samples would go alike until temperature parts them.
            own = replace(decoding, do_sample=True, temperature=temperature, seed=decoding.seed + number)
            dialogues = [record.dialogue for record in part]
            place = path.with_name(f"{path.stem}-at-{temperature}")
            journal = journals.enter_context(summarizer.journal(place, dialogues, own))
            texts = summarizer.summarize(dialogues, own, f"Sampling at temperature {temperature}", journal)
            candidates += [
                Candidate(record.id, "sample", one_line(text)) for record, text in zip(part, texts, strict=True)
            ]
        kept.unlink(missing_ok=True)  # those of other samples, which are about to go
        write_rows(map(asdict, candidates), path)
        write_rows([facts], kept)
    return candidates


def read_candidates(path: Path, records: list[Record]) -> list[Candidate]:
    """Reads candidates from JSON lines, JSON or CSV with id, text and, where known, kind.

    Raises:
        InputError: The file cannot be read, a key is missing, or an id is of no record.
    """
    known = {record.id for record in records}
    candidates = []
    for number, row in enumerate(file_rows(path), 1):
        if not isinstance(row, dict) or not {"id", "text"} <= row.keys():
            raise InputError(f"{path}: row {number}: expected id and text, found {row!r:.80}")
        try:
            name, text = identity(row["id"]), clean("text", row["text"])
        except InputError as fault:
            raise InputError(f"{path}: row {number}: {fault}") from None
        if name not in known:
            raise InputError(f"{path}: row {number}: id {name!r} is none of the {len(known)} dialogues; give theirs")
        candidates.append(Candidate(name, str(row.get("kind") or "given"), one_line(text)))
    if not candidates:
        raise InputError(f"{path}: no rows. Expected id and text, and rows of them.")
    return candidates
