"""alignment/training.py: what training does to its process."""

import ctypes
import subprocess
import sys

import pytest

# Blocks of 8 MiB, twice: the first teach glibc to keep such blocks, and a small one above holds the second fast.
KEPT_MIB = """
import sys, torch
from alignment.training import return_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

if sys.argv[1] == "returned":
    return_freed_memory()
before = resident()
for _ in range(2):
    blocks = [torch.ones(2**21) for _ in range(32)]
    above = [torch.ones(2**14) for _ in range(8)]
    del blocks
print(resident() - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
@pytest.mark.parametrize(("how", "low", "high"), [("kept", 150, 600), ("returned", -50, 50)])
def test_freed_memory_is_returned_which_glibc_alone_keeps(how: str, low: float, high: float):
    done = subprocess.run([sys.executable, "-c", KEPT_MIB, how], capture_output=True, text=True, check=True)
    assert low < float(done.stdout) < high
