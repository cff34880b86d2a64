"""A KV cache for the loop that decodes token by token: filled a few rows at a time, then growing in place."""

from copy import copy
from typing import Any

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

ROOM = 64  # tokens for which a layer gets room at a time


class _Growing(DynamicLayer):
    """A layer with room after its last token, where the next are written: transformers' own copies all for each.

    Only `update` and `batch_select_indices` know of the room, and `decode` calls nothing else.

    Attributes:
        blocks: Keys and values (B x heads x room for tokens x d); `keys` and `values` are views of what is in use.
        end: Where in the blocks the next token goes.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, layer: DynamicLayer) -> None:
        self.__dict__ |= vars(layer)
        self.blocks: list[Tensor] = []
        self.end = 0

    def append(self, *states: Tensor) -> list[Tensor]:
        """All keys and values that were in use, and these after them (B x heads x t x d)."""
        kept, new = self.keys.shape[2], states[0].shape[2]
        if not self.blocks or self.end + new > self.blocks[0].shape[2]:
            self.blocks, self.end = [_with_room(block, new + ROOM) for block in (self.keys, self.values)], kept
        start, self.end = self.end - kept, self.end + new
        for block, own in zip(self.blocks, states, strict=True):
            block[:, :, self.end - new : self.end] = own
        return [block[:, :, start : self.end] for block in self.blocks]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Leaves these rows, with their room."""
        if self.blocks:
            start = self.end - self.keys.shape[2]
            self.blocks = [block.index_select(0, indices) for block in self.blocks]
            self.keys, self.values = (block[:, :, start : self.end] for block in self.blocks)
        else:
            super().batch_select_indices(indices)


class GrowingLayer(_Growing):
    """A layer of full attention."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """All keys and values, with these after them."""
        self.keys, self.values = self.append(key_states, value_states)
        return self.keys, self.values


class GrowingSlidingLayer(_Growing, DynamicSlidingWindowLayer):
    """A layer whose tokens see a window: what has left it stays in the block, unseen, until that is full."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """The keys and values in the window, with these after them."""
        self.cumulative_length += key_states.shape[2]
        keys, values = self.append(key_states, value_states)
        self.keys, self.values = (states[:, :, -self.sliding_window + 1 :] for states in (keys, values))
        return keys, values


GROWING: dict[type, type[_Growing]] = {DynamicLayer: GrowingLayer, DynamicSlidingWindowLayer: GrowingSlidingLayer}


def blank(cache: Cache, rows: int, tokens: int) -> Cache:
    """A cache of the same kinds of layers that counts so many tokens of so many rows as read; all are zeros as yet."""
    larger = copy(cache)
    larger.layers = [copy(layer) for layer in cache.layers]
    for layer in larger.layers:
        kept = tokens
        if layer.is_sliding:
            layer.cumulative_length, kept = tokens, min(tokens, layer.sliding_window - 1)
        layer.keys, layer.values = (
            states.new_zeros(rows, states.shape[1], kept, states.shape[3]) for states in (layer.keys, layer.values)
        )
    return larger


def growing(cache: Cache) -> Cache:
    """The same cache, its layers (of the kinds in `GROWING`) replaced by such that grow in place."""
    cache.layers = [GROWING[type(layer)](layer) for layer in cache.layers]
    return cache


def _with_room(block: Tensor, room: int) -> Tensor:
    """A copy (B x heads x t x d) with room for more tokens after it, in which anything may stand."""
    rows, heads, tokens, size = block.shape
    larger = block.new_empty(rows, heads, tokens + room, size)
    larger[:, :, :tokens] = block
    return larger
