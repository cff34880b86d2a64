"""benchmarks/memory.py: the shapes of the models, and the estimate against memory that was really taken."""

import contextlib
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
    assert memory.estimate(memory.SHAPES["llama-2-ko-7b"], "sft") < 7
    assert memory.estimate(memory.SHAPES["llama-2-ko-7b"], "ppo") < 12


@pytest.fixture
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer for fine-tuning, as 4-bit layers are slow on a CPU; PPO keeps the keys and values that it estimates."""
    monkeypatch.setattr(memory, "SFT_TOKENS", 128)
    monkeypatch.setattr(memory, "SUMMARY_TOKENS", 24)


@pytest.mark.usefixtures("few_tokens")
@pytest.mark.parametrize("task", ["sft", "ppo"])
def test_the_estimate_is_what_the_steps_take(task: str):
    estimated, taken = (memory.estimate(SMALL, task, device) for device in ("meta", "cpu"))
    assert estimated == pytest.approx(taken, rel=0.1)


@pytest.mark.usefixtures("few_tokens")
def test_the_estimate_is_what_the_trainer_takes(tmp_path: Path):
    with memory.Peak("cpu") as peak:
        memory.measure(SMALL, "sft", tmp_path)
    assert memory.estimate(SMALL, "sft") == pytest.approx(peak.peak / memory.GIB, rel=0.1)


def test_updates_of_ppo_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in (("PPO_BATCH", 2), ("PROMPT_TOKENS", 24), ("NEW_TOKENS", 4)):
        monkeypatch.setattr(memory, name, value)
    with contextlib.redirect_stderr(None):
        assert memory.measure(SMALL, "ppo", tmp_path)["tokens_per_second"] > 0
