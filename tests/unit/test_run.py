"""alignment/run.py: what a manifest says of a run that was killed and went on."""

import json
import os
from pathlib import Path

from transformers.trainer_callback import TrainerState

from alignment.run import MANIFEST, Run


def start(folder: Path, resume: str | None = None) -> Run:
    return Run.start("Run", folder, {"seed": 1}, {}, resume=resume)


def write_checkpoint(folder: Path, step: int, after_seconds: float) -> None:
    """A checkpoint that is written now, by the run in the folder as if it had started so long ago."""
    started = (folder / MANIFEST).stat().st_mtime - after_seconds
    os.utime(folder / MANIFEST, (started, started))
    state = folder / f"checkpoint-{step}" / "trainer_state.json"
    state.parent.mkdir()
    TrainerState(global_step=step).save_to_json(str(state))


def test_the_seconds_of_a_run_are_those_of_all_its_parts(tmp_path: Path):
    folder = tmp_path / "run"
    start(folder)
    write_checkpoint(folder, 4, after_seconds=100)  # killed later
    start(folder, resume="true")  # killed before it wrote another
    start(folder, resume="true")
    write_checkpoint(folder, 8, after_seconds=50)
    last = start(folder, resume="true")
    assert last.checkpoint == folder / "checkpoint-8"
    last.finish()
    seconds = json.loads((folder / MANIFEST).read_text("utf-8"))["seconds"]
    assert 150 <= seconds < 160


def test_a_run_that_begins_again_counts_from_its_beginning(tmp_path: Path):
    folder = tmp_path / "run"
    start(folder)
    current = start(folder, resume="true")  # killed before it wrote a checkpoint
    assert current.checkpoint is None
    current.finish()
    assert current.manifest["seconds"] < 10
