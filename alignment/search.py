"""Hyper-parameter search for phase 1, with Optuna through the trainer's own `hyperparameter_search`.

A trial is phase 1 as recipes/sft.py trains it with the same settings, to the bit, but without checkpoints. Its score
is therefore that of the model that `best.yaml` leads to: the best evaluation where `load_best_model_at_end` is on, the
last one where it is not.
"""

import copy
import csv
import dataclasses
import gc
import io
import json
import math
import shlex
from collections.abc import Callable
from typing import Any, NoReturn

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from alignment import models
from alignment.arguments import ModelArguments
from alignment.errors import InputError
from alignment.formats import write_text
from alignment.progress import TrainingProgress, show_table
from alignment.run import say
from alignment.search_space import SearchArguments, SearchSpace
from alignment.sft import Encoded, make_trainer
from alignment.study import Study
from alignment.training import StopWhenNotFinite

# Importance is told of the best quarter; of fewer trials a quarter says nothing.
IMPORTANCE_QUANTILE, IMPORTANCE_TRIALS = 0.25, 12


class TrialCallback(TrainerCallback):
    """Ends a trial whose loss is no number any more, and says where others may be compared with it."""

    def __init__(self, trial: optuna.Trial, prune: Callable[[], NoReturn]) -> None:
        self.trial, self.prune = trial, prune

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leaves to the pruner the steps between which it may judge."""
        self.trial.set_user_attr("judged_steps", [args.get_warmup_steps(state.max_steps), state.max_steps])

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Looks at the loss of the last steps."""
        if not math.isfinite(kwargs["logs"].get("loss", 0.0)):
            self.prune()


class Search:
    """The trials that this process does, and what the study has led to.

    Args:
        study: Where trials are kept.
        space: What they try.
        encoded: The dialogues in each prompt form.
        start: The settings that the search started from, as they stand in a YAML.
    """

    def __init__(
        self,
        study: Study,
        space: SearchSpace,
        encoded: dict[str, Encoded],
        tokenizer: PreTrainedTokenizerBase,
        model_args: ModelArguments,
        args: SearchArguments,
        start: dict[str, Any],
    ) -> None:
        self.study, self.space, self.encoded, self.start = study, space, encoded, start
        self.tokenizer, self.model_args, self.search_args = tokenizer, model_args, args
        self.args = copy.copy(args)  # of each trial
        # It writes no checkpoints, so what hangs on them is done by other means: see `_model_init` and `_objective`.
        self.keep_best, self.args.load_best_model_at_end = args.load_best_model_at_end, False
        self.args.save_strategy = "no"
        self.trial: int | None = None  # the number of the one that this process is at

    def run(self) -> None:
        """Does trials until the study has as many as were asked for, and tells what came of it."""
        with self.study.process_lives(), self.study.storage_errors():
            self._do_trials()
            self._write_results()
        self._show_results()

    def _do_trials(self) -> None:
        if len(self.study.finished()) >= self.search_args.trials:
            return
        model = models.load_for_training(self.model_args)
        # The first form's data, and this model, are there for the constructor only: `_model_init` replaces them.
        trainer = make_trainer(model, self.tokenizer, self.args, next(iter(self.encoded.values())), "")
        trainer.remove_callback(StopWhenNotFinite)
        trainer.model_init = self._model_init
        self.trainer = trainer
        del model
        while self.study.take(self.search_args.trials):
            self.trial = None  # until it has a number
            try:
                trainer.hyperparameter_search(
                    hp_space=self._arguments_of_trainer,
                    compute_objective=self._objective,
                    n_trials=1,
                    direction=self.study.direction,
                    backend="optuna",
                    **self.study.arguments(),
                )
            except ValueError:  # it looks for the best trial, and finds none where all were pruned so far
                if self.trial is None or self.study.optuna.trials[self.trial].state != TrialState.PRUNED:
                    raise
            except KeyboardInterrupt:
                if self.trial is not None:
                    self.study.retry(self.study.optuna.trials[self.trial])
                raise
            self._tell_of_trial()

    def _model_init(self, trial: optuna.Trial) -> PreTrainedModel:
        """A trial's model, from the base, with its data and callbacks in the trainer.

        TRL's trainer prepares a model in its constructor only (LM head, types of adapters, gradient
        checkpointing), so the model comes out of a trainer made as recipes/sft.py makes its own.
        """
        self.study.begin(trial)
        self.trial = trial.number
        settings = self.space.settings(trial)
        say(f"Trial {trial.number}: {describe(settings)}.")
        self._free_memory()
        lora = {name: value for name, value in settings.items() if name in ("lora_r", "lora_alpha", "lora_dropout")}
        model = models.load_for_training(dataclasses.replace(self.model_args, **lora))
        encoded, args = self.encoded[settings["prompt_form"]], copy.copy(self.args)
        made = make_trainer(model, self.tokenizer, args, encoded, f"Trial {trial.number}")
        trainer = self.trainer
        trainer.train_dataset, trainer.eval_dataset, trainer.held_out = made.train_dataset, made.eval_dataset, None
        if self.args.objective == "eval_rouge":  # else there is no need to write summaries
            trainer.held_out = made.held_out
        for kind in (TrainingProgress, TrialCallback, EarlyStoppingCallback):
            trainer.remove_callback(kind)
        trainer.add_callback(made.pop_callback(TrainingProgress))
        trainer.add_callback(TrialCallback(trial, self._prune))
        if self.keep_best:
            trainer.add_callback(EarlyStoppingCallback(self.args.early_stopping_patience))
        return made.model

    def _free_memory(self) -> None:
        """Lets go of the last trial's model and optimizer, of which a pruned trial leaves all."""
        trainer = self.trainer
        for owner in (trainer, trainer.callback_handler):
            owner.model = owner.optimizer = owner.lr_scheduler = None
        trainer.model_wrapped = None
        trainer.accelerator.free_memory()
        gc.collect()

    def _arguments_of_trainer(self, trial: optuna.Trial) -> dict[str, float]:
        settings = self.space.settings(trial)
        return {name: settings[name] for name in ("learning_rate", "num_train_epochs")}

    def _objective(self, metrics: dict[str, float]) -> float:
        """The score of the model that a run would have by now: of its best evaluation, or of this one."""
        score = float(metrics[self.args.objective])
        if not math.isfinite(score):
            self._prune()
        before = self.trainer.state.best_metric
        if not self.keep_best or before is None:
            return score
        return max(score, before) if self.args.greater_is_better else min(score, before)

    def _prune(self) -> NoReturn:
        trainer = self.trainer
        trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)  # closes the bar
        raise optuna.TrialPruned

    def _tell_of_trial(self) -> None:
        """What a trial came to, the best so far, and the time left; and the results are written."""
        trial, best = self.study.optuna.trials[self.trial or 0], self._write_results()
        finished = self.study.finished()
        said = [f"Trial {trial.number} ({len(finished)} of {self.search_args.trials}): {self._outcome(trial)}"]
        said.append(f"{seconds_of(trial):.0f} s")
        if best is not None:
            said.append(f"best so far {best.value:.4g} (trial {best.number})")
        if (missing := self.search_args.trials - len(finished)) > 0:
            left = missing * sum(map(seconds_of, finished)) / len(finished)
            said.append(f"about {left / 60:.1f} min left for one process")
        say(", ".join(said) + ".")

    def _outcome(self, trial: FrozenTrial) -> str:
        name = self.search_args.objective.removeprefix("eval_")
        if trial.value is None:
            return "pruned, since its loss was no number"
        return f"{name} {trial.value:.4g}" + (", pruned" if trial.state == TrialState.PRUNED else "")

    def _rows(self) -> list[dict[str, Any]]:
        rows = []
        for trial in self.study.finished():
            row = {"trial": trial.number, "state": trial.state.name.lower(), self.search_args.objective: trial.value}
            rows.append(row | self.space.settings(trial) | {"seconds": round(seconds_of(trial), 1)})
        return rows

    def _write_results(self) -> FrozenTrial | None:
        """Writes trials.csv and best.yaml of all trials up to now, and returns the best one."""
        with self.study.locked():  # or an older best could replace a newer one of another process
            rows, best = self._rows(), self.study.best()
            if rows:
                lines = io.StringIO()
                writer = csv.DictWriter(lines, rows[0], lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
                write_text(lines.getvalue(), self.study.folder / "trials.csv")
            if best is not None:
                write_text(self._yaml(best), self.study.folder / "best.yaml")
        return best

    def _yaml(self, best: FrozenTrial) -> str:
        path = self.study.folder / "best.yaml"
        settings = self.start | self.space.settings(best) | {"output_dir": str(self.study.folder / "best")}
        said = [
            f"{self.search_args.objective} {best.value:.6g} in trial {best.number}, the best of "
            f"{len(self.study.finished())}, of which {self._count(TrialState.PRUNED)} were pruned.",
            f"Searched: {self.space.described()}.",
            "",
            f"accelerate launch recipes/sft.py --config {shlex.quote(str(path))}",
        ]
        head = "".join(f"# {line}".rstrip() + "\n" for text in said for line in text.splitlines() or [""])
        return head + "\n" + yaml.safe_dump(plain(settings), allow_unicode=True, sort_keys=False)

    def _count(self, state: TrialState) -> int:
        return sum(trial.state == state for trial in self.study.finished())

    def _show_results(self) -> None:
        """A table of the trials, the importance of the parameters, and where the best settings are."""
        best, name = self.study.best(), self.search_args.objective
        if best is None:
            raise InputError(
                f"None of {self.search_args.trials} trials came to a score. Lower --learning_rate_range in another "
                "--output_dir, or train in another --dtype."
            )
        sign = 1 if self.study.direction == "minimize" else -1
        rows = sorted(self._rows(), key=lambda row: (row["state"] == "pruned", sign * (row[name] or 0.0)))
        table = []
        for row in rows:
            score = "none" if row[name] is None else f"{row[name]:.4g}"
            cells = {"trial": row["trial"], name[5:]: score + ("*" if row["state"] == "pruned" else "")}
            cells["rate"] = f"{row['learning_rate']:.2e}"
            if self.space.use_peft:
                cells |= {"rank": row["lora_r"], "alpha": row["lora_alpha"], "dropout": row["lora_dropout"]}
            table.append(cells | {"epochs": f"{row['num_train_epochs']:g}", "form": row["prompt_form"]})
        show_table("Trials (* pruned)", list(table[0]), table)
        for parameter, share in self._importance().items():
            say(f"Importance of {parameter} for being among the best quarter: {share:.0%}")
        say(f"Best: {name} {best.value:.4g}, trial {best.number}. Train it with:")
        say(f"accelerate launch recipes/sft.py --config {shlex.quote(str(self.study.folder / 'best.yaml'))}")

    def _importance(self) -> dict[str, float]:
        if self._count(TrialState.COMPLETE) < IMPORTANCE_TRIALS:
            return {}
        evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=IMPORTANCE_QUANTILE)
        return optuna.importance.get_param_importances(self.study.optuna, evaluator=evaluator)


def seconds_of(trial: FrozenTrial) -> float:
    """How long a trial took."""
    return trial.duration.total_seconds() if trial.duration else 0.0


def describe(settings: dict[str, Any]) -> str:
    """Settings in one line."""
    return ", ".join(f"{name} {f'{v:.3g}' if isinstance(v, float) else v}" for name, v in settings.items())


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as YAML and JSON have them."""
    return json.loads(json.dumps(settings, default=str))
