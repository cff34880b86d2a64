"""The chunked head loss against the plain one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from alignment import head
from alignment.head import SLICE, HeadLoss, TokenLogProbs, head_of_few, logits_of, loss_in_head

TYPES = [torch.double, torch.float32]  # float32 by the transposed product


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bias", [True, False])
def test_loss_and_all_gradients_equal_the_plain_cross_entropy(
    bias: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(head, "CHUNK_TOKENS", 3)  # 7 tokens: two whole chunks and a rest
    torch.manual_seed(0)
    layer = nn.Linear(5, 11, bias=bias).to(dtype)
    targets = torch.tensor([0, 10, 3, 3, 7, 1, 2])
    hidden = torch.randn(7, 5, dtype=dtype)

    def gradients(loss_of) -> list[torch.Tensor]:
        inputs = [hidden.clone().requires_grad_(), *layer.parameters()]
        loss = loss_of(inputs[0]) / 3
        return [loss.detach(), *torch.autograd.grad(loss, inputs)]

    ours = gradients(lambda h: HeadLoss.apply(h, layer.weight, layer.bias, targets))
    plain = gradients(lambda h: F.cross_entropy(layer(h), targets, reduction="sum"))
    for got, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(got.to(dtype), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bias", [True, False])
def test_log_probs_entropies_and_gradient_equal_the_plain_softmax(
    bias: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(head, "CHUNK_TOKENS", 3)
    torch.manual_seed(0)
    layer = nn.Linear(5, 11, bias=bias).to(dtype).requires_grad_(False)
    targets = torch.tensor([0, 10, 3, 3, 7, 1, 2])
    hidden, weights = torch.randn(7, 5, dtype=dtype, requires_grad=True), torch.randn(7)
    log_probs, entropies = TokenLogProbs.apply(hidden, layer.weight, layer.bias, targets, 0.7)
    plain = torch.distributions.Categorical(logits=layer(hidden) / 0.7)
    torch.testing.assert_close(log_probs.to(dtype), plain.log_prob(targets), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(entropies.to(dtype), plain.entropy(), rtol=1e-5, atol=1e-6)
    ours, expected = (
        torch.autograd.grad((found * weights).sum(), hidden) for found in (log_probs, plain.log_prob(targets))
    )
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_a_frozen_head_gets_no_gradient():
    layer = nn.Linear(4, 6, bias=False).requires_grad_(False)
    hidden = torch.randn(2, 4, requires_grad=True)
    HeadLoss.apply(hidden, layer.weight, None, torch.tensor([1, 2])).backward()
    assert layer.weight.grad is None
    assert hidden.grad is not None


def test_only_supervised_positions_reach_the_head():
    layer = nn.Linear(4, 6, bias=False)
    labels = torch.tensor([[-100, -100, 2, 5], [-100, 3, -100, -100]])
    hidden = torch.randn(2, 4, 4)
    with loss_in_head(layer, labels):
        loss = layer(hidden)
    logits = layer(hidden)  # after the block the head is itself again
    assert logits.shape == (2, 4, 6)
    expected = F.cross_entropy(logits[:, :-1].reshape(-1, 6), labels[:, 1:].reshape(-1), reduction="sum")
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("scale", [1.0, 100.0])  # logits whose exponentials float32 cannot hold
def test_large_logits_give_a_finite_loss_and_gradient(scale: float):
    torch.manual_seed(0)
    layer = nn.Linear(8, 50, bias=False).requires_grad_(False)
    hidden, targets = (scale * torch.randn(6, 8)).requires_grad_(), torch.arange(6)
    losses = (
        HeadLoss.apply(hidden, layer.weight, None, targets),
        F.cross_entropy(layer(hidden), targets, reduction="sum"),
    )
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, hidden)[0] for loss in losses))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [9, 3 * SLICE])
@pytest.mark.parametrize("rows", [1, 4, 20])
def test_logits_of_few_positions_are_those_of_the_linear_layer(
    rows: int, vocabulary: int, bias: bool, dtype: torch.dtype
):
    layer = nn.Linear(6, vocabulary, bias=bias).to(dtype)
    hidden = torch.randn(rows, 6, dtype=dtype)
    torch.testing.assert_close(logits_of(hidden, layer.weight, layer.bias), layer(hidden))


class Doubled(nn.Linear):
    """A head that is not only a product."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


@pytest.mark.parametrize("kind", [nn.Linear, Doubled])
def test_generating_takes_the_head_at_a_strided_slice_and_gives_it_back(kind: type[nn.Linear]):
    class Model:
        head = kind(6, 9)

        def get_output_embeddings(self) -> nn.Linear:
            return self.head

    model, whole = Model(), torch.randn(3, 5, 6)
    expected = model.head(whole[:, -1:].contiguous())
    with head_of_few(model):
        torch.testing.assert_close(model.head(whole[:, -1:]), expected)
    assert torch.equal(model.head(whole[:, -1:].contiguous()), expected)


def test_a_head_that_learns_nothing_but_its_bias_gets_the_gradient_of_it():
    layer = nn.Linear(4, 6)
    layer.weight.requires_grad_(False)
    hidden, targets = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 5])
    losses = (
        HeadLoss.apply(hidden, layer.weight, layer.bias, targets),
        F.cross_entropy(layer(hidden), targets, reduction="sum"),
    )
    torch.testing.assert_close(*(torch.autograd.grad(loss, layer.bias)[0] for loss in losses))


def test_float16_holds_the_gradient_of_a_large_vocabulary():
    torch.manual_seed(0)
    layer = nn.Linear(4, 100_000, bias=False).requires_grad_(False)
    hidden = torch.zeros(2, 4, requires_grad=True)  # no token is likelier than another
    with torch.autocast("cpu", torch.float16):
        loss = HeadLoss.apply(hidden, layer.weight, None, torch.tensor([7, 99_999]))
    expected = F.cross_entropy(layer(hidden), torch.tensor([7, 99_999]), reduction="sum")
    torch.testing.assert_close(*(torch.autograd.grad(one, hidden)[0] for one in (loss, expected)), rtol=1e-2, atol=1e-2)
