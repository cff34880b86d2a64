"""What a recipe's run left, and recipes in processes of their own."""

import json
import multiprocessing
import os
import runpy
import signal
import sys
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, TextIO

import torch

HERE = Path(__file__).parent
FORKED = multiprocessing.get_context("forkserver")  # processes of a server that has imported what takes seconds
FORKED.set_forkserver_preload(["alignment.ppo", "datasets", "peft", "transformers", "trl", "torch"])


def manifest(folder: Path) -> dict[str, Any]:
    """The manifest beside a result."""
    return json.loads((folder / "manifest.json").read_text("utf-8"))


def curve(folder: Path, name: str) -> list[float]:
    """What was logged under a name while a result was trained."""
    return [line[name] for line in manifest(folder)["log"] if name in line]


def forked(target: Any, *args: Any) -> ForkServerProcess:
    """A process that calls this function, which it imports anew."""
    module = getattr(sys.modules[target.__module__], "__file__", None)
    for folder in {str(HERE), str(Path(module or __file__).parent)} - {*sys.path}:  # recipes take the first place
        sys.path.append(folder)
    process = FORKED.Process(target=target, args=args)
    process.start()
    return process


def start(recipe: str, flags: list[str], **environment: str) -> tuple[ForkServerProcess, TextIO]:
    """A recipe as `python recipes/X.py` runs it, on one thread; and what it says on standard error."""
    reading, writing = FORKED.Pipe(duplex=False)
    process = forked(_run, recipe, flags, environment, writing)
    writing.close()
    return process, os.fdopen(os.dup(reading.fileno()), encoding="utf-8")


def _run(recipe: str, flags: list[str], environment: dict[str, str], said: Connection) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(said.fileno(), 2)
    os.environ |= {"OMP_NUM_THREADS": "1"} | environment
    torch.set_num_threads(1)
    path = HERE.parent / "recipes" / f"{recipe}.py"
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
    assert process.exitcode == -signal.SIGKILL, "".join(lines)
    return lines
