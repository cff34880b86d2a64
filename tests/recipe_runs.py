"""What a recipe's run left, and a run that is killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def manifest(folder: Path) -> dict[str, Any]:
    """The manifest beside a result."""
    return json.loads((folder / "manifest.json").read_text("utf-8"))


def curve(folder: Path, name: str) -> list[float]:
    """What was logged under a name while a result was trained."""
    return [line[name] for line in manifest(folder)["log"] if name in line]


def start_and_kill(recipe: str, flags: list[str], when: str) -> list[str]:
    """Starts a recipe, kills it when a line says `when`, and returns the lines up to there."""
    command = [sys.executable, f"recipes/{recipe}.py", *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    lines = []
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if when in line:
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL, "".join(lines)
    return lines
