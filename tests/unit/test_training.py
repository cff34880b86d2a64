"""alignment/training.py: what training does to its process."""

import ctypes
from pathlib import Path

import pytest
import torch
from recipe_runs import result_of

from alignment.training import return_freed_memory


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text("utf-8").split()[1]) * 4096 / 2**20


def kept_mib(how: str) -> float:
    if how == "returned":
        return_freed_memory()
    before = resident_mib()
    for _ in range(2):  # the first blocks teach glibc to keep such ones, and a small one above holds the second fast
        blocks = [torch.ones(2**21) for _ in range(32)]
        above = [torch.ones(2**14) for _ in range(8)]
        del blocks
    kept = resident_mib() - before
    del above
    return kept


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
@pytest.mark.parametrize(("how", "low", "high"), [("kept", 150, 600), ("returned", -50, 50)])
def test_freed_memory_is_returned_which_glibc_alone_keeps(how: str, low: float, high: float):
    assert low < result_of(kept_mib, how) < high
