"""Several summaries of each dialogue -> one: the one closest to the others, or the one that scores best."""

from collections.abc import Callable

from accelerate import PartialState
from accelerate.utils import gather_object

from alignment.progress import Progress
from reward.rouge import rouge, usual_profiles


def consensus(candidates: list[list[str]], profile: str | None = None, description: str | None = None) -> list[str]:
    """Of each dialogue's candidates the one with the highest mean ROUGE against the others; of equals, the first.

    Several processes share the dialogues.

    Args:
        profile: How ROUGE is computed; by default `strict` for Korean, else `english`.
        description: Shown with a progress bar, or None for none.

    Source: minimum Bayes risk, Kumar and Byrne 2004 (N04-1022), with samples as in Eikema and Aziz 2020
    (arXiv 2005.10283), section 5.
    """
    profile = profile or usual_profiles([" ".join(text for texts in candidates for text in texts)])[-1]
    own, chosen = _own(candidates), []
    with Progress(description, total=len(own)) as progress:
        for row in own:
            texts = candidates[row]
            others = [[other for j, other in enumerate(texts) if j != i and other.strip()] for i in range(len(texts))]
            # A lone text has nothing to be close to.
            scores = rouge(texts, [rest or ["-"] for rest in others], profile).rows
            chosen.append((row, _highest(texts, [score["mean"] for score in scores])))
            progress.advance(1)
    return _of_all(chosen)


def best_of(
    candidates: list[list[str]], dialogues: list[str], score: Callable[[list[str], list[str]], list[float]]
) -> list[str]:
    """Of each dialogue's candidates the one with the highest score; of equals, the first.

    Several processes share the dialogues.

    Args:
        score: From dialogues and as many summaries to as many numbers, such as `RewardModel.score`.

    Source: best of n, Stiennon et al. 2020 (arXiv 2009.01325), section 4.3.
    """
    own = _own(candidates)
    flat = [(dialogues[row], text) for row in own for text in candidates[row]]
    values = iter(score([dialogue for dialogue, _ in flat], [text for _, text in flat]))
    return _of_all([(row, _highest(candidates[row], [next(values) for _ in candidates[row]])) for row in own])


def _own(candidates: list[list[str]]) -> range:
    """The dialogues that are this process's."""
    return range(PartialState().process_index, len(candidates), PartialState().num_processes)


def _of_all(chosen: list[tuple[int, str]]) -> list[str]:
    """What every process has chosen, in order."""
    return [text for _, text in sorted(gather_object(chosen))]


def _highest(texts: list[str], scores: list[float]) -> str:
    return texts[scores.index(max(scores))]
