"""The LM head where labels are and nowhere else: most of the work of training a small model is saved here."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLICE = 128  # tokens of the vocabulary that are multiplied at a time; most vocabularies are padded to a multiple
# By which models scale or cap their logits after the head, where what is here would miss it.
SCALES = (
    "final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap", "logit_scale", "logits_scaling",
    "lm_head_multiplier", "output_multiplier",
)  # fmt: skip
CHUNK_TOKENS = 64  # 64 x V float32 logits at a time: 64 MiB for V = 262,144


def logits_of(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` of N x H hidden states and a V x H weight: N x V, on a CPU in float32 as the transposed product.

    For few rows and a large vocabulary MKL takes half the time so on two cores of an AMD EPYC (AVX2). For a single row,
    and from nine on, it takes a fifth to a half less where each core multiplies slices of the vocabulary of its own.
    """
    if hidden.device.type != "cpu" or hidden.dtype != torch.float32:
        return F.linear(hidden, weight, bias)
    columns = hidden.T
    if 1 < len(hidden) < 9 or len(weight) % SLICE or not torch.backends.mkl.is_available():
        logits = weight @ columns
    else:
        slices = weight.unflatten(0, (-1, SLICE))
        logits = torch.bmm(slices, columns.expand(len(slices), -1, -1)).flatten(0, 1)
    return logits.T if bias is None else logits.T + bias


class HeadLoss(torch.autograd.Function):
    """Summed cross-entropy of a linear head, a chunk of tokens at a time, with the gradients made on the way.

    The N x V logits never exist as a whole, and nothing is computed twice, because the gradient of a chunk is made
    while its logits are there. Against `torch.nn.functional.linear_cross_entropy` (torch 2.13) it keeps the loss in
    float32 and takes 0.4 of the time on bfloat16 on a CPU. Source: Liger Kernel (arXiv 2410.10989), section 3.2.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        """N x H hidden states, V x H weight, V bias or None and N targets to a float32 scalar."""
        of_hidden, of_weight, of_bias, _ = ctx.needs_input_grad
        hidden_grad = torch.empty_like(hidden) if of_hidden else None
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if of_weight else None
        bias_grad = torch.zeros_like(bias, dtype=torch.float32) if of_bias and bias is not None else None
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for start in range(0, len(hidden), CHUNK_TOKENS):
            rows = slice(start, start + CHUNK_TOKENS)
            logits = logits_of(hidden[rows], weight, bias).float()
            logits -= logits.amax(dim=-1, keepdim=True)
            index = targets[rows].unsqueeze(1)
            loss -= logits.gather(1, index).sum()
            masses = logits.exp_()
            total = masses.sum(dim=-1, keepdim=True)
            loss += total.log().sum()
            if hidden_grad is None and weight_grad is None and bias_grad is None:
                continue
            logits_grad = masses.div_(total).scatter_add_(1, index, torch.full_like(index, -1, dtype=torch.float32))
            if bias_grad is not None:
                bias_grad += logits_grad.sum(0)
            logits_grad = logits_grad.to(hidden.dtype)
            if hidden_grad is not None:
                hidden_grad[rows] = logits_grad @ weight.to(hidden.dtype)
            if weight_grad is not None:
                weight_grad += logits_grad.T @ hidden[rows]
        ctx.grads = hidden_grad, weight_grad, bias_grad
        ctx.weight_dtype = weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Scales the gradients made in `forward`."""
        hidden, weight, bias = ctx.grads
        scale = grads[0]
        return (
            None if hidden is None else hidden * scale.to(hidden.dtype),
            None if weight is None else (weight * scale).to(ctx.weight_dtype),
            None if bias is None else (bias * scale).to(ctx.weight_dtype),
            None,
        )


@contextmanager
def loss_in_head(head: nn.Linear, labels: Tensor, by_row: bool = False) -> Iterator[None]:
    """Within it, the head returns its summed cross-entropy where a label is, instead of logits at every position.

    The loss is computed inside the head's forward, so that whatever gathers its weight (ZeRO-3, FSDP) has done so.

    Args:
        labels: B x T, -100 where there is no loss; position t is scored against label t + 1.
        by_row: Return a sum for each row (B) instead of one for all.
    """
    targets = F.pad(labels[:, 1:], (0, 1), value=-100)
    keep = targets != -100  # True where the next token is supervised

    def summed(hidden: Tensor, targets: Tensor, keep: Tensor) -> Tensor:
        weight: Tensor = head.weight
        bias: Tensor | None = head.bias
        if not torch.is_grad_enabled():  # a Function's `needs_input_grad` does not know
            weight, bias = weight.detach(), None if bias is None else bias.detach()
        return HeadLoss.apply(hidden[keep], weight, bias, targets[keep])

    def forward(hidden: Tensor) -> Tensor:
        if by_row:
            return torch.stack([summed(*row) for row in zip(hidden, targets, keep, strict=True)])
        return summed(hidden, targets, keep)

    original = head.forward
    head.forward = forward  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        head.forward = original  # type: ignore[method-assign]


class _Room:
    """Memory for a chunk's logits in the type of the hidden states (N x H), and for two such in float32."""

    def __init__(self, hidden: Tensor, vocabulary: int) -> None:
        size = min(len(hidden), CHUNK_TOKENS), vocabulary
        self._narrow = hidden.new_empty(size if hidden.dtype != torch.float32 else 0)
        self._wide = hidden.new_empty(size if hidden.dtype != torch.float32 else 0, dtype=torch.float32)
        self._masses: Tensor | None = None

    def logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Logits in float32 (n x V), which are there until the next are asked for."""
        if hidden.dtype == torch.float32:
            return logits_of(hidden, weight, bias)
        own = torch.mm(hidden, weight.T, out=self._narrow[: len(hidden)])
        own = own if bias is None else own.add_(bias)
        return self._wide[: len(hidden)].copy_(own)

    def exp(self, logits: Tensor) -> Tensor:
        """The exponentials of these logits, which lie in memory as they do."""
        if self._masses is None or self._masses.shape != logits.shape:
            self._masses = torch.empty_like(logits)
        return torch.exp(logits, out=self._masses)

    def narrow(self, values: Tensor) -> Tensor:
        """These float32 values (n x V) in the type of the hidden states."""
        return self._narrow[: len(values)].copy_(values) if self._narrow.numel() else values


class TokenLogProbs(torch.autograd.Function):
    """Log-probability of each target under a frozen linear head, and the entropy there, a chunk of tokens at a time.

    As each depends on its own hidden state alone, the gradient is made while the logits are there, and only scaled in
    the backward pass: 0.6 of the time of making the logits again. Every chunk lies where the one before did: on a CPU
    fresh memory takes longer than what is computed in it. Without it this has 0.54 of the time in bfloat16, 0.65 with
    gradients.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """N x H hidden states, V x H weight, V bias or None and N targets to N float32 each; entropy has no gradient.

        Args:
            temperature: Divides the logits, as when the targets were sampled.
        """
        log_probs = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        entropy = torch.empty_like(log_probs)
        ctx.grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        room = _Room(hidden, len(weight))
        for start in range(0, len(hidden), CHUNK_TOKENS):
            rows = slice(start, start + CHUNK_TOKENS)
            logits = room.logits(hidden[rows], weight, bias)
            logits -= logits.amax(dim=-1, keepdim=True)
            logits /= temperature
            index = targets[rows].unsqueeze(1)
            chosen = logits.gather(1, index)
            masses = room.exp(logits)
            total = masses.sum(dim=-1, keepdim=True)
            log_total = total.log()
            log_probs[rows] = (chosen - log_total).squeeze(1)
            entropy[rows] = (log_total - logits.mul_(masses).sum(dim=-1, keepdim=True) / total).squeeze(1)
            if ctx.grad is not None:
                logits_grad = masses.div_(total).scatter_add_(1, index, torch.full_like(index, -1, dtype=torch.float32))
                ctx.grad[rows] = room.narrow(logits_grad) @ weight / -temperature
        ctx.mark_non_differentiable(entropy)
        return log_probs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Scales the gradients made in `forward`."""
        return (ctx.grad * grads[0].unsqueeze(1).to(ctx.grad.dtype), None, None, None, None)


@torch.no_grad()
def supervised_log_probs(model: Any, example: dict[str, list[int]]) -> Tensor:
    """Log-probabilities of the supervised tokens of one example of `input_ids` and `labels` (float32, on the CPU)."""
    ids, labels = (torch.tensor([example[name]], device=model.device) for name in ("input_ids", "labels"))
    keep = labels[0, 1:] != -100
    logits = model(input_ids=ids, logits_to_keep=keep.nonzero().squeeze(1)).logits[0].float()
    return logits.log_softmax(-1).gather(1, labels[0, 1:][keep].unsqueeze(1)).squeeze(1).cpu()


@contextmanager
def head_of_few(model: Any) -> Iterator[None]:
    """Within it, a model's head takes the few positions that generating asks it for in the fastest way.

    It sees the last position of a prompt as a strided slice. Against a frozen weight torch 2.13 answers with a bmm over
    one copy of the weight a row: 8 times the time and 5 GiB more for 16 prompts on Gemma. And see `logits_of`.
    """
    head = model.get_output_embeddings()
    original = head.forward

    def forward(hidden: Tensor) -> Tensor:
        return logits_of(hidden.flatten(0, -2), head.weight, head.bias).unflatten(0, hidden.shape[:-1])

    if type(head) is nn.Linear:
        head.forward = forward  # type: ignore[method-assign, assignment]
    try:
        with head.register_forward_pre_hook(lambda _, args: (args[0].contiguous(),)):
            yield
    finally:
        head.forward = original  # type: ignore[method-assign]
