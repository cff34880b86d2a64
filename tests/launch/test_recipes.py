"""The recipes by `accelerate launch`: the shipped configs, one process against two, and a user's error."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from recipe_runs import WITHOUT_GPU, curve, manifest, start
from safetensors.torch import load_file
from vllm_server import Server

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "accelerate_configs"
Flags = Callable[..., list[str]]

EXPECTED = {  # distributed type, processes, machines
    "cpu": ("NO", 1, 1),
    "cpu_two_processes": ("MULTI_GPU", 2, 1),
    "single_gpu": ("NO", 1, 1),
    "multi_gpu": ("MULTI_GPU", 2, 1),
    "fsdp2_qlora": ("FSDP", 2, 1),
    "zero3": ("DEEPSPEED", 2, 1),
    "multi_node": ("MULTI_GPU", 16, 2),
}


def execute(command: list[str], text: str = "", on_gpu: bool = False) -> subprocess.CompletedProcess[str]:
    # PASSIVE: on a busy machine, threads that wait for each other by spinning take up to a hundred times as long.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"} | ({} if on_gpu else WITHOUT_GPU)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, input=text)


def launch(
    config: str, flags: list[str], script: str = "recipes/sft.py", text: str = "", port: int = 0, of_machine: str = "",
    on_gpu: bool = False,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--main_process_port", str(port)]
    launcher += ["--config_file", str(CONFIGS / f"{config}.yaml"), *of_machine.split()]
    return execute([*launcher, script, *flags], text, on_gpu)


def alone(recipe: str, flags: list[str]) -> str:
    """What a recipe says that runs in one process, without the launcher."""
    process, said = start(recipe, flags, ACCELERATE_USE_CPU="true")
    text = said.read()
    process.join()
    assert process.exitcode == 0, text
    return text


def by_two(recipe: str, flags: list[str]) -> str:
    """What a recipe says that is launched on two processes."""
    result = launch("cpu_two_processes", flags, f"recipes/{recipe}.py")
    assert result.returncode == 0, result.stderr
    return result.stderr


ALONE_AND_TOGETHER = {1: alone, 2: by_two}


@pytest.fixture(scope="module")
def launched(sft_flags_for: Flags, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """A whole run on one process and one on two, of equal global batch, by the number of processes.

    The evaluation batches differ on purpose, and there are fewer dialogues to summarise than processes.
    """
    folder = tmp_path_factory.mktemp("launched")
    runs = {1: ("cpu", 2, 3), 2: ("cpu_two_processes", 1, 1)}
    for processes, (config, accumulation, eval_batch) in runs.items():
        flags = sft_flags_for(
            folder / str(processes), use_cpu=False, lora_dropout=0, gradient_accumulation_steps=accumulation,
            per_device_eval_batch_size=eval_batch, rouge_eval_rows=1, save_total_limit=10, load_best_model_at_end=False,
        )  # fmt: skip
        result = launch(config, flags)
        assert result.returncode == 0, result.stderr
    return {processes: folder / str(processes) for processes in runs}


@pytest.mark.parametrize("processes", [1, 2])
def test_the_config_starts_that_many_processes(launched: dict[int, Path], processes: int):
    assert manifest(launched[processes] / "phase1")["world_size"] == processes


@pytest.mark.parametrize("phase", ["phase1", "phase2"])
@pytest.mark.parametrize("name", ["loss", "eval_loss"])
def test_one_process_and_two_learn_the_same(launched: dict[int, Path], phase: str, name: str):
    one, two = (curve(launched[processes] / phase, name) for processes in (1, 2))
    assert len(one) >= 2
    assert two == pytest.approx(one, rel=1e-4)


def test_weights_that_two_processes_share_write_and_learn_as_whole_ones(tiny_model: Path):
    result = launch("cpu_two_processes", [str(tiny_model)], "tests/sharded.py")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "process 0: 28 gradients agree" in result.stdout
    assert "process 1: 28 gradients agree" in result.stdout


def finished_sharded(config: str, folder: Path, sft_flags_for: Flags, **changes: object) -> Path:
    """A whole run of two processes that share every weight, with the dialogues and batches of `launched`.

    Each has more than one dialogue to summarise, and not as many as the other.
    """
    flags = sft_flags_for(
        folder, use_cpu=False, lora_dropout=0, gradient_accumulation_steps=1, per_device_eval_batch_size=1,
        rouge_eval_rows=3, dataloader_pin_memory=False, **changes,
    )  # fmt: skip
    result = launch(config, ["recipes/sft.py", *flags], "tests/on_cpu.py")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("49 of 49 weights are shared") == 4  # two phases in two processes
    return folder


def test_4_bit_weights_that_fsdp2_shares_go_through_both_phases(
    launched: dict[int, Path], sft_flags_for: Flags, tmp_path: Path
):
    folder = finished_sharded(
        "fsdp2_qlora", tmp_path, sft_flags_for, dtype="bfloat16", load_in_4bit=True, gradient_checkpointing=True
    )
    for phase in ("phase1", "phase2"):
        assert curve(folder / phase, "loss") == pytest.approx(curve(launched[2] / phase, "loss"), rel=2e-2)
        assert len(curve(folder / phase, "eval_rouge")) == len(curve(folder / phase, "eval_loss")) > 0


@pytest.mark.skipif(not find_spec("deepspeed"), reason="DeepSpeed is not installed")
def test_weights_that_zero3_shares_learn_as_whole_ones(
    launched: dict[int, Path], sft_flags_for: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    folder = finished_sharded("zero3", tmp_path, sft_flags_for, load_best_model_at_end=False)
    for phase in ("phase1", "phase2"):
        for name in ("loss", "eval_loss"):
            assert curve(folder / phase, name) == pytest.approx(curve(launched[2] / phase, name), rel=1e-4)


def test_two_machines_of_one_process_learn_as_two_processes(
    launched: dict[int, Path], sft_flags_for: Flags, tmp_path: Path
):
    flags = sft_flags_for(
        tmp_path, use_cpu=False, lora_dropout=0, gradient_accumulation_steps=1, per_device_eval_batch_size=1,
        rouge_eval_rows=1, load_best_model_at_end=False,
    )  # fmt: skip
    with socket.socket() as one, ThreadPoolExecutor(2) as machines:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
        one.close()
        here = "--main_process_ip 127.0.0.1 --num_processes 2 --machine_rank"
        results = [
            machines.submit(launch, "multi_node", flags, port=port, of_machine=f"{here} {rank}") for rank in (0, 1)
        ]
        assert [result.result().returncode for result in results] == [0, 0], results[0].result().stderr
    assert manifest(tmp_path / "phase2")["world_size"] == 2
    for phase in ("phase1", "phase2"):
        assert curve(tmp_path / phase, "loss") == pytest.approx(curve(launched[2] / phase, "loss"), rel=1e-4)


def test_two_processes_resume_within_the_second_epoch(launched: dict[int, Path], sft_flags_for: Flags, tmp_path: Path):
    whole, killed = launched[2] / "phase1", tmp_path / "killed"
    shutil.copytree(whole, killed / "phase1")
    shutil.rmtree(killed / "phase1" / "checkpoint-6")  # what is left was there after 4 of 6 steps, 3 an epoch
    unfinished = manifest(whole) | {"finished": False}
    (killed / "phase1" / "manifest.json").write_text(json.dumps(unfinished), "utf-8")

    flags = sft_flags_for(
        killed, use_cpu=False, lora_dropout=0, gradient_accumulation_steps=1, per_device_eval_batch_size=1,
        rouge_eval_rows=1, save_total_limit=10, load_best_model_at_end=False, phases=1, resume_from_checkpoint=True,
    )  # fmt: skip
    result = launch("cpu_two_processes", flags)
    assert "checkpoint-4" in result.stderr, result.stderr
    assert "2 processes: a step is of 2 x 2 examples. To keep 2, divide" in result.stderr
    expected = (whole / "adapter_model.safetensors").read_bytes()
    assert (killed / "phase1" / "adapter_model.safetensors").read_bytes() == expected


def test_two_processes_write_and_score_what_one_does(tiny_model: Path, dialogues: Path, tmp_path: Path):
    flags = f"--model {tiny_model} --dataset_path {dialogues} --max_eval_rows 3 --batch_size 1 --max_new_tokens 8"
    flags += " --combine mbr --samples 3"  # beside a greedy summary
    for name, run in ALONE_AND_TOGETHER.items():
        said = run("evaluate", [*flags.split(), "--output_dir", str(tmp_path / str(name))])
        assert said.count("Written:") == 1  # two that take themselves for the only one would both say so
        assert sorted(file.name for file in (tmp_path / str(name)).iterdir()) == [
            "dialogues.jsonl", "predictions.csv", "results.json",
        ]  # fmt: skip
    one, two = (tmp_path / str(name) / "predictions.csv" for name in ALONE_AND_TOGETHER)
    assert len(one.read_text("utf-8").splitlines()) == 4
    assert two.read_bytes() == one.read_bytes()


def test_two_processes_hold_out_for_the_baseline_what_one_does(
    tiny_seq2seq: Callable[[str], Path], dialogues: Path, tmp_path: Path
):
    """Three dialogues are held out, so that one of two processes has a row twice; at this rate nothing is learnt."""
    flags = f"--model_name_or_path {tiny_seq2seq('bart')} --dataset_path {dialogues} --max_eval_rows 3 --dtype float32"
    flags += " --per_device_eval_batch_size 1 --rouge_eval_rows 0 --max_steps 1 --eval_steps 1 --save_steps 1"
    for processes, run in ALONE_AND_TOGETHER.items():
        run("baseline", [*flags.split(), "--learning_rate", "0", "--output_dir", str(tmp_path / str(processes))])
    one, two = (curve(tmp_path / str(processes), "eval_loss") for processes in ALONE_AND_TOGETHER)
    assert len(one) == 1
    assert two == pytest.approx(one, rel=1e-5)


@pytest.fixture(scope="module")
def rewarded(
    launched: dict[int, Path], tiny_model: Path, dialogues: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, Path]:
    """A reward model by two processes and one by one, from the samples of the two, by the number of processes.

    Five steps, as the sixth and last of the epoch is a part of one, which two processes fill up. The evaluation batches
    differ on purpose.
    """
    folder = tmp_path_factory.mktemp("rewarded")
    for processes, accumulation in ((2, 1), (1, 2)):
        if processes == 1:
            (folder / "1" / "data").mkdir(parents=True)
            for path in (folder / "2" / "data").glob("*.samples.*"):
                shutil.copy(path, folder / "1" / "data")
        flags = (
            f"--model_name_or_path {tiny_model} --sft_model {launched[1]}/phase2 --dataset_path {dialogues} "
            f"--output_dir {folder}/{processes} --dtype float32 --samples 1 --sample_batch_size 3 --max_new_tokens 8 "
            f"--max_steps 5 --per_device_train_batch_size 2 --gradient_accumulation_steps {accumulation} "
            f"--per_device_eval_batch_size {processes} --eval_steps 2 --save_steps 2 --learning_rate 2e-3 "
            "--disable_dropout true"
        )
        ALONE_AND_TOGETHER[processes]("reward", flags.split())
    return {processes: folder / str(processes) for processes in (1, 2)}


@pytest.mark.parametrize("processes", [1, 2])
def test_a_reward_model_is_trained_by_that_many_processes(rewarded: dict[int, Path], processes: int):
    assert manifest(rewarded[processes] / "model")["world_size"] == processes


@pytest.mark.parametrize("name", ["loss", "eval_loss", "accuracy"])
def test_one_process_and_two_learn_the_same_rewards(rewarded: dict[int, Path], name: str):
    one, two = (curve(rewarded[processes] / "model", name) for processes in (1, 2))
    assert len(one) >= 2
    assert two == pytest.approx(one, rel=1e-4)


def test_two_processes_sample_and_report_what_one_reads(rewarded: dict[int, Path]):
    for name in ("train.pairs.jsonl", "held_out.pairs.jsonl"):
        one, two = (rewarded[processes] / "data" / name for processes in (1, 2))
        assert one.read_bytes() == two.read_bytes()
    assert len((rewarded[2] / "data" / "train.samples.jsonl").read_text("utf-8").splitlines()) == 12
    assert not list(rewarded[2].rglob("*.journal"))
    one, two = (json.loads((rewarded[n] / "report.json").read_text("utf-8"))["accuracy"] for n in (1, 2))
    assert two == pytest.approx(one, abs=0.02)


@pytest.fixture(scope="module")
def optimised(
    launched: dict[int, Path],
    rewarded: dict[int, Path],
    tiny_model: Path,
    dialogues: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[int, Path]:
    """Phase 3 by one process and by two, of equal global batch, by the number of processes."""
    folder = tmp_path_factory.mktemp("optimised")
    for processes, accumulation in ((1, 2), (2, 1)):
        flags = (
            f"--model_name_or_path {tiny_model} --sft_model {launched[1]}/phase2 --reward_model {rewarded[1]} "
            f"--allow_unfit true --scorers reward_model rouge --dataset_path {dialogues} "
            f"--output_dir {folder}/{processes} --max_new_tokens 8 --num_updates 2 --rollout_batch_size 4 "
            f"--num_generations 2 --per_device_train_batch_size 2 --gradient_accumulation_steps {accumulation} "
            "--num_ppo_epochs 2 --eval_steps 1 --save_steps 1 --learning_rate 2e-3 --kl_target 1"
        )
        ALONE_AND_TOGETHER[processes]("ppo", flags.split())
    return {processes: folder / str(processes) for processes in (1, 2)}


@pytest.mark.parametrize("processes", [1, 2])
def test_phase_3_is_trained_by_that_many_processes(optimised: dict[int, Path], processes: int):
    assert manifest(optimised[processes] / "phase3")["world_size"] == processes


@pytest.mark.parametrize(
    "name",
    [
        "loss", "policy_loss", "value_loss", "reward", "length_tokens", "entropy", "ratio", "kl_coef", "score",
        "eval_score",
    ],
)  # fmt: skip
def test_one_process_and_two_optimise_the_same(optimised: dict[int, Path], name: str):
    one, two = (curve(optimised[processes] / "phase3", name) for processes in (1, 2))
    assert len(one) >= 2
    assert two == pytest.approx(one, rel=1e-3, abs=1e-5)


def test_one_process_and_two_end_with_the_same_policy(optimised: dict[int, Path]):
    one, two = (load_file(optimised[n] / "phase3" / "adapter_model.safetensors") for n in (1, 2))
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, rtol=1e-2, atol=1e-4)


@pytest.fixture
def sampled_by(launched: dict[int, Path], tiny_model: Path, dialogues: Path, tmp_path: Path) -> Callable[[str], Any]:
    """Starts phase 3 on two processes, sampled by a server at an address."""

    def start(url: str) -> subprocess.CompletedProcess[str]:
        flags = (
            f"--model_name_or_path {tiny_model} --sft_model {launched[1]}/phase2 --scorers rouge --vllm_url {url} "
            f"--dataset_path {dialogues} --output_dir {tmp_path} --max_new_tokens 8 --num_updates 2 "
            "--rollout_batch_size 4 --per_device_train_batch_size 2 --gradient_accumulation_steps 1 --save_strategy no "
            "--num_ppo_epochs 1 --eval_steps 2 --max_eval_rows 2 --load_best_model_at_end false"
        )
        return launch("cpu_two_processes", flags.split(), script="recipes/ppo.py")

    return start


@pytest.fixture
def server(tiny_model: Path) -> Iterator[Server]:
    with Server(tiny_model) as one:
        Thread(target=one.serve_forever, daemon=True).start()
        yield one
        one.shutdown()


def test_one_server_samples_for_two_processes(sampled_by: Callable[[str], Any], server: Server, tmp_path: Path):
    result = sampled_by(server.url)
    assert result.returncode == 0, result.stderr
    assert manifest(tmp_path / "phase3")["world_size"] == 2
    assert len(server.loaded) == 3  # to compare, and for each rollout
    assert len({body["seed"] for body in server.asked}) == 8
    lengths = [sum(map(len, part)) / 4 for part in (server.written[:4], server.written[4:])]
    assert curve(tmp_path / "phase3", "length_tokens") == pytest.approx(lengths)


def test_a_server_that_fails_in_a_rollout_is_told_once_by_two_processes(
    sampled_by: Callable[[str], Any], server: Server
):
    server.fails_after = 5
    result = sampled_by(server.url)
    assert result.returncode != 0
    assert result.stderr.count("error: ") == 1
    assert f"--vllm_url {server.url}/v1/completions: 500 out of memory" in result.stderr
    assert str(ROOT / "alignment") not in result.stderr  # no traceback of ours


def test_two_processes_share_one_standard_input(tiny_model: Path):
    flags = f"--model {tiny_model} --max_new_tokens 8 --dtype float32"
    text = "#Person1#: 내일 볼까?\n#Person2#: 좋아.\n\n#Person1#: 몇 시에 와?\n#Person2#: 세 시에 가."
    one = execute([sys.executable, "recipes/summarize.py", *flags.split()], text)
    two = launch("cpu_two_processes", flags.split(), "recipes/summarize.py", text)
    assert two.returncode == 0, two.stderr
    assert two.stdout == one.stdout
    assert len(one.stdout.splitlines()) == 2


def test_an_error_on_two_processes_is_told_once(launched: dict[int, Path], sft_flags_for: Flags):
    result = launch("cpu_two_processes", sft_flags_for(launched[2], use_cpu=False, learning_rate=0.5))
    assert result.returncode != 0
    assert result.stderr.count("error: ") == 1
    assert "learning_rate 0.01 -> 0.5" in result.stderr
    assert str(ROOT / "alignment") not in result.stderr  # no traceback of ours


def test_an_error_under_a_quiet_launch_is_one_message():
    result = launch("cpu", ["--phases", "3"])
    assert result.returncode != 0
    assert "error: --phases 3: expected 1, 2 or 1,2." in result.stderr
    assert "Traceback" not in result.stderr


def test_an_error_without_a_launcher_is_one_line_and_exit_code_2():
    result = execute([sys.executable, "recipes/sft.py", "--phases", "3"])
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [result.stderr.strip()]
    assert result.stderr.startswith("error: --phases 3")


def test_an_error_under_a_live_table_leaves_the_cursor_shown():
    program = """
from rich.live import Live
from alignment.errors import InputError
from alignment.launch import launch
from alignment.progress import console

def main():
    Live("table", console=console).start()
    raise InputError("wrong")

launch(main)
"""
    terminal, side = os.openpty()
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stderr=side, timeout=120)
    shown = os.read(terminal, 100_000).decode()
    assert result.returncode == 2
    assert "error: wrong" in shown
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l") >= 0


def test_every_config_is_expected_here():
    assert {path.stem for path in CONFIGS.iterdir()} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_accepts_the_config(name: str):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert (config.distributed_type.value, config.num_processes, config.num_machines) == EXPECTED[name]
    assert config.mixed_precision == "no"


@pytest.mark.parametrize("name", EXPECTED)
def test_the_config_opens_with_its_command(name: str):
    comment, _, _ = (CONFIGS / f"{name}.yaml").read_text("utf-8").partition("compute_environment")
    assert all(line.startswith("#") for line in comment.splitlines())
    assert f"accelerate launch --config_file accelerate_configs/{name}.yaml" in comment


def test_fsdp_saves_what_can_be_loaded_again():
    fsdp = load_config_from_file(str(CONFIGS / "fsdp2_qlora.yaml")).fsdp_config
    assert fsdp["fsdp_version"] == 2
    assert fsdp["fsdp_state_dict_type"] == "FULL_STATE_DICT"


# --- a GPU ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def on_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs recipes, each with its flags, on the machine's GPU; where it has none, on one that a library plays.

    Returns the GPU's name.
    """
    if torch.cuda.is_available():

        def on_real(*runs: list[str]) -> str:
            for script, *flags in runs:
                result = launch("single_gpu", flags, script, on_gpu=True)
                assert result.returncode == 0, result.stderr
            return torch.cuda.get_device_name()

        return on_real
    compiler = shutil.which("g++")
    if not compiler or torch.version.cuda or sys.platform != "linux":
        pytest.skip("needs a GPU, or g++ on Linux and a torch without CUDA")
    library, home = tmp_path / "stand_in_gpu.so", Path(torch.__file__).parent
    command = [compiler, "-std=c++20", "-fPIC", "-shared", "tests/stand_in_gpu.cpp", "-o", str(library)]
    command += [f"-I{home / folder}" for folder in ("include", "include/torch/csrc/api/include")]
    built = execute([*command, f"-L{home / 'lib'}", f"-Wl,-rpath,{home / 'lib'}", "-lc10", "-ltorch_cpu"])
    assert built.returncode == 0, built.stderr

    def on_stand_in(*runs: list[str]) -> str:
        _, *words = (word for recipe in runs for word in ("then", *recipe))
        with monkeypatch.context() as patched:
            patched.setenv("LD_PRELOAD", str(library))
            result = launch("single_gpu", words, "tests/on_stand_in_gpu.py", on_gpu=True)
        assert result.returncode == 0, result.stderr
        return "stand-in"

    return on_stand_in


def test_what_is_on_a_gpu_stays_there_and_learns_the_same(
    on_gpu: Callable[..., str], launched: dict[int, Path], sft_flags_for: Flags, tiny_model: Path, dialogues: Path,
    tmp_path: Path,
):  # fmt: skip
    trained = tmp_path / "gpu" / "phase1"

    def ppo_flags(folder: str) -> list[str]:
        values = {
            "model_name_or_path": tiny_model, "sft_model": trained, "scorers": "rouge", "dataset_path": dialogues,
            "dtype": "float32", "rollout_batch_size": 4, "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2, "max_new_tokens": 8, "num_updates": 2, "eval_steps": 2, "save_steps": 2,
            "output_dir": tmp_path / folder,
        }  # fmt: skip
        return [str(word) for name, value in values.items() for word in (f"--{name}", value)]

    sft_flags = sft_flags_for(
        tmp_path / "gpu", use_cpu=False, phases=1, lora_dropout=0, gradient_accumulation_steps=2,
        per_device_eval_batch_size=3, rouge_eval_rows=1, load_best_model_at_end=False,
    )  # fmt: skip
    gpu = on_gpu(["recipes/sft.py", *sft_flags], ["recipes/ppo.py", *ppo_flags("gpu")])
    assert gpu in manifest(trained)["machine"]["gpus"]
    assert curve(trained, "loss") == pytest.approx(curve(launched[1] / "phase1", "loss"), rel=1e-4)
    alone("ppo", ppo_flags("cpu"))
    for name in ("loss", "kl", "eval_rouge"):
        ours, cpus = (curve(tmp_path / folder / "phase3", name) for folder in ("gpu", "cpu"))
        assert ours
        assert ours == pytest.approx(cpus, rel=1e-3, abs=1e-5)
