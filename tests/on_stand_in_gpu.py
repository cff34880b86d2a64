"""Runs recipes as on a GPU, with tests/stand_in_gpu.cpp for one: for a torch without CUDA, which must preload it.

The arguments are a recipe and its own, and after `then` another recipe and its own.
"""

import runpy
import sys
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bitsandbytes  # noqa: F401  # before there is a GPU, or it would look for kernels of its own
import torch

ANSWERS: dict[str, Any] = {
    "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0, "get_device_name": "stand-in",
    "get_device_capability": (8, 0), "get_arch_list": [], "is_bf16_supported": True, "max_memory_allocated": 0,
    "_exchange_device": 0, "_maybe_exchange_device": 0, "_lazy_init": None, "set_device": None, "synchronize": None,
    "empty_cache": None, "manual_seed": None, "manual_seed_all": None, "reset_peak_memory_stats": None,
    "get_device_properties": SimpleNamespace(total_memory=2**34),
}  # fmt: skip
for name, answer in ANSWERS.items():
    setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
for module in (torch.cuda, torch.cuda.random):  # what is drawn there is drawn by the CPU
    module.get_rng_state = lambda *_: torch.get_rng_state()  # type: ignore[attr-defined]
    module.get_rng_state_all = lambda: [torch.get_rng_state()]  # type: ignore[attr-defined]
    module.set_rng_state = module.set_rng_state_all = lambda *_: None  # type: ignore[attr-defined]
torch._C._cuda_getCurrentRawStream = lambda _: 0  # type: ignore[attr-defined]

sys.path[0] = str(Path(__file__).parents[1])
for is_between, words in groupby(sys.argv[1:], lambda word: word == "then"):
    if not is_between:
        sys.argv = [*words]
        runpy.run_path(sys.argv[0], run_name="__main__")
