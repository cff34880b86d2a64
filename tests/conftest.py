"""A tiny real model and tokenizer, made once a session, so that tests train and generate in seconds."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

DIALOGUES = Path(__file__).parents[1] / "alignment" / "dialogues" / "ko"


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of 1,000 tokens, trained on the embedded dialogues."""
    texts = [json.loads(line)["dialogue"] for line in (DIALOGUES / "train.jsonl").read_text("utf-8").splitlines()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=1000, special_tokens=["<pad>", "<eos>"], initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: PreTrainedTokenizerFast) -> Path:
    """The folder of a random two-layer Llama (fp32, 0.2 million parameters) with the tiny tokenizer."""
    folder = tmp_path_factory.mktemp("tiny") / "llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048,
        eos_token_id=tiny_tokenizer.eos_token_id, pad_token_id=tiny_tokenizer.pad_token_id,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dialogues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 12 training and 4 held-out dialogues, the shortest of the embedded ones."""
    folder = tmp_path_factory.mktemp("dialogues")
    for split, rows in (("train", 12), ("eval", 4)):
        lines = (DIALOGUES / f"{split}.jsonl").read_text("utf-8").splitlines()
        (folder / f"{split}.jsonl").write_text("\n".join(sorted(lines, key=len)[:rows]) + "\n", "utf-8")
    return folder


@pytest.fixture(scope="session")
def sft_flags_for(tiny_model: Path, dialogues: Path) -> Callable[..., list[str]]:
    """Flags of recipes/sft.py for a run of seconds into a folder; keyword arguments replace or add flags."""

    def flags(output_dir: Path, **changes: object) -> list[str]:
        values: dict[str, object] = {
            "model_name_or_path": tiny_model, "dataset_path": dialogues, "output_dir": output_dir,
            "dtype": "float32", "num_train_epochs": 2, "phase2_epochs": 1, "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2, "rouge_eval_rows": 2, "max_new_tokens": 8, "eval_steps": 2,
            "save_steps": 2, "learning_rate": 1e-2, "use_cpu": True,
        } | changes  # fmt: skip
        return [str(word) for name, value in values.items() for word in (f"--{name}", value)]

    return flags


@pytest.fixture
def sft_flags(sft_flags_for: Callable[..., list[str]], tmp_path: Path) -> Callable[..., list[str]]:
    """`sft_flags_for` the folder `tmp_path / "out"`."""
    return partial(sft_flags_for, tmp_path / "out")
