"""A tiny real model and tokenizer, made once a session, so that tests train and generate in seconds."""

import gc
import json
import os
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import pytest
import sentencepiece
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MBartConfig,
    MT5Config,
    PreTrainedTokenizerFast,
    T5Config,
)

DIALOGUES = Path(__file__).parents[1] / "alignment" / "dialogues" / "ko"


SLOWEST = (
    "test_recipes", "test_ppo_trainer", "test_search", "test_reward", "test_memory_benchmark", "test_ppo", "test_sft",
)  # fmt: skip


def pytest_configure() -> None:
    """Unsets what has rich draw as on a terminal, and some CI sets."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        os.environ.pop(name, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first, so that no worker is left with one at the end."""
    items.sort(key=lambda item: SLOWEST.index(item.path.stem) if item.path.stem in SLOWEST else len(SLOWEST))


def pytest_collection_finish() -> None:
    """What the imports made stays for good: recipes collect garbage often, and need not look through it each time."""
    gc.freeze()


@pytest.fixture(scope="module")
def one_core() -> Iterator[None]:
    """One core, and so one thread, here and in the recipes started from here, which must agree to the bit."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    os.sched_setaffinity(0, {sorted(cores)[worker % len(cores)]})
    yield
    os.sched_setaffinity(0, cores)


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


BART_SIZE = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "max_position_embeddings": 1026,
}  # fmt: skip
T5_SIZE = {
    "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "feed_forward_proj": "gated-gelu",
    "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": False,
}  # fmt: skip


def _lines() -> list[str]:
    rows = [json.loads(line) for line in (DIALOGUES / "train.jsonl").read_text("utf-8").splitlines()]
    return [line for row in rows for line in (*row["dialogue"].split("\n"), row["summary"])]


def _like_kobart(folder: Path) -> object:
    """BPE on words that begin with a mark, and nothing in its folder but the type of the model to go by."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    trainer = trainers.BpeTrainer(vocab_size=1500, special_tokens=list(special.values()))
    tokenizer.train_from_iterator(_lines(), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    ids = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 3, "decoder_start_token_id": 1}
    return BartConfig(vocab_size=tokenizer.get_vocab_size(), **ids, forced_eos_token_id=1, **BART_SIZE)


def _like_pko_t5(folder: Path) -> object:
    """Byte-level BPE under the name of T5's tokenizer, which is a Unigram model."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1000, special_tokens=list(special.values()), initial_alphabet=alphabet)
    tokenizer.train_from_iterator(_lines(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(special | {"tokenizer_class": "T5Tokenizer"}))
    return T5Config(vocab_size=1024, **T5_SIZE)


def _like_mt5(folder: Path) -> object:
    """A SentencePiece file alone."""
    options = {"vocab_size": 1500, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_lines()), model_prefix=str(folder / "spiece"), **options
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0}))
    return MT5Config(vocab_size=1600, **T5_SIZE)


def _like_mbart(folder: Path) -> object:
    """A SentencePiece file alone, with language codes behind its tokens."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_lines()), model_prefix=str(folder / "sentencepiece.bpe"), vocab_size=1500, minloglevel=2
    )
    return MBartConfig(vocab_size=1554, tokenizer_class="MBart50Tokenizer", **BART_SIZE)


@pytest.fixture(scope="session")
def tiny_seq2seq(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a random encoder-decoder (fp32) for bart, t5, mt5 or mbart, laid out as the real one on the Hub."""
    makers = {"bart": _like_kobart, "t5": _like_pko_t5, "mt5": _like_mt5, "mbart": _like_mbart}

    @cache
    def make(kind: str) -> Path:
        folder = tmp_path_factory.mktemp("tiny") / kind
        folder.mkdir()
        config = makers[kind](folder)
        torch.manual_seed(0)
        AutoModelForSeq2SeqLM.from_config(config).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def dialogues(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 12 training and 4 held-out dialogues, every other one of the shortest that are embedded."""
    folder = tmp_path_factory.mktemp("dialogues")
    for split, rows in (("train", 12), ("eval", 4)):
        lines = (DIALOGUES / f"{split}.jsonl").read_text("utf-8").splitlines()
        (folder / f"{split}.jsonl").write_text("\n".join(sorted(lines, key=len)[: 2 * rows : 2]) + "\n", "utf-8")
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
