"""`PPOTrainer`: proximal policy optimisation of a language model on `transformers.Trainer`.

An update samples completions for `rollout_batch_size` prompts, has them scored, and goes through them `num_ppo_epochs`
times in steps of `per_device_train_batch_size` x `gradient_accumulation_steps` x processes. To the trainer beneath, a
rollout is where its batches come from; checkpoints fall between updates, so none holds a half-used rollout.

Departs from trl 1.12's `PPOTrainer`: one base for all roles (see roles.py); the losses are means over all tokens of a
step, not over each micro-batch, so that they do not depend on how it is split; advantages are whitened over all
processes; prompts are read once an update, unless told otherwise, without a gradient; and see math.py for the score.
"""

import json
import time
from collections.abc import Callable, Iterator
from copy import copy
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, TrainerControl, set_seed

from alignment import pretrained
from alignment.errors import InputError
from alignment.generation import Decoding, generate
from alignment.ppo import math as ppo
from alignment.ppo.config import PPOConfig, count_steps
from alignment.ppo.guards import PolicyRests, RewardHacking, keep_best
from alignment.ppo.progress import PPOProgress
from alignment.ppo.roles import POLICY, Roles
from alignment.ppo.rollout import (
    Repeatable,
    Scorer,
    concatenated,
    encode_prompts,
    judge,
    prefill,
    sample,
    score,
    share_of,
)
from alignment.ppo.vllm import VLLM
from alignment.run import last_checkpoint, say, step_of, write_json
from alignment.training import ResumableTrainer, add_callbacks, refuse_sharding

# Called as a scorer is; figures over all completions, for evaluation.
Metric = Callable[..., dict[str, float]]
STATE = "ppo.json"


class PPOTrainer(ResumableTrainer):
    """Trains a policy by PPO.

    Args:
        model: `Roles`; or a base with an adapter, or without one, which gets its roles here.
        train_dataset: Column `prompt` (a text, or a conversation of messages), and whatever the scorers take.
        scorer: What completions are worth: a function, called as `Scorer` says, or several by name.
        scorer_weights: By name; 1 each by default.
        eval_dataset: Held-out prompts, which are answered greedily at each evaluation.
        metric: The true metric, which is not in the reward: figures of held-out completions, logged as `eval_...`.
        processing_class: By default the tokenizer of the base.
        end_token_id: What ends a completion; by default the tokenizer's end token.
        add_special_tokens: Whether a prompt that is a text gets the tokenizer's begin token and the like.

    Raises:
        InputError: No prompts, one that is too long, or batch sizes that do not divide each other.
    """

    control: TrainerControl

    def __init__(
        self,
        model: Roles | PreTrainedModel | PeftModel,
        args: PPOConfig,
        train_dataset: Dataset,
        scorer: Scorer | dict[str, Scorer],
        scorer_weights: dict[str, float] | None = None,
        eval_dataset: Dataset | None = None,
        metric: Metric | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        end_token_id: int | None = None,
        add_special_tokens: bool = True,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        refuse_sharding()
        args = copy(args)
        set_seed(args.seed)  # before the roles: a new adapter begins at random
        roles = model if isinstance(model, Roles) else Roles(model)
        tokenizer = processing_class or pretrained.load_tokenizer(roles.name_or_path)
        self.scorers = scorer if isinstance(scorer, dict) else {"score": scorer}
        self.scorer_weights = dict.fromkeys(self.scorers, 1.0) | (scorer_weights or {})
        if unknown := self.scorer_weights.keys() - self.scorers:
            raise InputError(f"scorer_weights: {', '.join(unknown)}: expected some of {', '.join(self.scorers)}.")
        self.metric, self.end_token_id = metric, tokenizer.eos_token_id if end_token_id is None else end_token_id
        self.max_new_tokens = args.max_new_tokens or 128
        if eval_dataset is None:
            args.eval_strategy = "no"
        if eval_dataset is None or metric is None:
            args.load_best_model_at_end, args.metric_for_best_model = False, None
        self.num_updates, self.steps_per_update = count_steps(args, len(train_dataset))
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        most = (args.max_length, getattr(roles.config.get_text_config(), "max_position_embeddings", None))
        how = {"tokenizer": tokenizer, "special": add_special_tokens, "new": self.max_new_tokens, "most": most}
        self.prompt_ids = encode_prompts(train_dataset["prompt"], **how)
        self.eval_prompt_ids = encode_prompts(eval_dataset["prompt"], **how) if eval_dataset is not None else []
        args.remove_unused_columns, args.ignore_data_skip = False, True
        super().__init__(
            model=roles, args=args, train_dataset=train_dataset, eval_dataset=eval_dataset, processing_class=tokenizer,
            callbacks=callbacks,
        )  # fmt: skip
        self.roles, self.kl_coef, self._began = roles, args.kl_coef, roles.policy_weights()
        self.vllm = VLLM(args.vllm_url, roles, max(self.prompt_ids, key=len)) if args.vllm_url else None
        self.loss_is_scaled_for_ga = True
        self.scale: tuple[float, float] | None = None  # mean and deviation of the scores in the first rollout
        self._figures: dict[str, float] = {}  # of the rollout, for the log
        self._sums: list[Tensor] = []  # of the steps since
        if metric is not None and args.metric_for_best_model and args.greater_is_better:
            name = f"eval_{args.metric_for_best_model.removeprefix('eval_')}"
            self.add_callback(RewardHacking(name, self.steps_per_update))
        self.add_callback(PolicyRests(args.value_warmup_updates * self.steps_per_update))
        add_callbacks(self, PPOProgress(self.steps_per_update), args.early_stopping_patience)

    # Rollouts

    def get_train_dataloader(self) -> Any:
        """Micro-batches of one rollout after another."""
        return Repeatable(self.batches)

    def batches(self) -> Iterator[dict[str, Any]]:
        """The micro-batches that are still to come, each rollout made when the one before is used up."""
        first = self.state.global_step // self.steps_per_update
        if first == 0 and self.eval_prompt_ids:
            self.evaluate()
        for update in range(first, self.num_updates):
            rollout = self.make_rollout(update)
            if self._figures["kl"] > self.args.max_kl:
                self._go_back(update)
                return
            self._adapt(self._figures["kl"])
            steps = self.steps_per_update // self.args.num_ppo_epochs
            generator = torch.Generator().manual_seed(self.args.seed + update)
            for _ in range(self.args.num_ppo_epochs):
                order = torch.randperm(len(rollout), generator=generator).tolist() if steps > 1 else range(len(rollout))
                size = len(rollout) // steps
                for step in range(steps):
                    chosen = [rollout[i] for i in order[step * size : (step + 1) * size]]
                    tokens = self._sum(torch.stack([batch["completion_mask"].sum() for batch in chosen]).sum())
                    yield from (batch | {"tokens": tokens, "update": update} for batch in chosen)
            for batch in rollout:  # the trainer beneath holds on to the last ones while the next rollout is made
                for prompt in (*(batch["policy_prompts"] or ()), *batch["value_prompts"]):
                    prompt.layers.clear()

    def _go_back(self, update: int) -> None:
        """Ends a run whose policy went too far from the reference, with the best or last checkpoint before that."""
        self.log({f"stopped/{name}": figure for name, figure in self._figures.items()})
        best = Path(self.state.best_model_checkpoint or "checkpoint-0") if self.args.load_best_model_at_end else None
        if best and step_of(best) not in range(1, self.state.global_step):  # the policy that went too far, or none
            best = self.state.best_model_checkpoint = None
        if checkpoint := best or last_checkpoint(Path(str(self.args.output_dir)), before=self.state.global_step):
            self.roles.load(checkpoint)
        say(
            f"Stopped at update {update}: KL {self._figures['kl']:.1f} is above --max_kl {self.args.max_kl}. "
            + (f"The policy is that of {checkpoint.name}. " if checkpoint else "There is no checkpoint to go back to. ")
            + "Lower --learning_rate, or raise --kl_coef."
        )
        self.control.should_training_stop = True

    def make_rollout(self, update: int) -> list[dict[str, Any]]:
        """Samples, scores and judges this process's share of an update; its figures go to the next log."""
        started = time.monotonic()
        args, micro = self.args, self.args.per_device_train_batch_size
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        rows, places = share_of(update, self.prompt_ids, args, process, processes)
        prompts = [self.prompt_ids[row] for row in rows]
        self.roles.eval()
        of_policy = [] if self.vllm and args.reread_prompts else prefill(self.roles, prompts, POLICY, micro)
        how = (prompts, places, args.seed, self.end_token_id, args.temperature, self.max_new_tokens)
        if self.vllm:
            completions = self.vllm.sample(*how)
        else:
            completions = sample(self.roles, *how, of_policy, args.generation_batch_size)
        texts = self._texts(completions)
        if not any(gather_object(texts)):
            raise InputError(
                f"Update {update}: every completion is empty. Lower --learning_rate, or look at the prompts, and at "
                "what the model was trained on: it ends its answers before the first word."
            )
        sampled_seconds = time.monotonic() - started

        of_value = prefill(self.roles, prompts, self.roles.prompt_role, micro)
        with self.roles.knowing(prompts, of_value):
            raw = score(self.scorers, self.train_dataset.select(rows), texts)
        of_policy, pad_id = [] if args.reread_prompts else of_policy, self.processing_class.pad_token_id
        batches = judge(self.roles, prompts, completions, of_policy, of_value, pad_id, micro, args.temperature)

        combined = self._combine(raw)
        ended = torch.tensor([float(ids[-1] == self.end_token_id) for ids in completions])
        of_rows, figures = self._give_credit(batches, combined, ended)
        of_rows = {"score": combined} | of_rows | {f"score/{name}": scores for name, scores in raw.items()}
        means = self._sum(torch.stack([figure.double().sum() for figure in of_rows.values()])) / args.rollout_batch_size
        self._tokens = int(self._sum(torch.tensor(sum(map(len, prompts + completions)))))
        self.state.num_input_tokens_seen += self._tokens
        self._learning_since, self._update_since = time.monotonic(), started
        seconds = {"rollout": self._learning_since - started, "sampling": sampled_seconds}
        figures |= {f"{name}_seconds": round(taken, 3) for name, taken in seconds.items()}
        self._figures = dict(zip(of_rows, means.tolist(), strict=True)) | figures
        return batches

    def _give_credit(
        self, batches: list[dict[str, Any]], combined: Tensor, ended: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Puts advantages and returns into the batches, for what the completions scored (N) and whether they ended (N).

        The first scores of a run settle how all are scaled, and where the value begins.

        Returns:
            Figures of each completion (N), and of the rollout.
        """
        args, micro = self.args, self.args.per_device_train_batch_size
        names = ("completion_mask", "old_log_probs", "ref_log_probs", "entropy", "old_values")
        mask, log_probs, ref_log_probs, entropy, values = (concatenated(batches, name) for name in names)
        relative, begins = ppo.leave_one_out(combined, args.num_generations), self.scale is None
        moments = self._sum(ppo.moments(relative, torch.ones_like(relative, dtype=torch.bool)))
        mean, deviation = self.scale = self.scale or ppo.mean_and_deviation(moments)
        scores = ((relative - mean) / deviation).clamp(-args.score_clip, args.score_clip)
        scores = scores - args.missing_eos_penalty * (1 - ended)
        if begins:
            self._begin_value(scores, values, mask)
        kl = ppo.kl_divergence(log_probs, ref_log_probs, args.kl_estimator) * mask
        rewards = ppo.token_rewards(kl, scores, mask, self.kl_coef)
        advantages, returns = ppo.advantages_and_returns(rewards, values, mask, args.gamma, args.lam)
        advantages = ppo.whiten(advantages, mask, self._sum(ppo.moments(advantages, mask)))
        for start, batch in zip(range(0, len(mask), micro), batches, strict=True):
            its = slice(start, start + micro), slice(batch["completion_mask"].shape[1])
            batch |= {"old_values": values[its], "advantages": advantages[its], "returns": returns[its]}
        of_rows = {"reward": rewards.sum(1), "kl": kl.sum(1), "length_tokens": mask.sum(1), "ended": ended}
        return of_rows, {
            "entropy": float(self._sum((entropy * mask).double().sum()) / self._sum(mask.sum())),
            "explained_variance": ppo.explained_variance(
                self._sum(ppo.moments(returns, mask)), self._sum(ppo.moments(returns - values, mask))
            ),
            "kl_coef": self.kl_coef,
        }

    def _begin_value(self, scores: Tensor, values: Tensor, mask: Tensor) -> None:
        """The value begins as the line through what it says that foresees the first scores best.

        Where scores are far from what the critic foresees, the last token gets all the credit, and the policy learns
        to end sooner or later, whatever it writes. Source: Stiennon et al. 2020 (arXiv 2009.01325), appendix C.2.
        """
        slope, intercept = ppo.fit_line(self._sum(ppo.regression_sums(values, scores, mask)))
        with torch.no_grad():
            self.roles.value_head.weight.mul_(slope)
            self.roles.value_head.bias.mul_(slope).add_(intercept)
        values.mul_(slope).add_(intercept * mask)

    def _adapt(self, kl: float) -> None:
        """The KL coefficient of the next update."""
        if self.args.kl_target is not None:
            self.kl_coef = ppo.adapted_kl_coef(self.kl_coef, kl, self.args.kl_target)
        if kl > self.args.max_kl / 2:
            self.kl_coef *= 2
            say(f"KL {kl:.1f} is above half of --max_kl {self.args.max_kl}: kl_coef is {self.kl_coef:.3g} from now on.")

    def _texts(self, completions: list[list[int]]) -> list[str]:
        ended = [ids[:-1] if ids[-1] == self.end_token_id else ids for ids in completions]
        return [self.processing_class.decode(ids, skip_special_tokens=True).strip() for ids in ended]

    def _combine(self, raw: dict[str, Tensor]) -> Tensor:
        return torch.stack([self.scorer_weights[name] * scores for name, scores in raw.items()]).sum(0)

    def _sum(self, values: Tensor) -> Tensor:
        """The sum over all processes."""
        return self.accelerator.reduce(values.to(self.accelerator.device), reduction="sum").cpu()

    # Learning

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """This micro-batch's share of the mean policy and value loss over the tokens of the step."""
        args, mask = self.args, inputs["completion_mask"]
        names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "policy_prompts", "value_prompts")
        log_probs, entropy, values = model(**{name: inputs[name] for name in names}, temperature=args.temperature)
        of_policy, policy_clipped = ppo.policy_loss(
            log_probs, inputs["old_log_probs"], inputs["advantages"], args.cliprange
        )
        of_value, value_clipped = ppo.value_loss(values, inputs["old_values"], inputs["returns"], args.cliprange_value)
        share = self.accelerator.num_processes / inputs["tokens"].to(mask.device)  # DDP takes the mean of gradients
        policy_loss, value_loss = (of_policy * mask).sum() * share, (of_value * mask).sum() * share
        loss = float(inputs["update"] >= args.value_warmup_updates) * policy_loss + args.vf_coef * value_loss
        with torch.no_grad():
            log_ratio = log_probs - inputs["old_log_probs"]
            per_token = (0.5 * log_ratio**2, log_ratio.exp(), entropy, policy_clipped, value_clipped)
            sums = torch.stack([policy_loss, value_loss, *((values * mask).sum() * share for values in per_token)])
            self._sums.append(sums.double())
        if self._sum((~loss.isfinite()).long()) > 0:
            self._give_up(inputs)
        return loss

    def _give_up(self, inputs: dict[str, Any]) -> None:
        """Saves the batch whose loss is no number, and stops."""
        path = Path(str(self.args.output_dir)) / f"not-finite.{self.accelerator.process_index}.safetensors"
        save_file({name: value.contiguous() for name, value in inputs.items() if isinstance(value, Tensor)}, path)
        raise InputError(
            f"The loss is not finite at step {self.state.global_step}; {path} has the batch. Lower --learning_rate, or "
            "train in another --dtype; checkpoints from before are kept."
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the figures of the rollout, and the means of the steps since, to each line of the loss."""
        if "loss" in logs and self._sums:
            names = ("policy_loss", "value_loss", "approx_kl", "ratio", "step_entropy", "clipped", "value_clipped")
            steps = max(1, len(self._sums) // self.args.gradient_accumulation_steps)
            means = self._sum(torch.stack(self._sums).sum(0)) / steps / self.accelerator.num_processes
            logs |= self._figures | dict(zip(names, means.tolist(), strict=True))
            logs["learning_seconds"] = round(time.monotonic() - self._learning_since, 3)
            logs["tokens_per_second"] = round(self._tokens / (time.monotonic() - self._update_since), 1)
            self._sums = []
        updates = self.state.global_step / self.steps_per_update
        self.state.epoch = updates * self.args.rollout_batch_size / self.args.num_generations / len(self.prompt_ids)
        super().log(logs, start_time)

    def _track_num_input_tokens(self, inputs: dict[str, Any]) -> None:
        """Counted by rollouts."""

    # Evaluation

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Answers the held-out prompts greedily; logs what scorers and metric say, and keeps the texts in a file."""
        if eval_dataset is not None or self.eval_dataset is None:
            other = "PPOTrainer(model=trainer.roles, eval_dataset=...)"
            raise InputError(f"evaluate() answers the eval_dataset of this trainer alone. For another: {other}.")
        started = time.monotonic()
        texts = self.answer()
        raw = score(self.scorers, self.eval_dataset, texts)
        figures = {"score": float(self._combine(raw).mean()), "length_characters": sum(map(len, texts)) / len(texts)}
        figures |= {f"score/{name}": float(scores.mean()) for name, scores in raw.items()} if len(raw) > 1 else {}
        if self.metric:
            columns = {name: list(self.eval_dataset[name]) for name in self.eval_dataset.column_names}
            figures |= self.metric(prompts=columns.pop("prompt"), completions=texts, **columns)
        metrics = {f"eval_{name}": value for name, value in figures.items()}
        broadcast_object_list(shared := [metrics])  # one opinion, whatever scorers and metric do by chance
        metrics = shared[0]
        best = self.args.metric_for_best_model
        if best and f"eval_{best.removeprefix('eval_')}" not in metrics:
            if self.args.load_best_model_at_end or best != PPOConfig.metric_for_best_model:
                names = ", ".join(metrics)
                raise InputError(f"--metric_for_best_model {best}: there is none. Evaluation gives {names}.")
            self.args.metric_for_best_model = None  # the trainer beneath asks for it though it chooses nothing
        metrics["eval_seconds"] = round(time.monotonic() - started, 3)
        if self.is_world_process_zero():
            folder = Path(str(self.args.output_dir)) / "held_out"
            folder.mkdir(parents=True, exist_ok=True)
            write_json(texts, folder / f"step-{self.state.global_step}.json")
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def answer(self) -> list[str]:
        """The policy's greedy completions of the held-out prompts, in their order."""
        return generate(
            self.roles.model, self.processing_class, self.eval_prompt_ids, end_token_id=self.end_token_id,
            max_new_tokens=self.max_new_tokens, decoding=Decoding(batch_size=self.args.generation_batch_size),
        )  # fmt: skip

    def first_answers(self) -> list[str]:
        """The completions of the held-out prompts before anything was learnt, in this run or the one it resumed."""
        return json.loads((Path(str(self.args.output_dir)) / "held_out" / "step-0.json").read_text(encoding="utf-8"))

    # Checkpoints

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:  # the trainer calls every process
            return
        folder = Path(output_dir or str(self.args.output_dir))
        self.roles.save(folder)
        self.processing_class.save_pretrained(str(folder))
        write_json({"kl_coef": self.kl_coef, "scale": self.scale}, folder / STATE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        step = json.loads((folder / "trainer_state.json").read_text())["global_step"]
        if step % self.steps_per_update:
            raise InputError(
                f"{folder}: saved amid an update (step {step}, where an update has "
                f"{self.steps_per_update}), whose rollout is gone. Go on from one that was saved between updates."
            )
        self.roles.load(folder)
        state = json.loads((folder / STATE).read_text())
        self.kl_coef, self.scale = state["kl_coef"], state["scale"]

    def _load_best_model(self) -> None:
        keep_best(self.roles, self._began, self.state, self.args)
