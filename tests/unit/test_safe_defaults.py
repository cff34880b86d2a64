"""alignment/__init__.py: nothing is sent to anybody unless it is asked for, and a GPU's memory is not cut to pieces."""

import subprocess
import sys

import pytest

TOLD = "print(constants.HF_HUB_DISABLE_TELEMETRY, os.environ['DISABLE_SAFETENSORS_CONVERSION'])"


@pytest.mark.parametrize(("wish", "says"), [(None, "True 1"), ("0", "False 1")])
def test_telemetry_is_off_also_where_the_client_was_imported_before_unless_it_is_wanted(wish, says, monkeypatch):
    for name in ("HF_HUB_DISABLE_TELEMETRY", "DISABLE_SAFETENSORS_CONVERSION", "DO_NOT_TRACK"):
        monkeypatch.delenv(name, raising=False)
    if wish:
        monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", wish)
    code = f"import os; from huggingface_hub import constants; import alignment; {TOLD}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == says


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, "None"),
    ],
)
def test_the_allocator_grows_its_segments_unless_another_way_is_named(theirs, ours, monkeypatch):
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    for name, value in theirs.items():
        monkeypatch.setenv(name, value)
    code = "import os, alignment; print(os.environ.get('PYTORCH_ALLOC_CONF'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ours
