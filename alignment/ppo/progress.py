"""What one sees of PPO while it runs: a live table of the last updates, with the held-out figures as they come."""

import time
from typing import Any

from rich.live import Live
from rich.table import Table
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from alignment.progress import console, peak_memory_gib

# Column of the table -> the figure's name in the log.
COLUMNS = {
    "score": "score",
    "reward": "reward",
    "KL": "kl",
    "tokens": "length_tokens",
    "entropy": "entropy",
    "tokens/s": "tokens_per_second",
}
ROWS = 12


class PPOProgress(TrainerCallback):
    """A live table; in a log that is no terminal, a line an update."""

    def __init__(self, steps_per_update: int) -> None:
        self.steps_per_update = steps_per_update
        self.rows: list[list[str]] = []
        self.held_out = ""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Starts the clock."""
        self.started, self.first_step = time.monotonic(), state.global_step
        self.live = Live(console=console, refresh_per_second=2) if console.is_terminal else None
        if self.live and state.is_world_process_zero:
            self.live.start()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **_: Any
    ) -> None:
        """Adds an update, or held-out figures."""
        if not state.is_world_process_zero or not hasattr(self, "started"):
            return
        if "eval_score" in logs:
            figures = {name.removeprefix("eval_"): value for name, value in logs.items() if name.startswith("eval_")}
            shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items() if name != "seconds")
            self.held_out = f"held-out at update {state.global_step // self.steps_per_update}: {shown}"
            if not self.live:
                console.print(self.held_out, highlight=False, soft_wrap=True)
        if "reward" in logs:
            updates, all_updates = (steps // self.steps_per_update for steps in (state.global_step, state.max_steps))
            done = state.global_step - self.first_step
            left = (time.monotonic() - self.started) / done * (state.max_steps - state.global_step)
            values = [logs[name] for name in COLUMNS.values()]
            cells = [f"{round(value, 4):.3g}" if value < 1000 else f"{value:,.0f}" for value in values]
            self.rows.append([f"{updates}/{all_updates}", *cells, f"{left / 60:.1f} min"])
            if not self.live:
                parts = ", ".join(f"{name} {cell}" for name, cell in zip(COLUMNS, cells, strict=True))
                cost = f"{peak_memory_gib():.1f} GiB, {left / 60:.1f} min left"
                console.print(f"PPO update {updates}/{all_updates}: {parts}, {cost}", highlight=False, soft_wrap=True)
        if self.live:
            self.live.update(self._table())

    def _table(self) -> Table:
        table = Table(title="PPO", caption=f"{self.held_out}\npeak memory {peak_memory_gib():.1f} GiB")
        for name in ("update", *COLUMNS, "left"):
            table.add_column(name, justify="right")
        for row in self.rows[-ROWS:]:
            table.add_row(*row)
        return table

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leaves the last table on the screen."""
        if self.live:
            self.live.stop()
