"""What is measured on held-out dialogues while a model is trained: loss by token, and ROUGE of what it writes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import EvalPrediction, PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers.trainer_utils import EvalLoopOutput

from alignment.generation import Decoding, generate


@dataclass
class HeldOut:
    """Dialogues to summarise at each evaluation, and what scores the summaries."""

    prompts: list[list[int]]
    references: list[list[str]]
    score: Callable[[list[str], list[list[str]]], float]
    end_token_id: int
    max_new_tokens: int

    def rouge(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> float:
        """The score of the summaries that the model writes for them now."""
        texts = generate(
            model,
            tokenizer,
            self.prompts,
            end_token_id=self.end_token_id,
            max_new_tokens=self.max_new_tokens,
            decoding=Decoding(batch_size=batch_size),
        )
        return self.score(texts, self.references)


class HeldOutRouge(Trainer):
    """A trainer whose evaluation also writes and scores summaries; comes before the library's trainer among the bases.

    Attributes:
        held_out: Dialogues to summarise, and what scores them; None for none.
    """

    held_out: HeldOut | None = None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Held-out loss and, where there are held-out dialogues, `eval_rouge` of the summaries written for them."""
        output = super().evaluation_loop(*args, **kwargs)
        if self.held_out is not None:
            model, batch_size = self.accelerator.unwrap_model(self.model), self.args.per_device_eval_batch_size
            output.metrics["eval_rouge"] = self.held_out.rouge(model, self.processing_class, batch_size)
        return output


def mean_over_tokens(rows: EvalPrediction) -> dict[str, float]:
    """The mean held-out loss a token, from each row's summed loss and number of supervised tokens."""
    return {"loss": float(np.sum(rows.predictions) / np.sum(rows.label_ids))}
