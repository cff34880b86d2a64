"""Texts as they are generated, one a line, so that a killed run makes only what is missing."""

import glob
import hashlib
import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from accelerate import PartialState

DIGEST = "[0-9a-f]" * 8  # of a run's facts


def left_behind(path: Path) -> bool:
    """Whether a killed run has left texts beside `path`, in one journal or in those of its parts."""
    name = glob.escape(path.name)
    return any(any(path.parent.glob(f"{name}{part}.{DIGEST}.*.journal")) for part in ("", ".part[0-9]*"))


class Journal:
    """Keeps generated texts by their index in a file of this process, and finds those of an earlier, killed run.

    Use it as a context: the files are deleted when the block ends well. Texts of a run with other `facts` (another
    model, other data, other decoding) are in files of their own, and stay until some run ends well.

    Attributes:
        done: The texts that are already there, by index.
        seconds_before: How long the killed run had taken when it wrote the last of them.
    """

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self._header = json.dumps(facts, ensure_ascii=False, sort_keys=True, default=str)
        own = hashlib.sha256(self._header.encode()).hexdigest()[:8]
        self._of_all = f"{glob.escape(path.name)}.{DIGEST}.*.journal"  # whatever their facts
        self._pattern = f"{glob.escape(path.name)}.{own}.*.journal"
        self._path = path.with_name(f"{path.name}.{own}.{PartialState().process_index}.journal")
        self.done: dict[int, str] = {}
        self.seconds_before = 0.0

    def __enter__(self) -> "Journal":
        for path in self._path.parent.glob(self._pattern):
            header, *lines = path.read_bytes().split(b"\n")
            if header == self._header.encode():
                # The last piece is empty, or a line that the kill cut in two, perhaps within a letter.
                for index, text, seconds in map(json.loads, lines[:-1]):
                    self.done[index] = text
                    self.seconds_before = max(self.seconds_before, seconds)
        self._started = time.monotonic() - self.seconds_before
        PartialState().wait_for_everyone()
        whole = self._path.with_name(f"{self._path.name}.new")  # the killed run's texts are in no other file yet
        self._file = whole.open("w", encoding="utf-8")
        self._file.write(self._header + "\n")
        for index, text in self.done.items():
            self.add(index, text)
        whole.replace(self._path)
        return self

    def add(self, index: int, text: str) -> None:
        """Writes a text down at once."""
        seconds = round(time.monotonic() - self._started, 1)
        self._file.write(json.dumps([index, text, seconds], ensure_ascii=False) + "\n")
        self._file.flush()

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        if kind is None:
            PartialState().wait_for_everyone()
            for path in self._path.parent.glob(f"{self._of_all}*"):  # an earlier run may have had more processes
                path.unlink(missing_ok=True)
