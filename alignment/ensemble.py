"""Several models as one: an average of their LoRA weights, or of what they say the next token is."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from peft import PeftConfig
from torch import Tensor
from transformers import BatchEncoding, LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase

from alignment import models, pretrained
from alignment.arguments import ModelArguments
from alignment.errors import InputError


def shares(weights: list[float] | None, members: int) -> list[float]:
    """Weights that sum to 1, equal where none are given.

    Raises:
        InputError: They are not as many as there are members, or one is not above 0.
    """
    weights = weights or [1.0] * members
    if len(weights) != members or min(weights) <= 0:
        raise InputError(f"--weights {' '.join(map(str, weights))}: expected {members} numbers above 0, one a model.")
    return [weight / sum(weights) for weight in weights]


def load_average(
    folders: list[str], weights: list[float], config: ModelArguments
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """One model whose LoRA update is the weighted mean of several adapters' updates, and the first one's tokenizer.

    Exactly the mean of the products BA, whatever their ranks: PEFT's `cat`. It costs no more than one adapter.

    Raises:
        InputError: A folder without an adapter, adapters for different bases, or of a kind that does not add up.

    Source: model soups (arXiv 2203.05482), section 3; for LoRA, `LoraModel.add_weighted_adapter` of PEFT.
    """
    base = pretrained.base_of(folders[0])
    for folder in folders:
        if (other := pretrained.base_of(folder)) not in (None, base):
            raise InputError(
                f"--combine lora_average: {folders[0]} is for {base}, {folder} for {other}, and adapters of different "
                "bases have no mean. Use --combine mbr, which compares texts."
            )
        models.check_adapter(folder, base or "", "--combine lora_average: --model")
        lora = PeftConfig.from_pretrained(folder)
        for kind in ("use_dora", "use_rslora", "modules_to_save", "lora_bias", "trainable_token_indices"):
            if getattr(lora, kind, None):
                raise InputError(f"--combine lora_average: {folder} was trained with {kind}, which does not add up.")
    tokenizer = pretrained.load_tokenizer(folders[0])
    config.model_name_or_path = str(base)
    model = models.add_adapter(models.load_base(config), folders[0])
    names = ["default", *map(str, range(1, len(folders)))]
    try:
        for name, folder in zip(names[1:], folders[1:], strict=True):
            model.load_adapter(folder, adapter_name=name, torch_device="cpu")
        model.add_weighted_adapter(names, weights, "average", combination_type="cat")
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{folder}: this adapter does not fit beside {folders[0]}: {error}") from error
    model.set_adapter("average")
    for name in names:
        model.delete_adapter(name)
    if not models.is_quantised(model):
        model = model.to(PartialState().device).merge_and_unload()
    return model.eval(), tokenizer


class Member(NamedTuple):
    """A model that takes part in another's generation, with prompts of its own."""

    model: PreTrainedModel
    prompts: list[list[int]]  # token ids, unpadded, for the same dialogues


class AveragedDistributions(LogitsProcessor):
    """Makes the next token's distribution the weighted mean of those of several models.

    Each model reads its own prompts and keeps its own cache, which follows the beams: a row goes on from the row before
    it with the same tokens, and two rows with the same tokens have the same cache. What the generation forbids (an end
    token at once, an n-gram twice) stays forbidden.

    Args:
        batches: For each further model its padded prompts of this batch (B x P).
        weights: One for the model that generates, then one for each further model; they sum to 1.
        prompt_tokens: P of the model that generates.

    Source: Sutskever et al. 2014 (arXiv 1409.3215), table 1, ensembles of translation models.
    """

    def __init__(
        self,
        members: Sequence[PreTrainedModel],
        batches: Sequence[BatchEncoding],
        weights: Sequence[float],
        prompt_tokens: int,
    ) -> None:
        self._readers = [_Reader(*pair) for pair in zip(members, batches, strict=True)]
        self._weights, self._prompt_tokens = weights, prompt_tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Logits or log-probabilities (R x V, R = B times beams) -> the log of the mean probabilities."""
        completions = input_ids[:, self._prompt_tokens :]
        mean = self._weights[0] * scores.float().softmax(-1)
        for reader, weight in zip(self._readers, self._weights[1:], strict=True):
            logits = reader.next_logits(completions).masked_fill(scores.isneginf(), -torch.inf)
            mean += weight * logits.softmax(-1)
        return mean.log()


class _Reader:
    """One further model, which follows the completions that are being written."""

    def __init__(self, model: PreTrainedModel, batch: BatchEncoding) -> None:
        self._model, self._batch = model, batch
        self._completions = torch.empty(0)  # of the call before
        self._cache: Any = None

    def next_logits(self, completions: Tensor) -> Tensor:
        """R x C tokens, one more than at the last call -> R x V."""
        rows = len(completions)
        if completions.shape[1] == 0:
            beams = rows // len(self._batch.input_ids)
            tokens, self._mask = (
                self._batch[name].repeat_interleave(beams, 0) for name in ("input_ids", "attention_mask")
            )
            self._group = torch.arange(rows, device=completions.device) // beams
            positions = (self._mask.cumsum(1) - 1).clamp(min=0)
        else:
            same = (completions[:, None, :-1] == self._completions[None]).all(2)
            same &= self._group[:, None] == self._group[None]
            self._cache.reorder_cache(same.int().argmax(1))
            tokens = completions[:, -1:]
            self._mask = torch.cat([self._mask, torch.ones_like(tokens)], 1)
            positions = self._mask.sum(1, keepdim=True) - 1
        self._completions = completions
        output = self._model(
            input_ids=tokens, attention_mask=self._mask, position_ids=positions, past_key_values=self._cache,
            use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        self._cache = output.past_key_values
        return output.logits[:, -1].float()


def check_alike(members: dict[str, tuple[PreTrainedModel, PreTrainedTokenizerBase]]) -> None:
    """Holds that models, by name, are decoders that write in the same tokens."""
    (first, (_, one)), *_ = members.items()
    for name, (model, other) in members.items():
        if model.config.is_encoder_decoder:
            raise InputError(f"--combine distributions: {name} is an encoder-decoder, and only decoders mix. Use mbr.")
        sizes = {each.config.get_text_config().vocab_size for each in (members[first][0], model)}
        if other.get_vocab() != one.get_vocab() or other.eos_token_id != one.eos_token_id or len(sizes) > 1:
            raise InputError(
                f"--combine distributions: {first} and {name} have different tokenizers ({len(one)} and {len(other)} "
                "tokens), so their next tokens are not the same things. Use --combine mbr, which compares texts."
            )
