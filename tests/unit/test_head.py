"""The chunked head loss against the plain one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from alignment import head
from alignment.head import HeadLoss, TokenLogProbs, loss_in_head


@pytest.mark.parametrize("bias", [True, False])
def test_loss_and_all_gradients_equal_the_plain_cross_entropy(bias: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(head, "CHUNK_TOKENS", 3)  # 7 tokens: two whole chunks and a rest
    torch.manual_seed(0)
    layer = nn.Linear(5, 11, bias=bias).double()
    targets = torch.tensor([0, 10, 3, 3, 7, 1, 2])
    hidden = torch.randn(7, 5, dtype=torch.double)

    def gradients(loss_of) -> list[torch.Tensor]:
        inputs = [hidden.clone().requires_grad_(), *layer.parameters()]
        loss = loss_of(inputs[0]) / 3
        return [loss.detach(), *torch.autograd.grad(loss, inputs)]

    ours = gradients(lambda h: HeadLoss.apply(h, layer.weight, layer.bias, targets))
    plain = gradients(lambda h: F.cross_entropy(layer(h), targets, reduction="sum"))
    for got, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_log_probs_entropies_and_gradient_equal_the_plain_softmax(bias: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(head, "CHUNK_TOKENS", 3)
    torch.manual_seed(0)
    layer = nn.Linear(5, 11, bias=bias).double().requires_grad_(False)
    targets = torch.tensor([0, 10, 3, 3, 7, 1, 2])
    hidden, weights = torch.randn(7, 5, dtype=torch.double, requires_grad=True), torch.randn(7)
    log_probs, entropies = TokenLogProbs.apply(hidden, layer.weight, layer.bias, targets, 0.7)
    plain = torch.distributions.Categorical(logits=layer(hidden) / 0.7)
    torch.testing.assert_close(log_probs.double(), plain.log_prob(targets), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(entropies.double(), plain.entropy(), rtol=1e-5, atol=1e-6)
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
