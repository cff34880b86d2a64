"""What a hyper-parameter search is told, and what its trials try: ranges in place of settings of recipes/sft.py."""

import math
import sys
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

from optuna.trial import BaseTrial

from alignment.arguments import DataArguments, ModelArguments, PromptArguments, SFTArguments
from alignment.errors import InputError
from alignment.run import FREE_SETTINGS, settings_of

# What stands for a setting of recipes/sft.py in a search.
RANGES = {
    "learning_rate": "learning_rate_range", "num_train_epochs": "num_train_epochs_range", "lora_r": "lora_r_range",
    "lora_alpha": "lora_alpha_ratio_range", "lora_dropout": "lora_dropout_range", "prompt_form": "prompt_forms",
}  # fmt: skip
DIRECTIONS = {"eval_rouge": "maximize", "eval_loss": "minimize"}
# What a trial decides itself, and what phase 1 does not depend on.
NOT_OF_THE_STUDY = FREE_SETTINGS | RANGES.keys() | {
    "trials", "save_strategy", "save_steps", "metric_for_best_model", "greater_is_better", "phase2_epochs",
    "phase2_learning_rate", "phase2_instructions",
}  # fmt: skip
NOT_IN_YAML = {"output_dir", "overwrite_output_dir", "resume_from_checkpoint", "greater_is_better", "hub_token"}


@dataclass
class SearchArguments(SFTArguments):
    """Those of recipes/sft.py, and what to search: a range of two values is searched, one value is fixed."""

    output_dir: str | None = field(default="runs/search", metadata={"help": "Where study.db and best.yaml are kept."})
    trials: int = field(default=20, metadata={"help": "Finished trials to have in all, pruned ones included."})
    objective: str = field(default="eval_rouge", metadata={"help": "eval_rouge (highest) or eval_loss (lowest)."})
    learning_rate_range: list[float] = field(
        default_factory=lambda: [5e-5, 2e-3], metadata={"help": "Lowest and highest learning rate, or one."}
    )
    lora_r_range: list[int] = field(
        default_factory=lambda: [8, 64], metadata={"help": "Lowest and highest LoRA rank, or one."}
    )
    lora_alpha_ratio_range: list[float] = field(
        default_factory=lambda: [1.0, 4.0], metadata={"help": "Lowest and highest lora_alpha / lora_r, or one."}
    )
    lora_dropout_range: list[float] = field(
        default_factory=lambda: [0.0, 0.2], metadata={"help": "Lowest and highest LoRA dropout, or one."}
    )
    num_train_epochs_range: list[float] = field(
        default_factory=lambda: [1.0, 3.0], metadata={"help": "Fewest and most epochs, whole ones, or one number."}
    )
    prompt_forms: list[str] | None = field(
        default=None,
        metadata={"help": "Prompt forms to try; by default all, template only where the model has a chat template."},
    )

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise InputError(f"--trials {self.trials}: expected 1 or more.")
        if self.objective not in DIRECTIONS:
            raise InputError(f"--objective {self.objective}: expected {' or '.join(DIRECTIONS)}.")
        if self.objective == "eval_rouge" and self.rouge_eval_rows < 1:
            raise InputError("--objective eval_rouge: needs --rouge_eval_rows of 1 or more.")
        _check_range("learning_rate_range", self.learning_rate_range, math.ulp(0), 1, "above 0 and at most 1")
        _check_range("lora_r_range", self.lora_r_range, 1, sys.float_info.max, "1 or more")
        _check_range("lora_alpha_ratio_range", self.lora_alpha_ratio_range, math.ulp(0), sys.float_info.max, "above 0")
        _check_range("lora_dropout_range", self.lora_dropout_range, 0, 1 - 1e-9, "from 0 to below 1")
        _check_range("num_train_epochs_range", self.num_train_epochs_range, math.ulp(0), sys.float_info.max, "above 0")
        if len(self.num_train_epochs_range) == 2 and any(epochs % 1 for epochs in self.num_train_epochs_range):
            raise InputError(f"--num_train_epochs_range {_shown(self.num_train_epochs_range)}: expected whole numbers.")
        if self.max_steps > 0:
            raise InputError(f"--max_steps {self.max_steps}: leave it out; --num_train_epochs_range says how long.")
        if self.overwrite_output_dir:
            raise InputError("--overwrite_output_dir true: a study is not deleted here. Choose another --output_dir.")
        self.metric_for_best_model, self.greater_is_better = self.objective, self.objective == "eval_rouge"
        super().__post_init__()


def _shown(values: list[Any]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _check_range(name: str, values: list[Any], lowest: float, highest: float, expected: str) -> None:
    if len(values) not in (1, 2) or not all(lowest <= value <= highest for value in values):
        raise InputError(f"--{name} {_shown(values)}: expected one number or a lowest and a highest, {expected}.")
    if values[0] > values[-1]:
        raise InputError(f"--{name} {_shown(values)}: the lowest is above the highest. Write {_shown(values[::-1])}.")


def settings_of_study(
    model_args: ModelArguments, prompt_args: PromptArguments, args: SearchArguments, data: dict[str, Any]
) -> dict[str, Any]:
    """What must not change between two starts, since scores would not compare."""
    settings = settings_of(model_args, prompt_args, args) | {"data": data}
    return {name: value for name, value in settings.items() if name not in NOT_OF_THE_STUDY}


def settings_for_sft(*configs: Any) -> dict[str, Any]:
    """The settings of recipes/sft.py that differ from its defaults, as they stand in a YAML."""
    settings = {}
    defaults: tuple[Any, ...] = (ModelArguments(), DataArguments(), PromptArguments(), SFTArguments())
    for config, default in zip(configs, defaults, strict=True):
        for name in (known.name for known in fields(default) if known.init and known.name not in NOT_IN_YAML):
            value = getattr(config, name)
            if value != getattr(default, name):
                settings[name] = value.value if isinstance(value, Enum) else value
    return settings


class SearchSpace:
    """What a trial tries: settings of recipes/sft.py, by the ranges of `SearchArguments`."""

    def __init__(self, args: SearchArguments, forms: list[str], use_peft: bool) -> None:
        self.args, self.forms, self.use_peft = args, forms, use_peft
        lora = (args.lora_r_range, args.lora_alpha_ratio_range, args.lora_dropout_range) if use_peft else ()
        searched = (args.learning_rate_range, args.num_train_epochs_range, forms, *lora)
        if all(values[0] == values[-1] for values in searched):
            raise InputError("Every range has one value, so there is nothing to search. Give one of them two.")

    def described(self) -> str:
        """The ranges in one line."""
        names = ("learning_rate", "num_train_epochs", *(("lora_r", "lora_alpha_ratio", "lora_dropout") * self.use_peft))
        ranges = {name: getattr(self.args, f"{name}_range") for name in names}
        said = [f"{name} {' to '.join(f'{value:g}' for value in values)}" for name, values in ranges.items()]
        return ", ".join([*said, f"prompt_form {' or '.join(self.forms)}"])

    def settings(self, trial: BaseTrial) -> dict[str, Any]:
        """The settings of a trial, new or finished; a range of one value is no parameter of it."""
        args = self.args

        def number(name: str, values: list[float], log: bool = False) -> float:
            return trial.suggest_float(name, *values, log=log) if values[0] < values[-1] else values[0]

        def integer(name: str, values: list[Any], log: bool = False) -> Any:
            return trial.suggest_int(name, *map(int, values), log=log) if values[0] < values[-1] else values[0]

        settings: dict[str, Any] = {"learning_rate": number("learning_rate", args.learning_rate_range, log=True)}
        if self.use_peft:
            rank = integer("lora_r", args.lora_r_range, log=True)
            ratio = number("lora_alpha_ratio", args.lora_alpha_ratio_range, log=True)
            settings |= {"lora_r": rank, "lora_alpha": max(1, round(rank * ratio))}
            settings["lora_dropout"] = number("lora_dropout", args.lora_dropout_range)
        settings["num_train_epochs"] = float(integer("num_train_epochs", args.num_train_epochs_range))
        several = len(self.forms) > 1
        settings["prompt_form"] = trial.suggest_categorical("prompt_form", self.forms) if several else self.forms[0]
        return settings
