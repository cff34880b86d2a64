"""The KV cache of a prompt: read once, all but its last token, for whatever goes on from there."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache

from alignment.cache import GROWING
from alignment.errors import InputError


@dataclass(eq=False)
class PromptCache:
    """All but the last token of a prompt as a role has read it, in host memory.

    Attributes:
        tokens: How many those are (t).
        layers: Keys and values of each layer (heads x t or its window x d); none where t is 0.
        empty: A cache of the same kinds of layers.
    """

    tokens: int
    layers: list[tuple[Tensor, Tensor]]
    empty: Cache | None


def pad(rows: Sequence[Sequence[int]], pad_token_id: int, side: str) -> tuple[Tensor, Tensor]:
    """Rows of token ids as a block (N x the longest), and its mask: True where a token is."""
    block = partial(pad_sequence, batch_first=True, padding_side=side)
    ids = [torch.tensor(row, dtype=torch.long) for row in rows]
    return block(ids, padding_value=pad_token_id), block([torch.ones_like(row, dtype=torch.bool) for row in ids])


def split(cache: Cache, tokens: list[int]) -> list[PromptCache]:
    """The rows of a cache, each with this many tokens after its padding.

    Raises:
        InputError: The model keeps something else than a KV cache.
    """
    if any(type(layer) not in GROWING or layer.keys is None for layer in cache.layers):
        raise InputError("This model keeps a state besides its KV cache, which PPO here does not support.")
    empty = copy(cache)
    empty.layers = [copy(layer) for layer in cache.layers]
    for layer in empty.layers:
        layer.keys = layer.values = None

    def own(block: Tensor, row: int) -> Tensor:  # copied, or it would keep the others and the padding
        return block[row, :, max(0, block.shape[2] - tokens[row]) :].to("cpu", copy=True)

    return [
        PromptCache(tokens[row], [(own(layer.keys, row), own(layer.values, row)) for layer in cache.layers], empty)
        for row in range(len(tokens))
    ]


def join(prompts: list[PromptCache], device: torch.device) -> Cache | None:
    """A cache of these rows (B), padded on the left, which may grow; None where no row has a token."""
    longest = max(prompts, key=lambda prompt: prompt.tokens)
    if longest.empty is None or not longest.tokens:
        return None
    rows = list(dict.fromkeys(prompts))
    cache = copy(longest.empty)
    cache.layers = [copy(layer) for layer in longest.empty.layers]
    for i, layer in enumerate(cache.layers):
        nothing = tuple(block[:, :0] for block in longest.layers[i])  # what a prompt of one token has
        pairs = [row.layers[i] if row.layers else nothing for row in rows]
        layer.keys, layer.values = (
            _stack([block.to(device) for block in blocks]) for blocks in zip(*pairs, strict=True)
        )
        if layer.is_sliding:
            layer.cumulative_length = longest.tokens
    if len(rows) < len(prompts):
        cache.batch_select_indices(torch.tensor([rows.index(prompt) for prompt in prompts], device=device))
    return cache


def _stack(rows: list[Tensor]) -> Tensor:
    if len(rows) == 1:  # a view: what grows is a copy
        return rows[0].unsqueeze(0)
    heads, _, size = rows[0].shape
    block = rows[0].new_zeros(len(rows), heads, max(row.shape[1] for row in rows), size)
    for i, row in enumerate(rows):
        block[i, :, block.shape[2] - row.shape[1] :] = row
    return block
