"""alignment/outputs.py: one process an output at a time."""

import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from recipe_runs import FORKED, forked

from alignment.errors import InputError
from alignment.outputs import claim, claim_folder, release


def work(folder: Path, said: Connection) -> None:
    """Claims a folder, says so, and is at work until it is killed."""
    claim_folder(folder)
    said.send("claimed")
    time.sleep(300)


@pytest.fixture
def at_work(tmp_path: Path) -> Iterator[BaseProcess]:
    """Another process, which has claimed `run`."""
    hearing, said = FORKED.Pipe(duplex=False)
    process = forked(work, tmp_path / "run", said)
    said.close()
    assert hearing.recv() == "claimed"
    yield process
    process.kill()
    process.join()


@pytest.mark.parametrize("name", ["run", "link", "run/../run/."])
def test_a_folder_where_another_process_is_at_work_is_refused_until_that_is_killed(
    name: str, at_work: BaseProcess, tmp_path: Path
):
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with pytest.raises(InputError, match=r"another process is at work there. Wait for it, end it, or"):
        claim_folder(tmp_path / name)
    claim_folder(tmp_path / "other")
    at_work.kill()
    at_work.join()
    claim_folder(tmp_path / name)
    claim_folder(tmp_path / name)  # a process does not keep itself out
    release()
    assert {path.name for path in tmp_path.iterdir()} == {"run", "link", "other"}  # no lock stays


def test_a_folder_that_was_let_go_is_free(tmp_path: Path, request: pytest.FixtureRequest):
    claim_folder(tmp_path / "run")
    release()
    request.getfixturevalue("at_work")
    with pytest.raises(InputError, match="another process is at work there"):
        claim_folder(tmp_path / "run")


def test_a_folder_beside_which_no_lock_can_lie_is_made(tmp_path: Path):
    (tmp_path / ".run.lock").mkdir()
    claim_folder(tmp_path / "run")
    assert (tmp_path / "run").is_dir()


def test_a_file_that_another_process_writes_is_refused(tmp_path: Path, at_work: BaseProcess):
    with pytest.raises(InputError, match="run: another process is at work there"):
        claim(tmp_path / "run")
    claim(tmp_path / "summaries.csv")
    assert not (tmp_path / "summaries.csv").exists()  # it is claimed before it is made
