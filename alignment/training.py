"""What every trainer here shares: checkpoints that resume exactly, progress, and an end when nothing can be learnt."""

import ctypes
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_pt_utils import BatchRebalanceSampler

from alignment.errors import InputError
from alignment.run import say


def return_freed_memory() -> None:
    """Has blocks of 2 MiB and more go back to the system when they are freed, where the C library is glibc.

    By itself glibc comes to keep blocks of up to 32 MiB, and as every batch has other shapes, ever fewer of those fit.
    On a CPU fine-tuning takes a fifth less memory so, and up to half as much time again, for fresh pages are zeroed.
    """
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-3, 2 * 2**20)  # M_MMAP_THRESHOLD, see mallopt(3)


def let_gradients_through(model: Any) -> Any:
    """Keeps bitsandbytes from repacking a model's 4-bit weights on CPUs with AVX512-BF16, and returns the model.

    Version 0.50 does so where no gradient is asked for, as when a summary is written. From then on none goes through
    the weights, without a word, and a save changes them (its `Linear4bit` and `matmul_4bit`).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def uses(sharding: str) -> bool:
    """Whether `accelerate launch` was told to share the weights among processes by `FSDP` or `DEEPSPEED`."""
    return os.environ.get(f"ACCELERATE_USE_{sharding}", "false").lower() == "true"


def refuse_sharding() -> None:
    """Holds that each process has the whole base."""
    if uses("FSDP") or uses("DEEPSPEED"):
        raise InputError(
            "This needs the whole base on each GPU: not FSDP or DeepSpeed, but accelerate_configs/multi_gpu.yaml, with "
            "--load_in_4bit true where memory is short."
        )


def is_sharded(model: nn.Module) -> bool:
    """Whether no process has all of the weights: under FSDP2 or ZeRO-3."""
    return is_deepspeed_zero3_enabled() or any(isinstance(weight, DTensor) for weight in model.parameters())


class ResumableTrainer(Trainer):
    """A trainer whose checkpoints of adapters resume exactly; comes before TRL's trainer among the bases."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if self.model.dtype == torch.float32:
            for parameter in trained:  # TRL makes those on quantised weights bfloat16, which older GPUs do not know
                parameter.data = parameter.data.float()
        if self.args.fp16 and any(parameter.dtype != torch.float32 for parameter in trained):
            raise InputError(  # which torch would be, after the first step
                "--fp16 true: scales gradients of float32 weights alone, and these are 16-bit. Leave it out, or add "
                "--dtype float32."
            )

    def create_accelerator_and_postprocess(self) -> None:
        """DDP looks for unused weights only where there are some: in what a model sees images with."""
        if self.args.ddp_find_unused_parameters is None:
            config = self.model.config
            self.args.ddp_find_unused_parameters = config.get_text_config() is not config
        super().create_accelerator_and_postprocess()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves adapter and tokenizer, without the pickle of all settings: nothing reads it, the manifest has them."""
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            Path(output_dir or str(self.args.output_dir), TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        with self._adapters_stay_as_they_are():
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        with self._adapters_stay_as_they_are():
            super()._load_best_model()

    @contextmanager
    def _adapters_stay_as_they_are(self) -> Iterator[None]:
        """PEFT 0.21 loads adapters for the trainer as float32, and in every process by way of the first GPU.

        A run of 16-bit adapters that was resumed would be another one.
        """
        types = {name: parameter.dtype for name, parameter in self.model.named_parameters()}
        self.model.load_adapter = partial(self.model.load_adapter, torch_device="cpu")
        try:
            yield
        finally:
            del self.model.load_adapter
        for name, parameter in self.model.named_parameters():
            parameter.data = parameter.data.to(types[name])

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if not self.control.should_training_stop:  # as `EarlyStopping` had done before the run was killed
            super()._run_epoch(*args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        sampler = super()._get_train_sampler(train_dataset)
        if isinstance(sampler, BatchRebalanceSampler):  # which transformers 5.23 leaves at seed 42
            sampler.seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return sampler


class StopWhenNotFinite(TrainerCallback):
    """Ends a run whose loss is no number any more, which no further step would mend."""

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Looks at the loss of the last steps."""
        loss = kwargs["logs"].get("loss", 0.0)
        if not math.isfinite(loss):
            raise InputError(
                f"The loss is {loss} at step {state.global_step}. Lower --learning_rate, or train in another --dtype; "
                "checkpoints from before are kept."
            )


class SamplerEpoch(TrainerCallback):
    """Tells the sampler of the training data its epoch, and with it its order.

    transformers 5.23 does so itself, but for a run on several processes that is resumed within an epoch: there it sees
    only the outer one of two wrappers around the sampler, and would train on the first epoch's order again.
    """

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The state has the epoch of the checkpoint by now."""
        sampler = getattr(kwargs["train_dataloader"], "batch_sampler", None)  # PPO has none
        sampler = getattr(sampler, "batch_sampler", sampler)
        if isinstance(sampler, BatchRebalanceSampler):
            sampler.set_epoch(int(state.epoch or 0))


class EarlyStopping(EarlyStoppingCallback):
    """Stops again, before another step, a run that had stopped and was killed as it wrote, say, its last summaries."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """By now it knows how long it had waited; transformers 5.23 has just set the control back."""
        super().on_train_begin(args, state, control, **kwargs)
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True


def add_callbacks(trainer: Trainer, progress: TrainerCallback, early_stopping_patience: int) -> None:
    """Gives a trainer its progress bar, early stopping where the best checkpoint is kept, and the mends above.

    Args:
        early_stopping_patience: Evaluations without progress before a stop.
    """
    if (processes := trainer.args.world_size) > 1:  # `accelerate launch` takes all GPUs unasked
        one = trainer.args.per_device_train_batch_size * trainer.args.gradient_accumulation_steps
        say(
            f"{processes} processes: a step is of {processes} x {one} examples. "
            f"To keep {one}, divide --gradient_accumulation_steps by {processes}."
        )
    trainer.args.restore_callback_states_from_checkpoint = True  # how long early stopping has waited
    for callback in (progress, SamplerEpoch(), StopWhenNotFinite()):
        trainer.add_callback(callback)
    if trainer.args.load_best_model_at_end:
        trainer.add_callback(EarlyStopping(early_stopping_patience))
    trainer.remove_callback(PrinterCallback)
