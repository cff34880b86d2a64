"""Runs a recipe whose weights FSDP2 or ZeRO-3 shards, on CPU processes: accelerate by itself does either on GPUs alone.

The arguments are a recipe and its own.
"""

import runpy
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import Trainer

sys.path[0] = str(Path(__file__).parents[1])

from alignment.training import uses

ON_GPUS = DistributedType.MULTI_GPU if uses("FSDP") else DistributedType.NO  # which DeepSpeed replaces
torch.accelerator.is_available = lambda: True
torch.accelerator.current_accelerator = lambda check_available=False: None  # or a torch with CUDA would ask for its own
PartialState._prepare_backend = lambda *_: ("gloo", ON_GPUS)
PartialState.set_device = lambda self: setattr(self, "device", torch.device("cpu"))
prepare = Trainer._prepare_for_training


def prepare_and_count(self: Trainer, *args: object) -> object:
    prepared = prepare(self, *args)
    shared = sum(isinstance(one, DTensor) or hasattr(one, "ds_id") for one in self.model.parameters())
    print(f"{shared} of {len([*self.model.parameters()])} weights are shared")
    return prepared


Trainer._prepare_for_training = prepare_and_count
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
