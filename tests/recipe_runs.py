"""What a recipe's run left, and recipes in processes of their own."""

import gc
import json
import multiprocessing
import os
import runpy
import signal
import sys
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from threading import Timer
from typing import Any, TextIO
from unittest.mock import patch

import torch
from safetensors.torch import load_file, save_file

import alignment

HERE = Path(__file__).parent
LIMIT_SECONDS = 300
WITHOUT_GPU = {"CUDA_VISIBLE_DEVICES": ""}
FORKED = multiprocessing.get_context("forkserver")  # processes of a server that has imported what takes seconds
FORKED.set_forkserver_preload(["alignment.ppo", "datasets", "peft", "transformers", "trl", "torch"])


def manifest(folder: Path) -> dict[str, Any]:
    """The manifest beside a result."""
    return json.loads((folder / "manifest.json").read_text("utf-8"))


def curve(folder: Path, name: str) -> list[float]:
    """What was logged under a name while a result was trained."""
    return [line[name] for line in manifest(folder)["log"] if name in line]


def change_weights(file: Path) -> None:
    """As another training does: the tensors in a file have other values."""
    save_file({name: weight + 1 for name, weight in load_file(file).items()}, file, {"format": "pt"})


def forked(target: Any, *args: Any) -> ForkServerProcess:
    """A process that calls this function, without a GPU, which forked processes cannot share; killed at the limit."""
    modules = (sys.modules[one.__module__] for one in (target, *args) if callable(one))
    files = {getattr(module, "__file__", None) or __file__ for module in modules}
    for folder in {str(HERE), *(str(Path(file).parent) for file in files)} - {*sys.path}:  # recipes take the first
        sys.path.append(folder)
    process = FORKED.Process(target=target, args=args, daemon=True)
    with patch.dict(os.environ, WITHOUT_GPU):  # the first process starts the server
        process.start()
    limit = Timer(LIMIT_SECONDS, process.kill)
    limit.daemon = True
    limit.start()
    return process


def result_of(target: Any, *args: Any) -> Any:
    """What this function returns in a forked process."""
    reading, writing = FORKED.Pipe(duplex=False)
    process = forked(_send, writing, target, args)
    writing.close()
    result = reading.recv()
    process.join()
    return result


def _send(sending: Connection, target: Any, args: tuple[Any, ...]) -> None:
    sending.send(target(*args))


def start(recipe: str, flags: list[str], **environment: str) -> tuple[ForkServerProcess, TextIO]:
    """A recipe as its command runs it once all is imported, on one thread; and what it says on standard error."""
    reading, writing = FORKED.Pipe(duplex=False)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **WITHOUT_GPU, **environment}
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    process = forked(_run, recipe, flags, environment, cores, writing)
    writing.close()
    return process, os.fdopen(os.dup(reading.fileno()), encoding="utf-8")


def _run(recipe: str, flags: list[str], environment: dict[str, str], cores: set[int] | None, said: Connection) -> None:
    gc.freeze()  # as in conftest.py
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(said.fileno(), 2)
    os.environ |= environment
    if cores:
        os.sched_setaffinity(0, cores)
    torch.set_num_threads(1)
    path = HERE.parent / "recipes" / f"{recipe}.py"
    assert Path(alignment.__file__).is_relative_to(HERE.parent), alignment.__file__  # the server imports it by itself
    sys.argv = [str(path), *flags]
    runpy.run_path(str(path), run_name="__main__")


def start_and_kill(recipe: str, flags: list[str], when: str) -> list[str]:
    """Starts a recipe, kills it when a line says `when`, and returns the lines up to there."""
    process, said = start(recipe, flags)
    lines = []
    with said:
        for line in said:
            lines.append(line)
            if when in line:
                process.kill()
                break
    process.join()
    assert when in lines[-1], "".join(lines)  # or the limit has killed it
    assert process.exitcode == -signal.SIGKILL, "".join(lines)
    return lines
