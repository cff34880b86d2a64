"""alignment/run.py: a run that was killed and goes on, and one that is overwritten."""

import json
import os
from pathlib import Path

import pytest
import torch
from transformers.trainer_callback import TrainerState

from alignment.errors import InputError
from alignment.run import MANIFEST, Run, trained_with


def start(folder: Path, resume: str | None = None, overwrite: bool = False, **settings: object) -> Run:
    return Run.start("Run", folder, {"seed": 1, **settings}, {}, overwrite, resume)


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


def test_a_run_does_not_go_on_in_the_native_type_of_another_machine(tmp_path: Path, monkeypatch):
    def of_type(dtype: str | None) -> Run:
        return Run.start("Run", folder, {"seed": 1, "dtype": dtype}, {}, resume="true")

    folder = tmp_path / "run"
    monkeypatch.setattr("alignment.run.native_dtype", lambda: torch.bfloat16)
    of_type(None)
    write_checkpoint(folder, 4, after_seconds=1)
    monkeypatch.setattr("alignment.run.native_dtype", lambda: torch.float32)
    with pytest.raises(InputError, match=r"other settings \(dtype bfloat16 -> float32\)\. .* --dtype bfloat16"):
        of_type(None)
    assert of_type("bfloat16").checkpoint == folder / "checkpoint-4"  # the same, said aloud
    of_type("bfloat16").finish()
    assert of_type("bfloat16").finished


def test_a_finished_run_is_the_same_by_its_type_said_or_not(tmp_path: Path, monkeypatch):
    def of_type(dtype: str | None) -> Run:
        return Run.start("Run", tmp_path / "run", {"seed": 1, "dtype": dtype}, {})

    monkeypatch.setattr("alignment.run.native_dtype", lambda: torch.bfloat16)
    of_type(None).finish()
    monkeypatch.setattr("alignment.run.native_dtype", lambda: torch.float32)
    assert of_type(None).finished
    assert of_type("bfloat16").finished
    with pytest.raises(InputError, match=r"dtype bfloat16 -> float32"):
        of_type("float32")


def test_a_setting_that_an_earlier_version_did_not_have_makes_no_other_run(tmp_path: Path):
    Run.start("Run", tmp_path / "run", {"seed": 1}, {}).finish()
    assert Run.start("Run", tmp_path / "run", {"seed": 1, "new_in_this_version": True}, {}).finished
    with pytest.raises(InputError, match=r"other settings \(seed 1 -> 2\)"):
        Run.start("Run", tmp_path / "run", {"seed": 2, "new_in_this_version": True}, {})


def test_a_manifest_that_is_cut_short_is_told_and_not_passed_over(tmp_path: Path):
    Run.start("Run", tmp_path / "run", {"seed": 1}, {}).finish()
    path = tmp_path / "run" / "manifest.json"
    path.write_text(path.read_text("utf-8")[:-20], "utf-8")
    with pytest.raises(InputError, match=r"manifest\.json: broken or cut short"):
        trained_with(tmp_path / "run")


@pytest.mark.parametrize("resume", ["true", "True", "yes"])
def test_a_checkpoint_that_is_not_whole_is_passed_over(resume: str, tmp_path: Path):
    start(tmp_path / "run")
    for step in (4, 8, 12):
        write_checkpoint(tmp_path / "run", step, after_seconds=1)
    (tmp_path / "run" / "checkpoint-8" / "trainer_state.json").write_text('{"epoch": ')
    (tmp_path / "run" / "checkpoint-12" / "trainer_state.json").unlink()
    assert start(tmp_path / "run", resume).checkpoint == tmp_path / "run" / "checkpoint-4"


def test_the_manifest_of_another_program_does_not_make_a_folder_ours(tmp_path: Path):
    (tmp_path / MANIFEST).write_text('{"name": "a page"}')
    for overwrite, telling in ((False, "exists and is not empty"), (True, "not a result of this program")):
        with pytest.raises(InputError, match=telling):
            start(tmp_path, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST]


def test_what_is_overwritten_is_kept_until_a_new_run_is_finished(tmp_path: Path):
    folder = tmp_path / "run"
    start(folder, epochs=1).finish()
    start(folder, overwrite=True, epochs=2)
    write_checkpoint(folder, 4, after_seconds=1)  # killed, and begun again with other settings
    start(folder, overwrite=True, epochs=3)
    assert start(folder, epochs=1).finished  # that had come to nothing
    start(folder, overwrite=True, epochs=3).finish()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert start(folder, epochs=3).finished
