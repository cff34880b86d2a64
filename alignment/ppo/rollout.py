"""Rollouts: completions sampled from the policy, and what the four roles say of them.

Each completion has noise of its own, drawn from the seed and its place in the run. So, but for rounding, it does not
depend on which other prompts share its batch, on how many processes there are, or on whether the run was stopped in
between. (See vllm.py for the other way to sample.)
"""

import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignment.decode import decode, inverse_cdf_sample, noise
from alignment.errors import InputError
from alignment.head import head_of_few
from alignment.ppo.config import PPOConfig
from alignment.ppo.prompt_cache import PromptCache, join, pad
from alignment.ppo.roles import POLICY, REFERENCE, MicroBatch, Roles

# Called by keyword with `prompts` (as the data set has them), `completions` (texts), and the data set's other columns;
# one number for each completion.
Scorer = Callable[..., list[float]]


class Repeatable:
    """What a function iterates over, anew each time; without a length, so that a trainer's `max_steps` rules.

    The trainer's callbacks keep it after training: a generator in its place would keep the last rollout.
    """

    def __init__(self, make: Callable[[], Iterator[Any]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[Any]:
        return self.make()


def row_at(place: int, rows: int, seed: int) -> int:
    """The prompt at a place in the run: each pass goes through all of them in an order of its own."""
    epoch, index = divmod(place, rows)
    return int(torch.randperm(rows, generator=torch.Generator().manual_seed(seed + epoch))[index])


def share_of(
    update: int, prompts: list[list[int]], args: PPOConfig, process: int, processes: int
) -> tuple[list[int], list[int]]:
    """A process's completions of an update, those of short prompts first: rows of their prompts, places in the run."""
    each, dialogues = args.num_generations, args.rollout_batch_size // args.num_generations
    own = range(update * dialogues + process, (update + 1) * dialogues, processes)
    row_of = {place: row_at(place, len(prompts), args.seed) for place in own}
    by_length = sorted(own, key=lambda place: len(prompts[row_of[place]]))
    places = [place * each + i for place in by_length for i in range(each)]
    return [row_of[place // each] for place in places], places


def encode_prompts(
    prompts: Iterable[str | list[dict[str, str]]],
    tokenizer: PreTrainedTokenizerBase,
    special: bool,
    new: int,
    most: Sequence[int | None],
) -> list[list[int]]:
    """Token ids of each prompt; a conversation goes through the model's chat template.

    Args:
        special: Whether a text gets the tokenizer's begin token and the like; a template brings its own.
        new: Tokens that a completion may have.
        most: Limits of the tokens of both, such as what the model takes; None for no limit.

    Raises:
        InputError: A prompt without tokens, or with too many.
    """
    encoded, limit = [], min(filter(None, most), default=None)
    for i, prompt in enumerate(prompts):
        is_text = isinstance(prompt, str)
        text = prompt if is_text else tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=special and is_text).input_ids
        if not ids or (limit and len(ids) + new > limit):
            raise InputError(
                f"Prompt {i}: {len(ids)} tokens and {new} for the completion, where at least 1 and with the completion "
                f"at most {limit} are expected (--max_length, or what the model takes). Shorten it, or change "
                "--max_new_tokens or --max_length."
            )
        encoded.append(ids)
    return encoded


@torch.no_grad()
def sample(
    roles: Roles,
    prompts: list[list[int]],
    places: Sequence[int],
    seed: int,
    end_token_id: int,
    temperature: float,
    max_new_tokens: int,
    read: list[PromptCache],
    batch_size: int,
) -> list[list[int]]:
    """Samples the policy's completion of each prompt, with its end token if it came to one.

    Args:
        prompts: Token ids of each prompt, unpadded (N).
        places: In the run (N): with the seed they decide the noise of each.
        read: What the policy has read of the prompts (N).
        batch_size: Completions written at a time; those that have ended leave the batch.
    """
    numbers = noise(seed, places, max_new_tokens)
    completions: list[list[int]] = []
    with head_of_few(roles.model):
        for start in range(0, len(prompts), batch_size):
            rows = slice(start, start + batch_size)
            ids, mask = (block.to(roles.device) for block in pad(prompts[rows], 0, "left"))

            def choose(logits: Tensor, alive: list[int], length: int, own: Tensor = numbers[rows]) -> Tensor:
                return inverse_cdf_sample(logits, own[alive, length], temperature)

            cache, most = join(read[rows], roles.device), [max_new_tokens] * len(ids)
            ended = decode(roles.model, ids[:, -1:], mask, cache, choose, end_token_id, most)
            completions += [completion for _, completion in sorted(ended)]
    return completions


def prefill(roles: Roles, prompts: list[list[int]], role: str, batch_size: int) -> list[PromptCache]:
    """What a role reads of these prompts (N), a micro-batch at a time, whatever is sampled together."""
    parts = range(0, len(prompts), batch_size)
    return [prompt for start in parts for prompt in roles.prefill(prompts[start : start + batch_size], role)]


def micro_batches(
    prompts: list[list[int]], completions: list[list[int]], pad_token_id: int, batch_size: int
) -> list[MicroBatch]:
    """Prompts (B x P, padded on the left) and completions (B x C, on the right), B at a time, no wider than they are.

    Rows stay in their order, which is by length, and stay together in every epoch: so the forward pass whose
    log-probabilities are the old ones has the same shape as the one that learns, and the first ratio is exactly 1.
    """
    batches = []
    for start in range(0, len(prompts), batch_size):
        rows = slice(start, start + batch_size)
        prompt_ids, prompt_mask = pad(prompts[rows], pad_token_id, "left")
        completion_ids, completion_mask = pad(completions[rows], pad_token_id, "right")
        batches.append({
            "prompt_ids": prompt_ids, "prompt_mask": prompt_mask,
            "completion_ids": completion_ids, "completion_mask": completion_mask,
        })  # fmt: skip
    return batches


def concatenated(batches: list[dict[str, Any]], name: str) -> Tensor:
    """What all micro-batches hold under a name, in one block (N x the longest C, 0 or False beyond their own)."""
    longest = max(batch[name].shape[1] for batch in batches)
    return torch.cat([F.pad(batch[name], (0, longest - batch[name].shape[1])) for batch in batches])


def score(scorers: dict[str, Scorer], rows: Dataset, texts: list[str]) -> dict[str, Tensor]:
    """What each scorer gives each text (N); where one fails in one process, all of them say so and stop.

    Raises:
        InputError: A scorer raised, or returned too few or too many numbers, or one that is not finite.
    """
    raw, error = {}, None
    try:
        raw = _given(scorers, rows, texts)
    except InputError as fault:
        error = str(fault)
    if errors := [fault for fault in gather_object([error]) if fault]:
        raise InputError(errors[0])
    return raw


def _given(scorers: dict[str, Scorer], rows: Dataset, texts: list[str]) -> dict[str, Tensor]:
    columns = {name: list(rows[name]) for name in rows.column_names if name != "prompt"}
    raw = {}
    for name, scorer in scorers.items():
        try:
            given = scorer(prompts=list(rows["prompt"]), completions=texts, **columns)
            scores = torch.tensor([float(value) for value in given])
        except (InputError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            raise InputError(
                f"Scorer {name}: {type(error).__name__}: {error} ({where.filename}:{where.lineno}). "
                f"It was called with prompts, completions and {', '.join(columns) or 'no more columns'}."
            ) from error
        if len(scores) != len(texts):
            raise InputError(f"Scorer {name}: {len(scores)} scores for {len(texts)} completions; expected as many.")
        if not scores.isfinite().all():
            bad = int((~scores.isfinite()).nonzero()[0])
            raise InputError(f"Scorer {name}: {scores[bad]} for {texts[bad]!r:.80}. Expected a finite number.")
        raw[name] = scores
    return raw


def judge(
    roles: Roles,
    prompts: list[list[int]],
    completions: list[list[int]],
    policy_prompts: list[PromptCache],
    value_prompts: list[PromptCache],
    pad_token_id: int,
    batch_size: int,
    temperature: float,
) -> list[dict[str, Any]]:
    """Micro-batches of a rollout, and what the roles say of each.

    Args:
        policy_prompts: What the policy has read (N); empty to have prompts read anew by policy and reference.
        value_prompts: What `prompt_role` has read (N).
    """
    judged = []
    for i, batch in enumerate(micro_batches(prompts, completions, pad_token_id, batch_size)):
        rows = slice(i * batch_size, (i + 1) * batch_size)
        of_policy = of_reference = None
        if policy_prompts:
            of_policy, shared = policy_prompts[rows], roles.prompt_role == REFERENCE
            of_reference = value_prompts[rows] if shared else roles.prefill(prompts[rows], REFERENCE)
        judged.append(batch | judge_batch(roles, batch, temperature, of_policy, of_reference, value_prompts[rows]))
    return judged


@torch.no_grad()
def judge_batch(
    roles: Roles,
    batch: MicroBatch,
    temperature: float,
    policy_prompts: list[PromptCache] | None,
    reference_prompts: list[PromptCache] | None,
    value_prompts: list[PromptCache],
) -> dict[str, Any]:
    """What policy, reference and value say of a micro-batch before it is learnt from, on the CPU (B x C each).

    Policy and reference read the prompts anew where they are None; in the same batches, or rounding would look like KL.
    """
    moved = {name: tensor.to(roles.device) for name, tensor in batch.items()}
    log_probs, entropy = roles.log_probs(moved, temperature, POLICY, policy_prompts)
    ref_log_probs, _ = roles.log_probs(moved, temperature, REFERENCE, reference_prompts)
    old_values = roles.values(moved, value_prompts)
    return {
        "old_log_probs": log_probs.cpu(), "ref_log_probs": ref_log_probs.cpu(), "entropy": entropy.cpu(),
        "old_values": old_values.cpu(), "policy_prompts": policy_prompts, "value_prompts": value_prompts,
    }  # fmt: skip
