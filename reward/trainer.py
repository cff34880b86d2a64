"""Training a reward model on pairs: TRL's `RewardTrainer`, with less work and the head saved apart.

Departs from TRL 1.16 in two ways. All pairs of a dialogue are read together: the dialogue once, and after it each
summary once, in however many pairs it stands; and each dialogue counts alike. And the head is saved beside the adapter,
not in it, so that the adapter loads as one of several on a base.

Source: all comparisons of a prompt as one example, Ouyang et al. 2022 (arXiv 2203.02155), section 3.5; the margin,
Touvron et al. 2023 (arXiv 2307.09288), section 3.2.2.
"""

from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from trl import RewardTrainer

from alignment import dialogue
from alignment.arguments import RewardArguments
from alignment.ppo.roles import HEAD
from alignment.progress import TrainingProgress
from alignment.records import Record
from alignment.training import ResumableTrainer, add_callbacks
from reward.model import Batch, encode_summaries, head_of, load_head, make_batch, raw_scores
from reward.pairs import Pair


def make_examples(
    pairs: list[Pair],
    records: list[Record],
    max_tokens: int,
    form: str,
    phase: int,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[list[dict[str, Any]], list[dialogue.Shortened]]:
    """One example for each dialogue with pairs: token ids of its prompt and of each pair's summaries, and the margins.

    A dialogue that is too long with its longest summary loses whole turns; the second list says which, and what.
    One of which not even the first turn fits is left out.
    """

    def tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False).input_ids)

    by_id: dict[str, list[Pair]] = {record.id: [] for record in records}
    for pair in pairs:
        by_id[pair.id].append(pair)
    paired = [
        replace(record, references=(max((text for pair in own for text in (pair.chosen, pair.rejected)), key=tokens),))
        for record in records
        if (own := by_id[record.id])
    ]
    fitted, shortened = dialogue.fit_records(paired, form, tokenizer, max_tokens, bad_rows="skip")
    examples = []
    for record in fitted:
        prompt = dialogue.encode_prompt(dialogue.prompt_for(record, phase, form, tokenizer), form, tokenizer)
        own = by_id[record.id]
        chosen = encode_summaries([pair.chosen for pair in own], form, tokenizer)
        rejected = encode_summaries([pair.rejected for pair in own], form, tokenizer)
        margins = [pair.margin for pair in own]
        examples.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected, "margin": margins})
    return examples, shortened


@dataclass
class PairCollator:
    """Examples of `make_examples` -> a batch of `make_batch`, with the pairs as places among its summaries."""

    tokenizer: PreTrainedTokenizerBase
    pad_to_multiple_of: int | None = None

    def __call__(self, examples: list[dict[str, Any]]) -> Batch:
        """Each summary of a dialogue once; `chosen`, `rejected` (K, of N) and `margin` (K) for all K pairs."""
        groups, chosen, rejected, start = [], [], [], 0
        for example in examples:
            better, worse = (list(map(tuple, example[name])) for name in ("chosen_ids", "rejected_ids"))
            places = {ids: start + i for i, ids in enumerate(dict.fromkeys(better + worse))}
            groups.append(list(map(list, places)))
            chosen += [places[ids] for ids in better]
            rejected += [places[ids] for ids in worse]
            start += len(places)
        prompts = [example["prompt_ids"] for example in examples]
        margins = [margin for example in examples for margin in example["margin"]]
        return make_batch(prompts, groups, self.tokenizer, self.pad_to_multiple_of) | {
            "chosen": torch.tensor(chosen), "rejected": torch.tensor(rejected), "margin": torch.tensor(margins),
        }  # fmt: skip


def _mean_by(owner: Tensor, values: Tensor) -> Tensor:
    """The mean of the values of each owner (K of both), for the owners in the batch."""
    _, index = owner.unique(return_inverse=True)
    sums = torch.zeros(int(index.max()) + 1, device=values.device).index_add(0, index, values)
    return sums / index.bincount()


class DialogueRewardTrainer(ResumableTrainer, RewardTrainer):
    """TRL's `RewardTrainer` on examples of a dialogue: `prompt_ids`, and for each pair `chosen_ids`, `rejected_ids`."""

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean over dialogues of the mean loss of their pairs, so that each dialogue counts alike."""
        scores, owner = raw_scores(model, inputs), inputs["owner"][inputs["chosen"]]  # N, K
        chosen, rejected = scores[inputs["chosen"]], scores[inputs["rejected"]]
        losses = -F.logsigmoid(chosen - rejected - inputs["margin"])
        if self.args.center_rewards_coefficient is not None:
            losses = losses + self.args.center_rewards_coefficient * (chosen + rejected) ** 2
        loss = _mean_by(owner, losses)
        right = _mean_by(owner, ((chosen - rejected).detach().sign() + 1) / 2)
        figures = {"accuracy": right, "margin": _mean_by(owner, (chosen - rejected).detach())}
        for name, values in figures.items():  # of each dialogue: processes have as many, but not as many pairs
            own = self._metrics["train" if self.model.training else "eval"][name]
            own += self.accelerator.gather_for_metrics(values).tolist()
        return (loss.mean(), {"scores": scores}) if return_outputs else loss.mean()

    def _track_num_input_tokens(self, inputs: Batch) -> None:
        mask = torch.cat([inputs["attention_mask"].flatten(), inputs["summary_mask"].flatten()])
        super()._track_num_input_tokens({"input_ids": mask, "attention_mask": mask})

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return
        state = self.accelerator.unwrap_model(self.model).state_dict() if state_dict is None else state_dict
        name = next(name for name in state if name.endswith("score.weight"))
        save_file({"weight": state[name].contiguous()}, Path(output_dir or str(self.args.output_dir)) / HEAD)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_head(self.model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        load_head(self.model, str(self.state.best_model_checkpoint))


def make_trainer(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    args: RewardArguments,
    folder: Path,
    train_examples: list[dict[str, Any]],
    eval_examples: list[dict[str, Any]],
) -> DialogueRewardTrainer:
    """A trainer on examples that are tokenised and fitted already, with progress and early stopping."""
    args = copy(args)
    args.output_dir = str(folder)
    args.max_length = None  # for TRL, which would measure lists of lists
    args.remove_unused_columns, args.prediction_loss_only = False, True
    trainer = DialogueRewardTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_list(train_examples),
        eval_dataset=Dataset.from_list(eval_examples),
        processing_class=tokenizer,
        data_collator=PairCollator(tokenizer, args.pad_to_multiple_of),
    )
    head_of(trainer.model).to(torch.float32)  # TRL puts what is trained on quantised weights into bfloat16
    add_callbacks(trainer, TrainingProgress("Reward model"), args.early_stopping_patience)
    return trainer
