"""What one sees while waiting: rich progress bars with rate, time left and peak memory."""

import contextlib
import gc
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import rich.progress as bar
import torch
from accelerate import PartialState
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

console = Console(stderr=True)
LOG_WIDTH = 160  # of a log, in which a text folded into a narrow column would take hundreds of lines


def _on_gpu() -> bool:
    return torch.cuda.is_available() and PartialState().device.type == "cuda"  # not with --use_cpu true


def peak_memory_gib() -> float:
    """Peak memory of this process so far, in GiB: of the GPU where one is used, else resident memory."""
    if _on_gpu():
        return torch.cuda.max_memory_allocated() / 2**30
    kilobytes_per_unit = 1 / 1024 if sys.platform == "darwin" else 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobytes_per_unit / 2**20


def reset_peak_memory() -> None:
    """Frees what is left over and starts `peak_memory_gib` anew (on Linux and GPUs; elsewhere the highest stays)."""
    gc.collect()
    if _on_gpu():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def _bar() -> bar.Progress:
    return bar.Progress(
        bar.TextColumn("{task.description}", markup=False),
        bar.BarColumn(bar_width=24),
        bar.MofNCompleteColumn(),
        bar.TextColumn("{task.fields[note]}", markup=False),
        bar.TimeElapsedColumn(),
        bar.TextColumn("left"),
        bar.TimeRemainingColumn(elapsed_when_finished=False),
        console=console,
        disable=not console.is_terminal,
    )


class Progress:
    """A bar with rows a second, time left and peak memory, in the main process; in a log, a line every tenth."""

    def __init__(self, description: str | None, total: int) -> None:
        self.description, self.total, self.done = description, total, 0
        self._bar = _bar() if description and PartialState().is_main_process else None

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
            self._task = self._bar.add_task(self.description or "", total=self.total, note="")
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, rows: int) -> None:
        """Counts rows as done."""
        before, self.done = self.done, self.done + rows
        if not self._bar:
            return
        task = self._bar.tasks[self._task]
        rate = self.done / task.elapsed if task.elapsed else 0.0
        note = f"{rate:.1f} rows/s, {peak_memory_gib():.1f} GiB"
        self._bar.update(self._task, advance=rows, note=note)
        if not console.is_terminal and before * 10 // self.total != self.done * 10 // self.total:
            console.print(f"{self.description}: {self.done}/{self.total} rows, {note}", markup=False)


class TrainingProgress(TrainerCallback):
    """Shows a training run: loss, tokens a second, time left, peak memory, and held-out figures as they come."""

    def __init__(self, description: str) -> None:
        self.description = description

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Opens the bar."""
        if not state.is_world_process_zero:
            return
        self._bar = _bar()
        self._bar.start()
        self._task = self._bar.add_task(self.description, total=state.max_steps, completed=state.global_step, note="")
        self._tokens_before, self._seconds, self._note = state.num_input_tokens_seen, 0.0, ""
        warms_up = args.get_warmup_steps(1) and args.lr_scheduler_type not in ("constant", "reduce_lr_on_plateau")
        if state.max_steps == 1 and warms_up:
            note = (
                f"{self.description} has one update, and warm-up begins with a learning rate of 0: nothing is learnt. "
                "Give it more dialogues, more epochs, fewer --gradient_accumulation_steps, or --warmup_steps 0."
            )
            self._bar.console.print(note, highlight=False, soft_wrap=True)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Starts the clock, which stands still during evaluation."""
        self._started = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stops the clock."""
        if hasattr(self, "_bar"):
            self._seconds += time.perf_counter() - self._started

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **_: Any
    ) -> None:
        """Moves the bar, and prints held-out figures."""
        if not state.is_world_process_zero or not hasattr(self, "_bar"):
            return
        held_out = {name: logs[f"eval_{name}"] for name in ("loss", "rouge", "accuracy") if f"eval_{name}" in logs}
        if held_out:
            figures = ", ".join(f"{name} {value:.4g}" for name, value in held_out.items())
            told = f"{self.description} step {state.global_step}: held-out {figures}"
            self._bar.console.print(told, markup=False)
            self._bar.update(self._task, note=self._note)
        if "loss" not in logs:
            return
        task = self._bar.tasks[self._task]
        rate = (state.num_input_tokens_seen - self._tokens_before) / self._seconds if self._seconds else 0.0
        self._note = f"loss {logs['loss']:.3f}, {rate:,.0f} tokens/s, {peak_memory_gib():.1f} GiB"
        note = self._note + (", evaluating" if control.should_evaluate else "")
        self._bar.update(self._task, completed=state.global_step, note=note)
        if not console.is_terminal:
            left = task.time_remaining
            console.print(
                f"{self.description} step {state.global_step}/{state.max_steps}: {note}"
                + (f", {left / 60:.1f} min left" if left else "")
            )

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Closes the bar."""
        if state.is_world_process_zero and hasattr(self, "_bar"):
            self._bar.stop()


def show_table(title: str, columns: Sequence[str], rows: list[dict[str, Any]]) -> None:
    """Prints rows as a table on standard output, figures with two decimals, from the main process only."""
    if not PartialState().is_main_process:
        return
    table = Table(title=Text(title))  # no markup: KoBART [ours] is a name
    for index, name in enumerate(columns):
        justify: Literal["left", "right"] = "left" if isinstance(rows[0][name], str) else "right"
        # On a narrow screen the first column folds, and no figure is cut.
        table.add_column(name.replace("peak_memory_gib", "GiB"), justify=justify, no_wrap=index > 0, overflow="fold")
    for row in rows:
        values = ("" if value is None else value for value in map(row.get, columns))
        table.add_row(*(Text(f"{value:.2f}" if isinstance(value, float) else str(value)) for value in values))
    screen = Console()
    if not (screen.is_terminal or screen.is_jupyter or "COLUMNS" in os.environ):
        screen.width = LOG_WIDTH
    screen.print(table)
