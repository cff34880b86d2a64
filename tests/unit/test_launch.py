"""alignment/launch.py: what it holds the launcher's settings to, and where an error is told."""

import importlib
import os
import subprocess
import sys

import pytest
import torch

from alignment.errors import InputError
from alignment.launch import launch


def exit_code(main, **options) -> int:
    try:
        launch(main, **options)
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.mark.parametrize(("given", "told"), [("bf16", 1), ("no", 0)])
def test_mixed_precision_of_the_launcher_is_left_out_and_that_is_told(given, told, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", given)
    seen = []
    launch(lambda: seen.append(os.environ["ACCELERATE_MIXED_PRECISION"]))
    assert seen == ["no"]
    assert capsys.readouterr().err.count(f"mixed_precision {given} is not used") == told


@pytest.mark.parametrize(
    ("named", "launched", "threads"),
    [
        (None, False, 6),
        ("3", False, 3),
        ("1", False, 1),
        ("3,1", False, 3),
        ("", False, 6),
        ("1", True, 6),
        ("3", True, 3),
        ("64", True, 6),
        ("", True, 6),
    ],
)
def test_the_user_names_the_threads_or_all_cores_are_used(named, launched, threads, monkeypatch):
    for variable, value in (("OMP_NUM_THREADS", named), ("ACCELERATE_MIXED_PRECISION", "no" if launched else None)):
        monkeypatch.delenv(variable, raising=False)
        if value is not None:
            monkeypatch.setenv(variable, value)
    monkeypatch.setattr("alignment.launch.cpu_count", lambda: 6)
    set_to = []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)  # for the real one holds for all tests that follow
    launch(lambda: None)
    assert set_to == [threads]


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch uses the GPU")
@pytest.mark.parametrize(("hidden", "told"), [(None, 1), ("", 0)])
def test_a_gpu_that_torch_cannot_use_is_told_of(hidden, told, tmp_path, monkeypatch, capsys):
    (tmp_path / "nvidia-smi").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    launch(lambda: None)
    assert capsys.readouterr().err.count("There is an NVIDIA GPU, but torch") == told


@pytest.mark.parametrize(("capability", "code"), [((7, 0), 2), ((7, 5), 0), ((9, 0), 0)])
def test_a_gpu_that_torch_was_not_built_for_is_refused(capability, code, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90a", "compute_120"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert exit_code(lambda: None) == code
    assert ("compute capability 7.0" in capsys.readouterr().err) == bool(code)


def test_a_gpu_that_the_launcher_was_to_leave_alone_is_not_taken(monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert exit_code(lambda: None) == 0  # there is none
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_arch_list", list)
    assert exit_code(lambda: None) == 2
    assert "leaves a GPU in sight. Use --config_file accelerate_configs/cpu.yaml" in capsys.readouterr().err


def test_a_package_that_is_not_there_is_told_of_in_one_line(capsys):
    def main():
        raise ImportError("Install it with `pip install liger-kernel`")

    assert exit_code(main) == 2
    assert capsys.readouterr().err.strip() == "error: Install it with `pip install liger-kernel`"
    with pytest.raises(ImportError):  # a bug
        exit_code(lambda: importlib.import_module("alignment.utils"))


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_a_recipe_that_shards_no_model_is_not_run_where_one_would_be(variable, monkeypatch, capsys):
    monkeypatch.setenv(variable, "true")
    ran = []
    assert exit_code(lambda: ran.append(1), shards=False) == 2
    assert "needs the whole base on each GPU: not FSDP or DeepSpeed" in capsys.readouterr().err
    assert exit_code(lambda: ran.append(2)) == 0
    assert ran == [2]


def test_a_reader_who_leaves_ends_it_without_a_traceback():
    code = "from alignment.launch import launch; launch(lambda: print('summary ' * 100_000, flush=True))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


@pytest.mark.parametrize(("local_rank", "told"), [(0, 1), (1, 0)])
def test_an_error_is_told_once_on_each_machine(local_rank, told, monkeypatch, capsys):
    def fail():
        monkeypatch.setenv("RANK", str(8 + local_rank))  # of the second machine; later than `launch` would join a group
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))
        raise InputError("no such file")

    with pytest.raises(SystemExit) as stop:
        launch(fail)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("error: no such file") == told
