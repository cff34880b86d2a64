"""The loop that writes completions token by token, for summaries and PPO's rollouts alike, and how it draws a token."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from alignment.cache import GROWING, blank, growing

Choose: TypeAlias = Callable[[Tensor, list[int], int], Tensor]  # see `decode`
BLOCK = 512  # tokens of the vocabulary that are summed together to draw one
READ_TOKENS = 2048  # of prompts read together: two CPU cores read more no faster, and all are padded to the longest


def noise(seed: int, places: Sequence[int], tokens: int) -> Tensor:
    """A number from 0 to 1 for each token (N x C, float64), for completions told apart by their places in the run."""
    sources = [random.Random(f"{seed} {place}") for place in places]
    return torch.tensor([[source.random() for _ in range(tokens)] for source in sources], dtype=torch.float64)


def inverse_cdf_sample(logits: Tensor, numbers: Tensor, temperature: float = 1.0) -> Tensor:
    """Of each row (N x V) the token where the cumulative distribution reaches its number (N, on the CPU): N x 1.

    It is looked for among blocks of the vocabulary first, then within one: on a CPU a running sum over all of Gemma's
    takes two to four times as long. Float32 logits are written over, where they lie: they may be transposed
    (`logits_of`), and softmax would copy them. The CPU makes the running sums: torch has no deterministic GPU ones.
    """
    masses = logits.float()
    masses -= _of_blocks(torch.amax, masses).amax(-1, keepdim=True)
    sums = _of_blocks(torch.sum, masses.div_(temperature).exp_()).cpu().double()
    block, passed = _reached(sums, numbers.unsqueeze(1) * sums.sum(-1, keepdim=True))
    index = block * BLOCK + torch.arange(BLOCK)  # N x BLOCK
    last = masses.shape[1] - 1
    own = masses.gather(1, index.clamp(max=last).to(masses.device)).cpu().double()
    within, _ = _reached(own.masked_fill_(index > last, 0), passed)
    return (block * BLOCK + within).clamp(max=last).to(masses.device)  # NaN ends beyond the last token


def _of_blocks(reduce: Callable[..., Tensor], values: Tensor) -> Tensor:
    """A sum or the like of each block of N x V: N x blocks. Along memory, for that is 20 times as fast on a CPU."""
    whole = values.shape[1] // BLOCK * BLOCK
    if values.is_contiguous():
        parts = [reduce(values[:, :whole].unflatten(1, (-1, BLOCK)), 2)]
    else:
        parts = [reduce(values.T[:whole].unflatten(0, (-1, BLOCK)), 1).T]
    if whole < values.shape[1]:
        parts.append(reduce(values[:, whole:], 1).unsqueeze(1))
    return torch.cat(parts, 1)


def _reached(masses: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Where the running sum of a row (N x M) passes its target (N x 1), and how far that is beyond the sum before."""
    running = masses.cumsum(-1)
    below = torch.nextafter(running[:, -1:], torch.zeros_like(target))  # rounding may put a target at the end itself
    target = target.minimum(below)
    place = torch.searchsorted(running, target, right=True).clamp(max=masses.shape[1] - 1)
    return place, (target - (running - masses).gather(1, place)).clamp(min=0)


def prefill(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Cache | None:
    """The KV cache of all but the last token of prompts (B x P, padded on the left); equal ones are read once.

    They are read a few at a time, so that a short one is not padded to the longest that will be written beside it.

    None where that is no token, or the model keeps something else than a KV cache.
    """
    rows = [tuple(row) for row in torch.cat([input_ids, attention_mask], 1).tolist()]
    distinct = list(dict.fromkeys(rows))
    first = [rows.index(row) for row in distinct]
    ids, mask = input_ids[first, :-1], attention_mask[first, :-1]
    if not mask.numel():
        return None
    whole: Any = None
    for part, width in _parts(mask.sum(1).tolist()):
        own = mask[part, -width:]
        output = model(
            input_ids=ids[part, -width:], attention_mask=own, position_ids=(own.cumsum(1) - 1).clamp(min=0),
            use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        cache: Any = getattr(output, "past_key_values", None)
        if type(cache) is not DynamicCache:
            return None
        if any(type(layer) not in GROWING or layer.keys is None for layer in cache.layers):
            return None
        if whole is None:
            whole = blank(cache, *mask.shape)
        for layer, read in zip(whole.layers, cache.layers, strict=True):
            layer.keys[part, :, -read.keys.shape[2] :] = read.keys
            layer.values[part, :, -read.keys.shape[2] :] = read.values
    if len(distinct) < len(rows):
        whole.batch_select_indices(torch.tensor([distinct.index(row) for row in rows], device=input_ids.device))
    return whole


def _parts(lengths: list[int]) -> Iterator[tuple[slice, int]]:
    """Neighbours of `READ_TOKENS` together, padding counted, and their longest; one token at least."""
    start = 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or max(lengths[start : end + 1]) * (end + 1 - start) > READ_TOKENS:
            yield slice(start, end), max(1, *lengths[start:end])
            start = end


def decode(
    model: PreTrainedModel,
    tokens: Tensor,
    mask: Tensor,
    cache: Cache | None,
    choose: Choose,
    end_token_id: int,
    most: Sequence[int],
) -> Iterator[tuple[int, list[int]]]:
    """Row and completion of each prompt as it ends, with its end token if it came to one; what has ended leaves.

    Not for sharded weights: nothing here keeps the processes in step.

    Args:
        tokens: The last token of each prompt (B x 1).
        mask: Where the prompt has a token (B x P).
        cache: The KV cache of all that comes before the last token, which grows; None where that is nothing.
        choose: From logits (n x V), the rows that they are of (n) and the number of tokens these have, to a token of
            each (n x 1); it may write over the logits.
        most: Tokens that each completion may have (B).
    """
    completions: list[list[int]] = [[] for _ in most]
    alive = list(range(len(most)))
    cache = cache and growing(cache)
    for length in range(max(most)):
        output = model(
            input_ids=tokens, attention_mask=mask.long(), position_ids=mask.sum(1, keepdim=True) - 1,
            past_key_values=cache, use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        cache, tokens = output.past_key_values, choose(output.logits[:, -1].float(), alive, length)
        going_on = []
        for place, (row, token) in enumerate(zip(alive, tokens.squeeze(1).tolist(), strict=True)):
            completions[row].append(token)
            if token != end_token_id and length + 1 < most[row]:
                going_on.append(place)
            else:
                yield row, completions[row]
        if not going_on:
            break
        if len(going_on) < len(alive):
            left = torch.tensor(going_on, device=tokens.device)
            cache.batch_select_indices(left)
            alive, tokens, mask = [alive[place] for place in going_on], tokens[left], mask[left]
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
