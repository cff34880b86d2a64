"""alignment/decode.py: tokens are drawn as the running sum of probabilities says, however logits lie in memory."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alignment.decode import BLOCK, _of_blocks, inverse_cdf_sample


@pytest.fixture(params=[True, False], ids=["contiguous", "transposed"])
def laid_out(request) -> Callable[[Tensor], Tensor]:
    """A copy of N x V, in the layout of a head on a GPU, or of one in float32 on a CPU."""
    return lambda block: block.clone() if request.param else block.T.contiguous().T


@pytest.mark.parametrize("size", [7, BLOCK, BLOCK + 1, 5000])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_token_is_drawn_where_the_running_sum_passes_its_number(size, temperature, laid_out):
    torch.manual_seed(0)
    logits, numbers = 4 * torch.randn(200, size), torch.rand(200, dtype=torch.float64)
    probs = (logits.double() / temperature).softmax(-1)
    tokens = inverse_cdf_sample(laid_out(logits), numbers, temperature)
    passed, beyond = (sums.gather(1, tokens).squeeze(1) for sums in (probs.cumsum(-1), probs.cumsum(-1) - probs))
    assert (passed > numbers - 1e-6).all()
    assert (beyond < numbers + 1e-6).all()
    assert len(set(tokens.squeeze(1).tolist())) > 2


@pytest.mark.parametrize("scale", [1, 20])  # peaked: masses that are small beside the sum before them
def test_a_token_that_cannot_be_is_never_drawn(scale, laid_out):
    torch.manual_seed(0)
    logits = scale * torch.randn(2000, 3, BLOCK)
    logits[:, :, [0, -1]] = -torch.inf  # at the edges of blocks
    logits = logits.flatten(1)
    sums = _of_blocks(torch.sum, laid_out((logits - logits.amax(1, keepdim=True)).exp())).double()
    edges = F.pad(sums.cumsum(1), (1, 0)) / sums.sum(1, keepdim=True)  # where a block ends and the next begins
    for edge in edges.unbind(1):
        for numbers in (torch.nextafter(edge, edge - 1), edge, torch.nextafter(edge, edge + 1)):
            drawn = inverse_cdf_sample(laid_out(logits), numbers.clamp(0, 1 - 2**-53))
            assert logits.gather(1, drawn).isfinite().all()


@pytest.mark.parametrize("size", [7, BLOCK + 1])
def test_of_logits_that_are_no_numbers_some_token_is_drawn(size, laid_out):
    nothing = laid_out(torch.full((2, size), torch.nan))
    tokens = inverse_cdf_sample(nothing, torch.tensor([0.5, 0.9], dtype=torch.float64)).squeeze(1).tolist()
    assert all(0 <= token < size for token in tokens)  # and the loss tells of it
