"""Held-out dialogues while a model is trained: loss by token, ROUGE of what it writes for them, and one summary."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from alignment.generation import Decoding, generate
from alignment.run import say


@dataclass
class HeldOut:
    """Dialogues to summarise at each evaluation, what scores the summaries, and what shows the first, with its step.

    Without `show` none is shown.
    """

    prompts: list[list[int]]
    references: list[list[str]]
    score: Callable[[list[str], list[list[str]]], float]
    end_token_id: int
    max_new_tokens: int
    show: Callable[[int, str], None] | None = None


def tell_of_longer(examples: list[dict[str, list[int]]], max_new_tokens: int) -> None:
    """Says how many summaries to learn are longer than what the model will be let write."""
    tokens = [sum(label != -100 for label in example["labels"]) for example in examples]
    if longer := sum(count > max_new_tokens for count in tokens):
        say(
            f"{longer} of {len(examples)} summaries to learn from are longer than what it will write: the longest has "
            f"{max(tokens)} tokens, --max_new_tokens is {max_new_tokens}."
        )


class HeldOutRouge(Trainer):
    """A trainer whose evaluation also writes and scores summaries; comes before the library's trainer among the bases.

    Args:
        held_out: Dialogues to summarise and score at each evaluation, logged as `eval_rouge`; None for none.
    """

    def __init__(self, *args: Any, held_out: HeldOut | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.compute_metrics, self.held_out = mean_over_tokens, held_out

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Held-out loss and, where there are held-out dialogues, `eval_rouge` of the summaries written for them."""
        output = super().evaluation_loop(*args, **kwargs)
        if self.held_out is not None:
            output.metrics["eval_rouge"] = self.held_out.score(self.summarize(), self.held_out.references)
        return output

    def summarize(self, rows: int | None = None) -> list[str]:
        """What the model writes now for the held-out dialogues, or the first few of them."""
        assert self.held_out is not None
        model = self.accelerator.unwrap_model(self.model)
        # A CPU writes as many together as there is room for: 16 of quickstart's take 0.6 of the time of two batches.
        batch_size = None if model.device.type == "cpu" else self.args.per_device_eval_batch_size
        texts = generate(
            model,
            self.processing_class,
            self.held_out.prompts[:rows],
            end_token_id=self.held_out.end_token_id,
            max_new_tokens=self.held_out.max_new_tokens,
            decoding=Decoding(batch_size=batch_size),
        )
        if self.held_out.show:
            self.held_out.show(self.state.global_step, texts[0])
        return texts


class SummaryBefore(TrainerCallback):
    """Has a trainer show what the model writes before it has learnt anything."""

    def __init__(self, trainer: HeldOutRouge) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """By now the weights lie where they are trained, on several processes too."""
        if state.global_step == 0 and not args.eval_on_start:  # which shows it too
            self._trainer.summarize(rows=1)


def mean_over_tokens(rows: EvalPrediction) -> dict[str, float]:
    """The mean held-out loss a token, from each row's summed loss and number of supervised tokens."""
    return {"loss": float(np.sum(rows.predictions) / np.sum(rows.label_ids))}
