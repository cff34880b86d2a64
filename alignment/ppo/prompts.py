"""Prompts that are read once: keys and values of all but their last token, for whatever goes on from there."""

from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache

from alignment.errors import InputError


def distinct(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """True at the first row (N) of each run of equal rows, and the run that each row is in (N)."""
    same = (ids[1:] == ids[:-1]).all(1) & (mask[1:] == mask[:-1]).all(1)
    first = torch.cat([same.new_ones(1), ~same])
    return first, first.cumsum(0) - 1


@dataclass
class Prompts:
    """Keys and values of the distinct prompts of a batch, in host memory, and which of them each row has (B)."""

    cache: Cache
    runs: Tensor

    @classmethod
    def keep(cls, cache: Cache, runs: Tensor) -> "Prompts":
        """What a model has just read."""
        return cls(_copied(cache, torch.device("cpu")), runs.cpu())

    def on(self, device: torch.device) -> Cache:
        """A cache for all rows, which may grow."""
        cache = _copied(self.cache, device)
        if len(self.runs) > int(self.runs[-1]) + 1:
            cache.batch_select_indices(self.runs.to(device))
        return cache


def _copied(cache: Cache, device: torch.device) -> Cache:
    """Keys and values on a device, as a cache of its own, which may grow without the other."""
    if not all(hasattr(layer, "keys") for layer in cache.layers):
        raise InputError("This model keeps a state besides keys and values, which PPO here does not support.")
    copied = copy(cache)
    copied.layers = [copy(layer) for layer in cache.layers]
    for layer in copied.layers:
        layer.keys, layer.values = layer.keys.to(device), layer.values.to(device)
    return copied
