"""benchmarks/memory.py: the shapes of the models, and the estimate against memory that was really taken."""

import contextlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks import memory

PARAMETERS = {
    "polyglot-ko-5.8b": 5_885_059_072,
    "kogpt": 6_166_502_400,
    "llama-2-ko-7b": 6_855_856_128,
    "solar-10.7b": 10_731_524_096,
    "gemma-3-270m": 268_098_176,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
}
SMALL = LlamaConfig(
    vocab_size=512, hidden_size=256, intermediate_size=512, num_hidden_layers=3, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=1024, tie_word_embeddings=False,
)  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_shape_has_the_parameters_of_the_published_model(name: str):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(memory.SHAPES[name], dtype=torch.bfloat16)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


def test_7b_is_estimated_within_the_memory_that_is_promised():
    assert memory.estimate(memory.SHAPES["llama-2-ko-7b"], memory.FineTuning()) < 7
    assert memory.estimate(memory.SHAPES["llama-2-ko-7b"], memory.Updates()) < 12


@pytest.mark.parametrize("name", ["gemma-3-270m", "qwen3-0.6b"])
def test_a_yaml_says_what_its_fine_tuning_is_estimated_to_take(name: str):
    head = (memory.CONFIGS / f"{name}.yaml").read_text("utf-8").partition("# Licence")[0]
    estimated = memory.estimate(memory.SHAPES[name], memory.FineTuning.of(name)) + 1  # GiB of CUDA
    assert f": {estimated:.1f} GiB with 4 dialogues of 1,024 tokens" in head


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_table_of_models_has_the_estimates_of_their_yamls(name: str):
    root = memory.CONFIGS.parents[1]
    found = json.loads((root / "benchmarks" / "results" / "memory-estimates.json").read_text("utf-8"))["estimates"]
    gib = {one["task"]: one["estimated_gib"] + 1 for one in found if one["model"] == name}  # 1 of CUDA
    (row,) = re.findall(rf"^\| {name}[ ,(].*", (root / "README.md").read_text("utf-8"), re.MULTILINE | re.IGNORECASE)
    assert [float(cell) for cell in row.split("|")[2:4]] == pytest.approx([gib["yaml"], gib["yaml_ppo"]], abs=0.051)


FEW = memory.FineTuning(tokens=128)  # for 4-bit layers are slow on a CPU; PPO keeps the caches that it estimates


@pytest.fixture
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SUMMARY_TOKENS", 24)


@pytest.mark.usefixtures("few_tokens")
@pytest.mark.parametrize(
    "how", [FEW, replace(FEW, in_4_bits=False, checkpointing=False, lora_dropout=0.1), memory.Updates()]
)
def test_the_estimate_is_what_the_steps_take(how: memory.FineTuning | memory.Updates):
    estimated, taken = (memory.estimate(SMALL, how, device) for device in ("meta", "cpu"))
    assert estimated == pytest.approx(taken, rel=0.1)


@pytest.mark.usefixtures("few_tokens")
def test_the_estimate_is_what_the_trainer_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # kernels of a GPU take what they like besides
    with memory.Peak("cpu") as peak:
        memory.measure(SMALL, FEW, tmp_path)
    assert memory.estimate(SMALL, FEW) == pytest.approx(peak.peak / memory.GIB, rel=0.1)


def test_updates_of_ppo_are_measured(tmp_path: Path):
    few = memory.Updates(batch=2, prompt_tokens=24, new_tokens=4)
    with contextlib.redirect_stderr(None):
        assert memory.measure(SMALL, few, tmp_path)["tokens_per_second"] > 0
