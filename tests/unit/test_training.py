"""alignment/training.py: what training does to its process."""

import ctypes
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
from recipe_runs import FORKED, forked

from alignment.training import return_freed_memory


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text("utf-8").split()[1]) * 4096 / 2**20


def keep_mib(how: str, kept: Connection) -> None:
    if how == "returned":
        return_freed_memory()
    before = resident_mib()
    for _ in range(2):  # the first blocks teach glibc to keep such ones, and a small one above holds the second fast
        blocks = [torch.ones(2**21) for _ in range(32)]
        above = [torch.ones(2**14) for _ in range(8)]
        del blocks
    kept.send(resident_mib() - before)
    del above


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
@pytest.mark.parametrize(("how", "low", "high"), [("kept", 150, 600), ("returned", -50, 50)])
def test_freed_memory_is_returned_which_glibc_alone_keeps(how: str, low: float, high: float):
    kept, sending = FORKED.Pipe(duplex=False)
    forked(keep_mib, how, sending).join()
    assert low < kept.recv() < high
