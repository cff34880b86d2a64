"""The arithmetic of PPO: pure functions of tensors B x C, with a mask that is True where a completion has a token.

The defaults of PPO for language models follow Huang et al. 2024 (arXiv 2403.17031). What these functions return on
trl 1.12's own rollouts is recorded in tests/unit/ppo_oracle.safetensors and held to 1e-5. One departure: TRL adds the
score to the position after the end token, where its critic looks once more, and we add it to the end token itself, the
last action that there is; completions without an end token are the same in both.
"""

from collections.abc import Callable
from math import sqrt

import torch
from torch import Tensor

KL_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {  # of the log-ratio, reference to policy
    "k1": lambda log_ratio: -log_ratio,
    "k3": lambda log_ratio: log_ratio.exp() - 1 - log_ratio,
}


def leave_one_out(scores: Tensor, size: int) -> Tensor:
    """Each score less the mean of its siblings' (N, `size` completions of a prompt in a row); as it is without any.

    Most of the variance of scores is between prompts, and no merit of a completion. Source: Kool et al. 2019 (Buy 4
    REINFORCE samples, get a baseline for free); Ahmadian et al. 2024 (arXiv 2402.14740), equation 6.
    """
    if size == 1:
        return scores
    groups = scores.view(-1, size)
    return ((groups - groups.mean(1, keepdim=True)) * size / (size - 1)).flatten()


def regression_sums(values: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
    """What `fit_line` takes of values (N x C) and the scores to come (N): five sums, which add up over processes."""
    x, y = values[mask].double(), scores.unsqueeze(1).expand_as(values)[mask].double()
    return torch.stack([mask.sum().double(), x.sum(), y.sum(), (x * x).sum(), (x * y).sum()])


def fit_line(sums: Tensor) -> tuple[float, float]:
    """Slope (0 or more) and intercept of the line through the values that foresees the scores best.

    Values that differ by less than 0.01, of scores whose deviation is 1, count as all the same.
    """
    count, x, y, xx, xy = sums.tolist()
    variance = xx - x * x / count
    slope = max(0.0, (xy - x * y / count) / variance) if variance > 1e-4 * count else 0.0
    return slope, (y - slope * x) / count


def kl_divergence(log_probs: Tensor, ref_log_probs: Tensor, estimator: str = "k1") -> Tensor:
    """An estimate of KL(policy || reference) in nats at each sampled token (B x C).

    Both are unbiased; k1 is negative at times, k3 never. Source: Schulman 2020, http://joschu.net/blog/kl-approx.html.
    """
    return KL_ESTIMATORS[estimator](ref_log_probs - log_probs)


def token_rewards(kl: Tensor, scores: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """The reward at each token (B x C): the KL penalty, and at the last token the score (B) as well.

    Source: Ziegler et al. 2019 (arXiv 1909.08593), equation 2.
    """
    rewards = -kl_coef * kl * mask
    rows, last = torch.arange(len(mask), device=mask.device), mask.sum(1) - 1
    rewards[rows, last] = rewards[rows, last] + scores
    return rewards


def advantages_and_returns(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and the returns that the critic learns (both B x C, 0 where there is no token).

    Args:
        values: The critic's value before each token (B x C); after the last one there is nothing more to gain.

    Source: Schulman et al. 2016 (arXiv 1506.02438), equation 16.
    """
    rewards, values = rewards * mask, values * mask
    advantages, following = torch.zeros_like(values), torch.zeros_like(values[:, 0])
    next_values = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_values - values[:, t]
        following = delta + gamma * lam * following
        advantages[:, t], next_values = following, values[:, t]
    return advantages * mask, (advantages + values) * mask


def whiten(values: Tensor, mask: Tensor, sums: Tensor | None = None) -> Tensor:
    """The values with mean 0 and variance 1 over the tokens, and 0 where there is none.

    Args:
        sums: `moments` of all processes together; by default those of these values.
    """
    count, total, squares = moments(values, mask) if sums is None else sums
    mean = total / count
    variance = (squares - count * mean**2) / (count - 1).clamp(min=1)  # unbiased, as in TRL
    return ((values - mean) * torch.rsqrt(variance.clamp(min=0) + 1e-8) * mask).to(values.dtype)


def moments(values: Tensor, mask: Tensor) -> Tensor:
    """Number, sum and sum of squares of the values that there are (3, float64), which add up over processes."""
    chosen = values[mask].double()
    return torch.stack([mask.sum().double(), chosen.sum(), (chosen**2).sum()])


def mean_and_deviation(sums: Tensor) -> tuple[float, float]:
    """Of values whose `moments` these are; a deviation of nothing counts as 1."""
    count, total, squares = sums.tolist()
    deviation = sqrt(max(0.0, squares / count - (total / count) ** 2))
    return total / count, deviation if deviation > 1e-6 else 1.0


def policy_loss(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """The clipped surrogate loss at each token (B x C), and True where the clip decided.

    Source: Schulman et al. 2017 (arXiv 1707.06347), equation 7.
    """
    ratio = (log_probs - old_log_probs).exp()
    plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    return torch.max(plain, clipped), clipped > plain


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Half the clipped squared error of the critic at each token (B x C), and True where the clip decided.

    Source: openai/baselines, ppo2/model.py; Huang et al. 2024 (arXiv 2403.17031), detail on value clipping.
    """
    clipped = values.clamp(old_values - clip, old_values + clip)
    plain_error, clipped_error = (values - returns) ** 2, (clipped - returns) ** 2
    return 0.5 * torch.max(plain_error, clipped_error), clipped_error > plain_error


def explained_variance(returns: Tensor, errors: Tensor) -> float:
    """The share of the returns' variance that the critic foresaw: 1 for all, below 0 where a constant does better.

    Args:
        returns: `moments` of the returns, of all processes.
        errors: `moments` of what the values fell short of them.
    """
    of_returns, of_errors = (float(squares / n - (total / n) ** 2) for n, total, squares in (returns, errors))
    return 1 - of_errors / of_returns if of_returns > 0 else 0.0


def adapted_kl_coef(kl_coef: float, kl: float, target: float) -> float:
    """The KL coefficient of the next update: larger where the KL of a completion (in nats) is above its target.

    Source: Ziegler et al. 2019 (arXiv 1909.08593), section 2.2, with their gain of 0.1 and clip of 0.2.
    """
    return kl_coef * (1 + 0.1 * min(max(kl / target - 1, -0.2), 0.2))
