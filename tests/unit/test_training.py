"""alignment/training.py: what training does to its process."""

import ctypes
import resource
from pathlib import Path

import pytest
import torch
from recipe_runs import result_of
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3TextConfig, PretrainedConfig, TrainingArguments

from alignment.training import ResumableTrainer, return_freed_memory


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text("utf-8").split()[1]) * resource.getpagesize() / 2**20


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


TEXT = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16,
}  # fmt: skip
IMAGES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "looks"),
    [
        (Gemma3TextConfig(**TEXT), False),
        (Gemma3Config(text_config=TEXT, vision_config=IMAGES, mm_tokens_per_image=4), True),
    ],
)
def test_ddp_looks_for_weights_without_a_gradient_where_dialogues_leave_some(
    config: PretrainedConfig, looks: bool, tmp_path: Path
):
    model = AutoModelForCausalLM.from_config(config)
    trainer = ResumableTrainer(model=model, args=TrainingArguments(str(tmp_path), use_cpu=True, report_to=[]))
    assert trainer.accelerator.ddp_handler.find_unused_parameters == looks
    model(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()
    unused = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    assert bool(unused) == looks
