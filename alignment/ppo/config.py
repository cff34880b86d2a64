"""The settings of PPO: transformers' `TrainingArguments`, with ours added."""

import math
from dataclasses import dataclass, field

from transformers import TrainingArguments

from alignment.arguments import TrainerArguments
from alignment.errors import InputError
from alignment.ppo.math import KL_ESTIMATORS


@dataclass
class PPOConfig(TrainerArguments, TrainingArguments):
    """Settings of `PPOTrainer`; `logging_steps`, `eval_steps` and `save_steps` count PPO updates, below 1 a share.

    Names are those of trl 1.12's `PPOConfig` where it has them. Source: Huang et al. 2024 (arXiv 2403.17031).
    """

    ROUNDS_SAVE_STEPS = True

    output_dir: str | None = field(default="runs/ppo", metadata={"help": "Where phase3/ and the report are written."})
    rollout_batch_size: int = field(
        default=32, metadata={"help": "Completions an update; their prompts stay in host memory."}
    )
    num_generations: int = field(
        default=1,
        metadata={"help": "Completions of each dialogue; with more, each is paid by how much it beats the rest."},
    )
    num_updates: int | None = field(default=None, metadata={"help": "PPO updates; by default from num_train_epochs."})
    num_ppo_epochs: int = field(default=4, metadata={"help": "Times that an update goes through its dialogues."})
    reread_prompts: bool = field(
        default=False,
        metadata={"help": "The policy reads prompts anew in each step and learns through them: exact, but slow."},
    )
    max_length: int | None = field(default=1024, metadata={"help": "Prompt and completion, in tokens, at most."})
    max_new_tokens: int | None = field(
        default=None, metadata={"help": "Longest completion, in tokens; by default that of --sft_model, or 128."}
    )
    temperature: float = field(default=1.0, metadata={"help": "Temperature of the rollouts."})
    generation_batch_size: int = field(default=16, metadata={"help": "Completions a device samples at a time."})
    vllm_url: str | None = field(
        default=None, metadata={"help": "Address of a vLLM server that samples, such as http://127.0.0.1:8000."}
    )
    kl_coef: float = field(default=0.05, metadata={"help": "Weight of the KL penalty; the first one with kl_target."})
    kl_estimator: str = field(default="k1", metadata={"help": "k1 or k3: how KL is estimated at a token."})
    kl_target: float | None = field(
        default=None, metadata={"help": "KL of a completion (nats) that the weight is adapted to; none: it is fixed."}
    )
    max_kl: float = field(
        default=30.0, metadata={"help": "KL of a completion (nats) where PPO stops; above half of it kl_coef doubles."}
    )
    gamma: float = field(default=1.0, metadata={"help": "Discount of later rewards, a token."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of the advantage estimates."})
    cliprange: float = field(default=0.2, metadata={"help": "The policy's clip of the probability ratio."})
    cliprange_value: float = field(default=0.2, metadata={"help": "The value's clip of its change."})
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value's loss."})
    missing_eos_penalty: float = field(default=1.0, metadata={"help": "Deviations taken off where no end comes."})
    score_clip: float = field(
        default=5.0, metadata={"help": "Deviations from the mean of the first rollout beyond which scores are cut."}
    )
    value_warmup_updates: int = field(default=1, metadata={"help": "First updates in which only the value learns."})

    learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate."})
    num_train_epochs: float = field(default=1.0, metadata={"help": "Passes over the prompts."})
    per_device_train_batch_size: int = field(default=4, metadata={"help": "Completions a device and micro-batch."})
    gradient_accumulation_steps: int = field(default=8, metadata={"help": "Micro-batches a step of the optimiser."})
    lr_scheduler_type: str = field(default="linear", metadata={"help": "Learning-rate schedule."})
    warmup_steps: float = field(default=0.0, metadata={"help": "Warm-up steps; below 1, a share of all steps."})
    metric_for_best_model: str | None = field(
        default="eval_rouge", metadata={"help": "The held-out figure that chooses the best checkpoint."}
    )
    greater_is_better: bool | None = field(default=True, metadata={"help": "Whether more of it is better."})
    include_num_input_tokens_seen: str = field(default="no", metadata={"help": "Not used: rollouts are counted."})

    def __post_init__(self) -> None:
        if self.kl_estimator not in KL_ESTIMATORS:
            raise InputError(f"--kl_estimator {self.kl_estimator}: expected one of {', '.join(KL_ESTIMATORS)}.")
        if self.bf16 or self.fp16:
            raise InputError("--bf16, --fp16: a rollout is judged as it was sampled, in the type of --dtype. Use that.")
        if self.gradient_checkpointing and not self.reread_prompts:
            raise InputError(
                "--gradient_checkpointing true has no effect where prompts are read once: few activations are kept. "
                "Leave it out, or add --reread_prompts true."
            )
        if self.max_steps > 0:
            raise InputError(f"--max_steps {self.max_steps}: PPO counts updates; use --num_updates.")
        if "epoch" in (self.eval_strategy, self.save_strategy, self.logging_strategy):
            raise InputError(
                "--eval_strategy, --save_strategy, --logging_strategy: PPO counts updates; expected steps or no."
            )
        if self.enable_jit_checkpoint:
            raise InputError(
                "--enable_jit_checkpoint: would save amid an update. Use --save_steps, counted in updates."
            )
        for name in (
            "rollout_batch_size", "num_generations", "num_ppo_epochs", "generation_batch_size", "num_updates",
            "max_new_tokens",
        ):  # fmt: skip
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"--{name} {getattr(self, name)}: expected 1 or more.")
        for name in ("max_kl", "score_clip", "cliprange", "cliprange_value"):  # infinite: without a bound
            if not getattr(self, name) > 0:  # as nan is not
                raise InputError(f"--{name} {getattr(self, name)}: expected more than 0.")
        if not 0 < self.temperature < math.inf:
            raise InputError(f"--temperature {self.temperature}: expected more than 0, such as 1.")
        for name in ("kl_coef", "vf_coef", "missing_eos_penalty", "value_warmup_updates"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"--{name} {getattr(self, name)}: expected 0 or more.")
        if not (0 < self.gamma <= 1 and 0 <= self.lam <= 1):
            raise InputError(f"--gamma {self.gamma}, --lam {self.lam}: expected shares from 0 to 1.")
        if self.load_best_model_at_end and not self.metric_for_best_model:
            raise InputError("--metric_for_best_model: none, where --load_best_model_at_end true needs one.")
        if self.kl_target is not None and not 0 < self.kl_target < self.max_kl:
            raise InputError(f"--kl_target {self.kl_target}: expected above 0 and below --max_kl {self.max_kl}.")
        super().__post_init__()
        micro, processes = self.per_device_train_batch_size, self.world_size
        if self.rollout_batch_size % (step := micro * self.gradient_accumulation_steps * processes):
            fewer = range(self.gradient_accumulation_steps - 1, 0, -1)
            fitting = next((n for n in fewer if self.rollout_batch_size % (micro * n * processes) == 0), None)
            raise InputError(
                f"--rollout_batch_size {self.rollout_batch_size}: expected a multiple of {step}, which is "
                f"--per_device_train_batch_size {micro} x --gradient_accumulation_steps "
                f"{self.gradient_accumulation_steps} x {processes} processes."
                + (f" With --gradient_accumulation_steps {fitting} it is one." if fitting else "")
            )
        if self.rollout_batch_size % (self.num_generations * processes):
            raise InputError(
                f"--num_generations {self.num_generations}: expected a divisor of the {self.rollout_batch_size} "
                f"completions an update (--rollout_batch_size), of which {processes} processes make equal parts."
            )


def count_steps(args: PPOConfig, prompts: int) -> tuple[int, int]:
    """Updates, and steps of the optimiser in each; settings that count updates are turned into steps.

    Raises:
        InputError: No prompts, or no update for the policy.
    """
    if not prompts:
        raise InputError("No prompts to train on.")
    step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    steps_per_update = args.rollout_batch_size // step * args.num_ppo_epochs
    updates = args.num_updates or math.ceil(
        args.num_train_epochs * prompts * args.num_generations / args.rollout_batch_size
    )
    if updates <= args.value_warmup_updates:
        raise InputError(
            f"--value_warmup_updates {args.value_warmup_updates}: of {updates} updates none is left for the "
            "policy. Lower it, or raise --num_updates."
        )
    for name in ("logging_steps", "eval_steps", "save_steps"):
        value = getattr(args, name)
        if value is not None:
            value = max(1, round(value * updates)) if value < 1 else int(value)
            setattr(args, name, value * steps_per_update)
    if args.load_best_model_at_end and args.eval_steps and args.eval_steps % args.save_steps:
        args.save_steps = args.eval_steps  # whichever evaluation is best has a checkpoint
    # Before that the policy is what it was: evaluations would be equal, and early stopping would take them for the end.
    args.eval_delay = max(args.eval_delay, args.value_warmup_updates * steps_per_update)
    args.max_steps = updates * steps_per_update
    return updates, steps_per_update


@dataclass
class PPOArguments(PPOConfig):
    """What recipes/ppo.py takes besides: the model to start from, and what its completions are worth."""

    sft_model: str = field(default="runs/sft/phase2", metadata={"help": "What phase 2 (or 1) left, to start from."})
    reward_model: str = field(default="runs/reward", metadata={"help": "The output folder of recipes/reward.py."})
    scorers: list[str] = field(
        default_factory=lambda: ["reward_model"],
        metadata={"help": "What scores summaries: reward_model, rouge, quality, or your function as module:function."},
    )
    scorer_weights: list[float] | None = field(
        default=None, metadata={"help": "A weight for each of --scorers; 1 each by default."}
    )
    metric_profile: str | None = field(
        default=None,
        metadata={"help": "ROUGE profile that chooses the checkpoint; by default aistages, or english for English."},
    )
    allow_unfit: bool = field(default=False, metadata={"help": "Take a reward model that its report calls unfit."})
    separate_reward_model: bool = field(
        default=False, metadata={"help": "The reward model is for another base, which is loaded beside this one."}
    )

    def __post_init__(self) -> None:
        weights = self.scorer_weights
        if weights is not None and len(weights) != len(self.scorers):
            raise InputError(f"--scorer_weights {weights}: expected one for each of --scorers {self.scorers}.")
        if weights is not None and not all(map(math.isfinite, weights)):
            raise InputError(f"--scorer_weights {weights}: expected finite numbers.")
        if weights is not None and not any(weights):
            raise InputError(f"--scorer_weights {weights}: every completion would be paid 0. Give one another weight.")
        if len(set(self.scorers)) != len(self.scorers) or not self.scorers:
            raise InputError(f"--scorers {self.scorers}: expected at least one, and each once.")
        super().__post_init__()
