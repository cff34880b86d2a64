"""Who does what, told from the dialogue: the roles in a summary against what each speaker said, without a reference.

A summary with its two speakers exchanged has the same words, and to a small language model much the same likelihood.
What tells them apart is simple: who is said to ask has the questions, and what is said of a speaker is mostly in that
speaker's own turns. So this is a linear model of such evidence, learnt from references and their speaker swaps.
"""

import functools
import json
import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from alignment.dialogue import language
from alignment.errors import InputError
from alignment.records import Record
from alignment.run import say, write_json
from alignment.speakers import MASK, Naming, swap_speakers, turns_of, two_speakers
from reward.quality import content_words, roles_in

FILE = "attribution.json"
HABITS = ("first", "asks", "speaks", "numbers")
RAREST = 3  # references that a piece of evidence must be in
# Of a Gaussian prior on the weights: what holds for every word is learnt from a few dialogues, the rest from many.
L2_OF_WORDS, L2_OF_ALL = 5.0, 0.1


@dataclass(frozen=True)
class Attribution:
    """A weight for each piece of `evidence`."""

    weights: dict[str, float]

    @classmethod
    def fit(cls, records: list[Record]) -> "Attribution":
        """Learns to tell first references from their speaker swaps; without any, no evidence has weight."""
        differences = []
        for record in (Naming.of(record.dialogue).tag_record(record) for record in records):
            tags = two_speakers(record)
            if len(tags) == 2 and (swap := swap_speakers(record.references[0], *tags)) != record.references[0]:
                right, wrong = (evidence(record.dialogue, text) for text in (record.references[0], swap))
                differences.append({name: right[name] - wrong[name] for name in [*right, *wrong]})
        found = Counter(name for difference in differences for name, value in difference.items() if value)
        columns = {name: i for i, name in enumerate(sorted(name for name, count in found.items() if count >= RAREST))}
        say(f"Who does what: {len(columns)} pieces of evidence from {len(differences)} dialogues.")
        if not differences:
            say("So it is not learnt, nor are speaker swaps: that takes summaries that name a speaker as the turns do.")
        if not columns:
            return cls({})
        cells = [
            (row, columns[name], value)
            for row, difference in enumerate(differences)
            for name, value in difference.items()
            if name in columns
        ]
        rows, places, values = (torch.tensor(one) for one in zip(*cells, strict=True))
        penalty = torch.tensor([L2_OF_ALL if name.startswith(" ") else L2_OF_WORDS for name in columns])
        weights = torch.zeros(len(columns), dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([weights], max_iter=500, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            margins = weights.new_zeros(len(differences)).index_add(0, rows, values.double() * weights[places])
            loss = F.softplus(-margins).sum() + (penalty * weights.square()).sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        return cls(dict(zip(columns, (round(value, 5) for value in weights.tolist()), strict=True)))

    def score(self, dialogue: str, summary: str) -> float:
        """From -1 (the speakers are exchanged) to 1 (each does what it did); 0 where nothing tells.

        Of two speakers it is the probability of these roles less that of the exchanged ones. It says nothing of whether
        the summary is good: a copied turn has the right roles too.
        """
        if not self.weights:
            return 0.0
        found = evidence(dialogue, summary)
        return math.tanh(sum(value * self.weights.get(name, 0.0) for name, value in found.items()))

    def save(self, folder: str | Path) -> None:
        """Writes the weights, which can be read and understood, beside a reward model."""
        write_json(self.weights, Path(folder) / FILE)

    @classmethod
    def load(cls, folder: str | Path) -> "Attribution":
        """The weights beside a reward model.

        Raises:
            InputError: The file is missing, or is no JSON.
        """
        try:
            return cls(json.loads((Path(folder) / FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise InputError(f"{folder}: no {FILE} that can be read ({error}). Run recipes/reward.py again.") from error


def evidence(dialogue: str, summary: str) -> defaultdict[str, float]:
    """What the dialogue says of the roles in the summary; in a dialogue of two, the opposite once they are exchanged.

    For each word that the summary says of a speaker: whether that speaker said it and the others did not, and how much
    more than they that speaker asks, speaks, names numbers and begins. A name that starts with a space is for every
    word alike: of all together, of the speaker that is ` named` first, and of every ` mention`. Where nothing is said
    of a speaker there is no evidence.
    """
    naming = Naming.of(dialogue)
    dialogue, summary = naming.tag(dialogue), naming.tag(summary)
    speakers = _speakers(dialogue)
    named = [tag for tag in MASK.findall(summary) if tag in speakers]
    # A word counts once, however often it is repeated; whom it is done to is told by who does it.
    said_of = dict.fromkeys((tag, "to" if word.startswith("to #") else word) for tag, word in roles_in(summary))
    pieces: defaultdict[str, float] = defaultdict(float)
    if not any(word != "to" for _, word in said_of):
        return pieces
    for tag, word in [*said_of, *((tag, " mention") for tag in named), *((tag, " named") for tag in named[:1])]:
        own, others = speakers.get(tag), [one for name, one in speakers.items() if name != tag]
        if own is None or not others:
            continue
        often, theirs = own.words[word], sum(one.words[word] for one in others) / len(others)
        if only := (often > 0) - sum(one.words[word] > 0 for one in others) / len(others):
            pieces[" said"] += only
            pieces[f"{word} said"] += only
        pieces[" often"] += math.log((1 + often) / (1 + theirs))
        for habit in HABITS:
            more = own.habits[habit] - sum(one.habits[habit] for one in others) / len(others)
            pieces[f"{word} {habit}"] += more
            pieces[f" {habit}"] += more
    return pieces


@dataclass(frozen=True)
class _Speaker:
    """How often it says each word; and its share of questions, characters and numbers, and whether it is first."""

    words: Counter
    habits: dict[str, float]


@functools.lru_cache(maxsize=1024)  # many summaries are of one dialogue
def _speakers(dialogue: str) -> dict[str, _Speaker]:
    korean = language(dialogue) == "ko"
    texts = {tag: "\n".join(own) for tag, own in turns_of(dialogue).items()}
    counts = {
        "first": [int(i == 0) for i in range(len(texts))],
        "asks": [text.count("?") for text in texts.values()],
        "speaks": [len(text) for text in texts.values()],
        "numbers": [len(re.findall(r"\d+", text)) for text in texts.values()],
    }
    return {
        tag: _Speaker(
            Counter(content_words(text, korean)), {name: own[i] / max(1, sum(own)) for name, own in counts.items()}
        )
        for i, (tag, text) in enumerate(texts.items())
    }
