"""Summaries from a model: length-sorted batches, greedy, sampling or beams, in the order asked for."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import product
from types import NoneType
from typing import Any, get_args, get_type_hints

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TopPLogitsWarper,
)

from alignment.decode import Choose, decode, inverse_cdf_sample, noise, prefill
from alignment.ensemble import AveragedDistributions, Member
from alignment.errors import InputError
from alignment.head import head_of_few
from alignment.progress import Progress
from alignment.training import is_sharded

SHORTEST_LIMIT = 16  # tokens; no dialogue is so short that its summary needs fewer
BATCH_TOKENS = 16 * (1024 + 128)  # of a batch whose size is not given: 16 dialogues and summaries at their longest
# What a model's generation_config.json may ask for that only transformers' own loop does.
OWN_RULES = (
    "bad_words_ids", "begin_suppress_tokens", "exponential_decay_length_penalty", "forced_bos_token_id",
    "forced_eos_token_id", "sequence_bias", "suppress_tokens",
)  # fmt: skip


@dataclass
class Decoding:
    """How tokens are chosen: greedy by default, sampling at a temperature, or beams.

    What is None is as the model was trained, where it is an encoder-decoder (`for_model`).
    """

    do_sample: bool = field(default=False, metadata={"help": "Sample instead of taking the likeliest token."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of sampling."})
    top_p: float = field(default=1.0, metadata={"help": "Sample from the likeliest tokens that hold this probability."})
    num_beams: int | None = field(
        default=None, metadata={"help": "Beams; by default those of an encoder-decoder's training, or else 1: none."}
    )
    length_penalty: float | None = field(
        default=None, metadata={"help": "Above 1 beams favour longer summaries; by default as trained, or else 1."}
    )
    no_repeat_ngram_size: int | None = field(
        default=None,
        metadata={
            "help": "Forbid n-grams of this size to come twice: in the summary of an encoder-decoder, in dialogue and "
            "summary together of a decoder; 0: no. By default as an encoder-decoder was trained, or else 0."
        },
    )
    max_new_tokens_ratio: float = field(
        default=0.0,
        metadata={"help": "Longest summary as a share of the prompt's tokens, 16 at least; 0: no such limit."},
    )
    batch_size: int | None = field(
        default=None,
        metadata={"help": f"Dialogues summarised at a time; by default what has {BATCH_TOKENS:,} tokens, or fits."},
    )
    seed: int = field(default=42, metadata={"help": "Seed of sampling."})

    def __post_init__(self) -> None:
        if any(number is not None and number < 1 for number in (self.batch_size, self.num_beams)):
            raise InputError(f"--batch_size {self.batch_size}, --num_beams {self.num_beams}: expected 1 or more.")
        if self.do_sample and (self.num_beams or 1) > 1:
            raise InputError(f"--do_sample true, --num_beams {self.num_beams}: sample, or search with beams.")
        if self.temperature <= 0 or not 0 < self.top_p <= 1:
            raise InputError(
                f"--temperature {self.temperature}, --top_p {self.top_p}: expected a number above 0, and a share."
            )
        if self.max_new_tokens_ratio < 0:
            raise InputError(
                f"--max_new_tokens_ratio {self.max_new_tokens_ratio}: expected a share, or 0 for no limit."
            )

    def for_model(self, model: PreTrainedModel) -> "Decoding":
        """This decoding with nothing left open: an encoder-decoder's own comes from its generation_config.json.

        Its beams are not taken where it is to sample.

        Raises:
            InputError: A length penalty without beams.
        """
        own = model.generation_config if model.config.is_encoder_decoder else GenerationConfig()
        num_beams = _first(self.num_beams, None if self.do_sample else own.num_beams, 1)
        if num_beams == 1 and self.length_penalty not in (None, 1.0):
            raise InputError(f"--length_penalty {self.length_penalty}: has no effect without beams; add --num_beams 4.")
        return replace(
            self,
            num_beams=num_beams,
            length_penalty=_first(self.length_penalty, own.length_penalty, 1.0),
            no_repeat_ngram_size=_first(self.no_repeat_ngram_size, own.no_repeat_ngram_size, 0),
        )


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def decoding_grid(options: list[str], decoding: Decoding) -> dict[str, Decoding]:
    """Every combination of options such as `num_beams=1,4`, by name; a length penalty goes with beams only.

    Raises:
        InputError: An option that `Decoding` does not have, a value of another type, or one that would have no effect.
    """
    kinds = {
        name: next(one for one in get_args(kind) or (kind,) if one is not NoneType)
        for name, kind in get_type_hints(Decoding).items()
        if name not in ("batch_size", "seed")
    }
    values: dict[str, list[Any]] = {}
    for option in options:
        name, _, listed = option.partition("=")
        if name not in kinds:
            raise InputError(f"--grid {option}: expected such as num_beams=1,4, of {', '.join(kinds)}.")
        try:
            read = {"true": True, "false": False}.__getitem__ if kinds[name] is bool else kinds[name]
            values[name] = [read(word.lower()) for word in listed.split(",")]
        except (ValueError, KeyError):
            raise InputError(f"--grid {option}: expected {kinds[name].__name__}s with commas between.") from None
    if "length_penalty" in values and {*values.get("num_beams", [decoding.num_beams])} == {1}:
        raise InputError("--grid length_penalty: has no effect without beams; add num_beams=4.")
    if {"temperature", "top_p"} & values.keys() and not any(values.get("do_sample", [decoding.do_sample])):
        raise InputError("--grid temperature and top_p: have no effect without --do_sample true.")
    grid: dict[str, Decoding] = {}
    for combination in product(*values.values()):
        changes = dict(zip(values, combination, strict=True))
        own = decoding  # without what has no effect in this combination
        if changes.get("num_beams") == 1:
            own = replace(own, length_penalty=None)
        if changes.get("do_sample") is False:
            own = replace(own, temperature=1.0, top_p=1.0)
        if changes.get("num_beams", decoding.num_beams) == 1:
            changes.pop("length_penalty", None)
        if not changes.get("do_sample", decoding.do_sample):
            changes = {name: value for name, value in changes.items() if name not in ("temperature", "top_p")}
        grid["-".join(f"{name}={value}" for name, value in changes.items())] = replace(own, **changes)
    return grid


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    *,
    end_token_id: int,
    max_new_tokens: int,
    decoding: Decoding | None = None,
    description: str | None = None,
    on_text: Callable[[int, str], None] | None = None,
    others: Sequence[Member] = (),
    weights: Sequence[float] = (1.0,),
    places: Sequence[int] | None = None,
) -> list[str]:
    """Generates one text for each prompt, cut at the end token; several processes share the prompts.

    Args:
        prompts: Token ids of each prompt (P tokens, unpadded); batches are padded on the left, an encoder's on the
            right.
        max_new_tokens: Longest completion (C tokens).
        description: Shown with a progress bar, or None for none.
        on_text: Called with the index of a prompt and its text when its batch is done, in the process that made it.
        others: Further models of the same tokens, whose distributions are averaged with the model's at each token.
        weights: One for the model and one for each of the others; they sum to 1.
        places: What tells the prompts apart when sampling, by default their indices: with the seed they decide the
            noise of each, whatever is generated beside it.

    Returns:
        The texts in the order of the prompts, without special tokens and outer spaces.
    """
    encoder_decoder = model.config.is_encoder_decoder
    decoding = (decoding or Decoding()).for_model(model)
    config = _config_of(decoding, model, max_new_tokens, end_token_id, tokenizer.pad_token_id)
    state = PartialState()
    sharded = state.num_processes > 1 and is_sharded(model)
    plain = not (encoder_decoder or others or sharded or decoding.no_repeat_ngram_size or decoding.num_beams != 1)
    plain = plain and not any(getattr(model.generation_config, name, None) for name in OWN_RULES)
    every = [model, *(other.model for other in others)]
    inner = model.get_base_model() if isinstance(model, PeftModel) else model  # not in the trainer's autocast
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), prompts[i]))  # equal ones side by side
    order += order[-1:] * (-len(order) % state.num_processes)  # with sharded weights all processes generate together
    longest = [len(prompts[i]) + max_new_tokens for i in order[state.num_processes - 1 :: state.num_processes]]
    order = order[state.process_index :: state.num_processes]
    texts: list[tuple[int, str]] = []
    with ExitStack() as restored, Progress(description, total=len(order)) as progress, torch.no_grad():
        restored.callback(model.train, model.training)
        model.eval()
        for one in every:
            restored.enter_context(head_of_few(one))
        for part in batches(longest, decoding, BATCH_TOKENS if sharded or decoding.batch_size else batch_tokens(every)):
            rows = order[part]
            side = "right" if encoder_decoder else "left"
            batch, *further = (
                tokenizer.pad({"input_ids": [own[i] for i in rows]}, padding_side=side, return_tensors="pt").to(
                    model.device
                )
                for own in (prompts, *(other.prompts for other in others))
            )
            before = 1 if encoder_decoder else batch.input_ids.shape[1]  # the decoder's start token, or the prompt
            processors: list[LogitsProcessor] = []
            if others:
                members = [other.model for other in others]
                processors.append(AveragedDistributions(members, further, weights, before))
            most = [_limit(decoding, len(prompts[i]), max_new_tokens) for i in rows]
            if min(most) < max_new_tokens:
                processors.append(EndAtLimit(most, end_token_id, before))
            numbers = None
            if decoding.do_sample:
                in_run = [i if places is None else places[i] for i in rows]
                numbers = noise(decoding.seed, in_run, max_new_tokens)
                processors.append(Sampling(numbers, decoding, before))
            cache = prefill(inner, batch.input_ids, batch.attention_mask) if plain else None
            plain = cache is not None  # for what cannot be read so is not tried again
            if cache is not None:
                last, choose = batch.input_ids[:, -1:], chooser(decoding, end_token_id, numbers)
                ended = decode(inner, last, batch.attention_mask, cache, choose, end_token_id, most)
            else:
                output = model.generate(
                    **batch, generation_config=config, logits_processor=processors,
                    synced_gpus=sharded,  # transformers 5.23 does not see that accelerate's FSDP2 has sharded them
                )  # fmt: skip
                ended = enumerate(output[:, before:].tolist())  # B x C
            for row, completion in ended:
                ids = completion[: completion.index(end_token_id)] if end_token_id in completion else completion
                texts.append((rows[row], tokenizer.decode(ids, skip_special_tokens=True).strip()))
                progress.advance(1)
            if on_text:
                for made in texts[-len(rows) :]:  # not as each ends: so after a kill the batches are the same ones
                    on_text(*made)
    return [text for _, text in sorted(dict(gather_object(texts)).items())]


def _config_of(
    decoding: Decoding, model: PreTrainedModel, max_new_tokens: int, end_token_id: int, pad_token_id: int
) -> GenerationConfig:
    starts_with_language = model.config.is_encoder_decoder and model.generation_config.forced_bos_token_id is not None
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        # An end token at once would be an empty summary; the language code that mBART's begin with is none yet.
        min_new_tokens=2 if starts_with_language else 1,
        do_sample=False,  # `Sampling` samples: it leaves one token
        num_beams=decoding.num_beams,
        length_penalty=decoding.length_penalty,
        no_repeat_ngram_size=decoding.no_repeat_ngram_size,
        repetition_penalty=1.0,  # what is left unset comes from the model's own generation_config.json
        eos_token_id=end_token_id,
        pad_token_id=pad_token_id,
    )


def _limit(decoding: Decoding, prompt_tokens: int, max_new_tokens: int) -> int:
    """Tokens that a summary may have, by its prompt's length where that is asked for."""
    if not decoding.max_new_tokens_ratio:
        return max_new_tokens
    return min(max_new_tokens, max(SHORTEST_LIMIT, math.ceil(decoding.max_new_tokens_ratio * prompt_tokens)))


def batch_tokens(models: Sequence[PreTrainedModel]) -> int:
    """Tokens of a batch whose size is not given: `BATCH_TOKENS`, or fewer where their KV cache would fill the memory.

    It gets two fifths of what the weights leave of a GPU, or of a process's share of the machine, by its size, so that
    batches are the same ones after a kill.
    """
    if models[0].device.type == "cuda":
        memory = torch.cuda.get_device_properties(models[0].device).total_memory
    else:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    each = 0
    for model in models:
        for layer in model.config.get_text_config().per_layer_config:  # Gemma 4 has two kinds
            heads = getattr(layer, "num_key_value_heads", None) or getattr(layer, "num_attention_heads", None)
            if not isinstance(heads, int):  # it keeps something else
                return BATCH_TOKENS
            size = getattr(layer, "head_dim", None) or layer.hidden_size // layer.num_attention_heads
            each += 2 * heads * size * model.dtype.itemsize
    weights = sum(weight.nbytes for model in models for weight in model.parameters())
    return min(BATCH_TOKENS, int(0.4 * (memory - weights)) // each)


def batches(lengths: list[int], decoding: Decoding, tokens: int) -> Iterator[slice]:
    """What is summarised together: `batch_size` at a time, or else as many as have `tokens`, each beam counted.

    On two CPU cores (bfloat16) Gemma 3 270M writes summaries of 128 dialogues of DialogSum in 62 s 8 at a time, in 45 s
    at 16, 32 s at 32 and 26 s at 64; reading the dialogues takes another 25 s.

    Args:
        lengths: Of prompt and longest summary, in tokens, in ascending order.
    """
    start = 0
    while start < len(lengths):
        end = start + (decoding.batch_size or 1)
        while decoding.batch_size is None and end < len(lengths):
            if (end + 1 - start) * lengths[end] * (decoding.num_beams or 1) > tokens:
                break
            end += 1
        yield slice(start, end)
        start = end


def draw(logits: Tensor, numbers: Tensor, decoding: Decoding) -> Tensor:
    """Of each row (N x V) the token that its number (N) draws, at the decoding's temperature and top_p: N x 1."""
    if decoding.top_p < 1:
        return inverse_cdf_sample(
            TopPLogitsWarper(decoding.top_p)(None, logits.float() / decoding.temperature), numbers
        )
    return inverse_cdf_sample(logits, numbers, decoding.temperature)


def chooser(decoding: Decoding, end_token_id: int, numbers: Tensor | None) -> Choose:
    """What `decode` chooses tokens by: this noise (B x C), or the likeliest. An end token is never the first."""

    def choose(logits: Tensor, rows: list[int], length: int) -> Tensor:
        if length == 0:
            logits[:, end_token_id] = -torch.inf
        return logits.argmax(-1, True) if numbers is None else draw(logits, numbers[rows, length], decoding)

    return choose


class EndAtLimit(LogitsProcessor):
    """Allows nothing but the end token once a summary has as many tokens as its dialogue grants it.

    Args:
        most: Tokens granted to each row of the batch (B).
        prompt_tokens: P of the batch.
    """

    def __init__(self, most: list[int], end_token_id: int, prompt_tokens: int) -> None:
        self._most, self._end, self._prompt_tokens = most, end_token_id, prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """R x V, R = B times beams."""
        beams = len(scores) // len(self._most)
        full = torch.tensor(self._most, device=scores.device).repeat_interleave(beams)
        full = full <= input_ids.shape[1] - self._prompt_tokens
        end = scores[:, self._end].clone()
        scores = scores.masked_fill(full[:, None], -torch.inf)
        # In its own place: a beam that ends here keeps the score that ending has.
        scores[:, self._end] = torch.where(full & end.isneginf(), 0.0, end)
        return scores


class Sampling(LogitsProcessor):
    """Leaves each row the one token that its noise draws, at the decoding's temperature and top_p.

    So a sample does not depend on its batch, nor on whether the run was killed before.

    Args:
        numbers: `noise` (B x C).
        prompt_tokens: P of the batch.
    """

    def __init__(self, numbers: Tensor, decoding: Decoding, prompt_tokens: int) -> None:
        self._numbers, self._decoding, self._prompt_tokens = numbers, decoding, prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """B x V."""
        tokens = draw(scores, self._numbers[:, input_ids.shape[1] - self._prompt_tokens], self._decoding)
        return torch.full_like(scores, -torch.inf, dtype=torch.float32).scatter(1, tokens, 0.0)
