"""alignment/cache.py: layers that grow in place hold what transformers' own hold, to the bit."""

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from alignment.cache import ROOM, GrowingLayer, GrowingSlidingLayer, growing

WINDOW = 6
# Rows that are left at a step: before there is room, within it, and after it was made anew.
LEFT = {0: [2, 0, 0, 3], 3: [1, 3], ROOM + 3: [1]}


def caches(prompt: int) -> tuple[DynamicCache, DynamicCache]:
    """One of transformers, and one with the same in it that grows in place: a full and a sliding layer each."""
    torch.manual_seed(0)
    states = [(torch.randn(4, 2, prompt, 3), torch.randn(4, 2, prompt, 3)) for _ in range(2)]
    both = []
    for _ in range(2):
        cache = DynamicCache()
        cache.layers = [DynamicLayer(), DynamicSlidingWindowLayer(WINDOW)]
        for i, (keys, values) in enumerate(states):
            cache.update(keys, values, i)
        both.append(cache)
    return both[0], growing(both[1])


@pytest.mark.parametrize("prompt", [1, WINDOW - 2, WINDOW, 3 * WINDOW])
def test_a_growing_cache_holds_what_transformers_would(prompt: int):
    expected, cache = caches(prompt)
    assert [type(layer) for layer in cache.layers] == [GrowingLayer, GrowingSlidingLayer]
    rows = 4
    for step in range(2 * ROOM + 5):  # room is made three times
        if step in LEFT:
            left = torch.tensor(LEFT[step])
            rows = len(left)
            expected.batch_select_indices(left)
            cache.batch_select_indices(left)
        tokens = 2 if step == 5 else 1
        for i in range(2):
            keys, values = torch.randn(rows, 2, tokens, 3), torch.randn(rows, 2, tokens, 3)
            own, others = cache.update(keys, values, i), expected.update(keys, values, i)
            assert all(map(torch.equal, own, others))
            layer, other = cache.layers[i], expected.layers[i]
            assert torch.equal(layer.keys, other.keys)
            assert torch.equal(layer.values, other.values)
            assert layer.get_seq_length() == other.get_seq_length() == cache.layers[0].get_seq_length()
            assert layer.get_mask_sizes(1) == other.get_mask_sizes(1)
    assert rows == 1


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("states", ["keys", "values"])
def test_a_token_is_written_without_a_copy_of_those_before(layer: int, states: str):
    _, cache = caches(3)
    blocks = []
    for _ in range(ROOM + 2):
        cache.update(torch.randn(4, 2, 1, 3), torch.randn(4, 2, 1, 3), layer)
        blocks.append(getattr(cache.layers[layer], states).untyped_storage().data_ptr())
    assert len(set(blocks)) == 2  # the first token makes room for itself and ROOM more, the one after those anew


def test_what_the_cache_was_made_from_is_not_written_over():
    prompt = torch.randn(1, 2, 8, 3)
    cache = DynamicCache()
    cache.layers = [DynamicLayer()]
    cache.update(prompt, prompt, 0)
    cache.layers[0].keys = cache.layers[0].values = prompt[:, :, :4]  # as PPO's prompts may be: views
    before = prompt.clone()
    growing(cache).update(torch.ones(1, 2, 1, 3), torch.ones(1, 2, 1, 3), 0)
    assert torch.equal(prompt, before)
