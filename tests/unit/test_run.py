"""alignment/run.py: the seconds of a run that was killed and went on, and one run a folder at a time."""

import json
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from recipe_runs import FORKED, forked
from transformers.trainer_callback import TrainerState

from alignment.errors import InputError
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


def work(folder: Path, said: Connection) -> None:
    """Starts a run, says so, and is at work until it is killed."""
    current = start(folder)
    said.send(current.finished)
    time.sleep(300)


def test_a_folder_where_another_process_is_at_work_is_left_alone_until_that_ends(tmp_path: Path):
    folder = tmp_path / "run"
    hearing, said = FORKED.Pipe(duplex=False)
    other = forked(work, folder, said)
    assert hearing.recv() is False
    manifest = (folder / MANIFEST).read_bytes()
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"run: another process is at work there. Wait for it or end it"):
            Run.start("Run", folder, {"seed": 1}, {}, overwrite)
        assert (folder / MANIFEST).read_bytes() == manifest
    other.kill()
    other.join()
    start(folder).finish()
    assert start(folder).finished
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # no lock stays


def test_a_finished_run_keeps_nobody_out(tmp_path: Path):
    current = start(tmp_path / "run")
    current.finish()
    hearing, said = FORKED.Pipe(duplex=False)
    other = forked(work, tmp_path / "run", said)
    assert hearing.recv() is True
    assert start(tmp_path / "run").finished
    other.kill()
    other.join()


def test_a_folder_beside_which_nothing_can_be_written_takes_a_run(tmp_path: Path):
    (tmp_path / ".run.lock").mkdir()  # where the file would be
    start(tmp_path / "run").finish()
    assert start(tmp_path / "run").finished
