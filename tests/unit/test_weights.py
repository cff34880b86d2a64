"""alignment/weights.py: what is told of files of weights."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from alignment.errors import InputError
from alignment.weights import intact, size_of, weights_of


def write(folder: Path, value: float, numbers: int = 20_971_520) -> Path:
    """A file of as many float32 numbers, 80 MiB by default, one of the last of which has this value."""
    folder.mkdir()
    weight = torch.zeros(numbers)
    weight[-1000] = value
    save_file({"weight": weight}, folder / "model.safetensors")
    return folder


def test_copied_weights_are_the_same_and_others_are_not(tmp_path: Path):
    one, other = write(tmp_path / "one", 1.0), write(tmp_path / "other", 2.0)
    shutil.copytree(one, tmp_path / "copy", copy_function=shutil.copyfile)  # a copy of another time
    assert weights_of(one) == weights_of(tmp_path / "copy") != weights_of(other)
    assert [*weights_of(one)] == ["model.safetensors"]
    (one / "manifest.json").write_text("{}")
    assert weights_of(one) == weights_of(tmp_path / "copy")
    (one / "reward.json").write_text('{"scale": 1}')
    assert weights_of(one) != weights_of(tmp_path / "copy")
    assert weights_of(tmp_path) == {}


def test_numbers_and_bytes(tmp_path: Path):
    size = size_of(write(tmp_path / "one", 1.0, numbers=1000))
    assert size["numbers"] == 1000
    assert 4000 < size["bytes"] < 4200


def test_a_file_that_was_cut_is_named(tmp_path: Path):
    file = write(tmp_path / "one", 1.0, numbers=1000) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"model\.safetensors: broken or cut \(.*Copy or download it again"):
        size_of(tmp_path / "one")


def test_other_faults_pass():
    with pytest.raises(OSError, match="elsewhere"), intact(Path("a")):
        raise OSError("elsewhere")
