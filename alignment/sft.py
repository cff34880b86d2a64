"""Supervised fine-tuning on dialogues: TRL's `SFTTrainer`, with less work for the same losses.

Departs from TRL 1.16 in three ways. The LM head is computed where a label is and nowhere else: off the GPU TRL
computes it at every position, and a summary is a sixth of the tokens. The held-out loss is the mean over tokens, not
over batches, so that it does not change with their size or the number of processes. And evaluation also writes
summaries, scores them, and shows one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.state import is_initialized
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTTrainer

from alignment.arguments import OF_ADAPTER, ModelArguments, SFTArguments
from alignment.dialogue import (
    encode_example,
    encode_prompt,
    end_token_id,
    fit_records,
    instructions_for,
    prompt_for,
)
from alignment.errors import InputError
from alignment.head import SCALES, loss_in_head
from alignment.held_out import HeldOut, HeldOutRouge, SummaryBefore, tell_of_longer
from alignment.progress import TrainingProgress
from alignment.records import Record
from alignment.run import settings_of
from alignment.training import ResumableTrainer, add_callbacks, return_freed_memory


def check_goes_on(settings: dict[str, Any], before: dict[str, Any]) -> None:
    """Holds that phase 2 asks for no other adapter than the one it trains on.

    Args:
        before: The settings that this one was made with.

    Raises:
        InputError: It asks for another, which is neither that nor the default.
    """
    defaults = settings_of(ModelArguments())
    for name in sorted(OF_ADAPTER & settings.keys() & before.keys()):
        if settings[name] not in (before[name], defaults[name]):
            raise InputError(
                f"--{name} {settings[name]}: phase 1 was trained with {before[name]}, and phase 2 goes on from its "
                f"adapter. Give --{name} {before[name]}, or begin with phase 1 in another --output_dir."
            )


@dataclass
class Encoded:
    """The dialogues of a phase in one prompt form, as `make_trainer` takes them."""

    train: list[dict[str, list[int]]]
    evaluated: list[dict[str, list[int]]]  # held out, for their loss
    held_out: HeldOut | None  # the first of these, to be summarised


def encode(
    train: list[Record],
    held_out: list[Record],
    phase: int,
    form: str,
    tokenizer: PreTrainedTokenizerBase,
    args: SFTArguments,
    max_new_tokens: int,
    score: Callable[[list[str], list[list[str]]], float],
    context: int | None = None,
    show: Callable[[int, str], None] | None = None,
) -> Encoded:
    """Encodes fitted records for a phase: examples to train on, held-out ones, and the prompts of `rouge_eval_rows`.

    Args:
        score: What scores summaries by their references.
        show: What shows the summary of the first held-out dialogue, with the step it was written at.
        context: Tokens that the model takes, of which those prompts leave `max_new_tokens`; None for no bound. A
            dialogue whose first turn is longer is not among them.
    """
    which = args.phase2_instructions if phase == 2 else "first"
    sample = held_out[: args.rouge_eval_rows]
    if sample and context:
        sample, _ = fit_records(sample, form, tokenizer, context, max_new_tokens, bad_rows="skip")
    prompts = [prompt_for(record, phase, form, tokenizer) for record in sample]
    examples = [
        encode_example(record, instruction, form, tokenizer)
        for record in train
        for instruction in instructions_for(record, phase, which, args.seed)
    ]
    tell_of_longer(examples, max_new_tokens)
    read = [encode_example(record, instructions_for(record, phase)[0], form, tokenizer) for record in held_out]
    return Encoded(
        train=examples,
        evaluated=sorted(read, key=lambda example: len(example["input_ids"])),  # else a third would be padding
        held_out=HeldOut(
            prompts=[encode_prompt(prompt, form, tokenizer) for prompt in prompts],
            references=[list(record.references) for record in sample],
            score=score,
            end_token_id=end_token_id(form, tokenizer),
            max_new_tokens=max_new_tokens,
            show=show,
        )
        if sample
        else None,
    )


class DialogueSFTTrainer(ResumableTrainer, HeldOutRouge, SFTTrainer):
    """TRL's `SFTTrainer` on examples of `input_ids` and `labels`, with the head at supervised positions only."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.device.type == "cpu":
            return_freed_memory()
        config = self.model.config.get_text_config()
        # TRL sees to scaled or capped logits.
        plain_head = all(getattr(config, name, None) in (None, 1, 1.0) for name in SCALES)
        plain_head &= isinstance(self.model.get_output_embeddings(), nn.Linear)  # without an adapter of its own
        plain_loss = self.args.loss_type == "nll" and not self.args.label_smoothing_factor
        self._own_loss = plain_head and plain_loss and not self.aux_loss_enabled

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean loss over the supervised tokens of the whole update (`num_items_in_batch`, all processes)."""
        if not self._own_loss or return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = self._loss_sum(model, inputs)
        if num_items_in_batch is None:
            return loss / (inputs["labels"][:, 1:] != -100).sum()
        if self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # DDP averages the gradients, the token count is a sum
        return loss / num_items_in_batch

    def _loss_sum(self, model: nn.Module, inputs: dict[str, Tensor], by_row: bool = False) -> Tensor:
        rest = {key: value for key, value in inputs.items() if key != "labels"}
        with loss_in_head(self.accelerator.unwrap_model(model).get_output_embeddings(), inputs["labels"], by_row):
            return model(**rest, use_cache=False).logits

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Summed loss and supervised tokens of each row (B), as `mean_over_tokens` takes them."""
        if not self._own_loss:
            return super().prediction_step(model, inputs, True, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            losses = self._loss_sum(model, inputs, by_row=True)
        return None, losses, (inputs["labels"][:, 1:] != -100).sum(1)


def make_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    args: SFTArguments,
    encoded: Encoded,
    description: str,
) -> DialogueSFTTrainer:
    """A trainer on examples that are tokenised and fitted already, with progress, early stopping and held-out ROUGE."""
    args.dataset_kwargs = {"skip_prepare_dataset": True}
    # TRL would turn a mixture of experts' own loss on, and leave it on while summaries are written, where it fails.
    args.router_aux_loss_coef = args.router_aux_loss_coef or 0.0
    if is_initialized():  # by an earlier trainer of this process, whose DeepSpeed serves this one as well
        args.deepspeed_plugin = None  # accelerate takes no second one
    trainer = DialogueSFTTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(encoded.train),
        eval_dataset=Dataset.from_list(encoded.evaluated),
        processing_class=tokenizer,
        held_out=encoded.held_out,
    )
    add_callbacks(trainer, TrainingProgress(description), args.early_stopping_patience)
    if trainer.held_out and trainer.held_out.show:
        trainer.add_callback(SummaryBefore(trainer))
    return trainer
