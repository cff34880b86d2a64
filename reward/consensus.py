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
    chosen = []
    with PartialState().split_between_processes(candidates) as own, Progress(description, total=len(own)) as progress:
        for texts in own:
            others = [[other for j, other in enumerate(texts) if j != i and other.strip()] for i in range(len(texts))]
            # A lone text has nothing to be close to.
            scores = rouge(texts, [rest or ["-"] for rest in others], profile).rows
            chosen.append(_highest(texts, [score["mean"] for score in scores]))
            progress.advance(1)
    return gather_object(chosen)


def best_of(
    candidates: list[list[str]], dialogues: list[str], score: Callable[[list[str], list[str]], list[float]]
) -> list[str]:
    """Of each dialogue's candidates the one with the highest score; of equals, the first.

    Several processes share the dialogues.

    Args:
        score: From dialogues and as many summaries to as many numbers, such as `RewardModel.score`.

    Source: best of n, Stiennon et al. 2020 (arXiv 2009.01325), section 4.3.
    """
    with PartialState().split_between_processes(list(zip(dialogues, candidates, strict=True))) as own:
        flat = [(dialogue, text) for dialogue, texts in own for text in texts]
        values = iter(score([dialogue for dialogue, _ in flat], [text for _, text in flat]))
        return gather_object([_highest(texts, [next(values) for _ in texts]) for _, texts in own])


def _highest(texts: list[str], scores: list[float]) -> str:
    return texts[scores.index(max(scores))]
