"""recipes/sft.py from end to end on a tiny model: what it writes, refuses, resumes and trains on."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from recipe_runs import curve, manifest, start, start_and_kill
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from alignment import run
from alignment.arguments import SFTArguments
from alignment.data import load_records
from alignment.dialogue import INSTRUCTIONS, encode_prompt, prompt_for
from alignment.errors import InputError
from alignment.launch import launch
from alignment.pretrained import load_tokenizer
from alignment.sft import DialogueSFTTrainer, encode
from recipes import sft

pytestmark = pytest.mark.usefixtures("one_core")  # which makes runs agree to the bit

ADAPTER = "adapter_model.safetensors"
Flags = Callable[..., list[str]]

# 3 steps an epoch and 12 a phase, so that every checkpoint but the last lies within an epoch; dropout is 0.1.
LONG = {"num_train_epochs": 4, "phase2_epochs": 4, "eval_steps": 4, "save_steps": 4, "load_best_model_at_end": False}
# One step, nothing evaluated or saved on the way.
SHORT = {"max_steps": 1, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}


def train(flags: list[str]) -> None:
    """As the recipe is started, with its number of threads."""
    launch(lambda: sft.main(flags))


def unfinish(folder: Path, last_step: int) -> None:
    """Leaves of a finished phase what was there when it had saved `last_step`."""
    (folder / "manifest.json").write_text(json.dumps(manifest(folder) | {"finished": False}), "utf-8")
    for checkpoint in folder.glob("checkpoint-*"):
        if int(checkpoint.name.split("-")[1]) > last_step:
            shutil.rmtree(checkpoint)


@pytest.fixture(scope="module")
def finished(one_core: None, sft_flags_for: Flags, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of both phases, never interrupted."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    train(sft_flags_for(folder, **LONG))
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of `finished` that a test may change."""
    return shutil.copytree(finished, tmp_path / "out")


# What is written


@pytest.mark.parametrize("phase", ["phase1", "phase2"])
def test_a_phase_leaves_adapter_and_tokenizer(finished: Path, phase: str):
    names = {path.name for path in (finished / phase).iterdir()}
    assert {ADAPTER, "adapter_config.json", "tokenizer.json", "tokenizer_config.json"} <= names


@pytest.mark.parametrize("phase", [1, 2])
def test_the_manifest_tells_what_made_the_result(finished: Path, phase: int):
    told = manifest(finished / f"phase{phase}")
    assert told["finished"] is True
    assert told["phase"] == phase
    assert told["settings"]["learning_rate"] == 0.01
    assert set(run.PACKAGES) < set(told["versions"])
    assert re.fullmatch("[0-9a-f]{40}", told["commit"] or "0" * 40)  # none outside a checkout
    assert {split: facts["rows"] for split, facts in told["data"].items()} == {"train": 12, "held_out": 4}
    assert all(re.fullmatch("[0-9a-f]{64}", facts["sha256"]) for facts in told["data"].values())
    assert told["seconds"] > 0
    assert told["peak_memory_gib"] > 0


def test_a_held_out_summary_is_shown_before_training_and_at_each_evaluation(
    sft_flags_for: Flags, tmp_path: Path, dialogues: Path, capsys: pytest.CaptureFixture[str]
):
    def shown(**settings: Any) -> list[list[str]]:
        train(sft_flags_for(tmp_path / "out", phases=1, max_steps=2, eval_steps=1, save_steps=1, **settings))
        lines = capsys.readouterr().err.splitlines()
        reference = " ".join(load_records(dialogues, split="eval")[0][0].references[0].split())
        assert f"Phase 1, a held-out dialogue's reference: {reference}" in lines
        return [line.split(" writes: ") for line in lines if " writes: " in line]

    whole = shown()
    assert [when for when, _ in whole] == [f"Phase 1 step {step}" for step in (0, 1, 2)]
    assert whole[0][1] != whole[2][1] != ""  # two updates from there
    unfinish(tmp_path / "out" / "phase1", last_step=1)
    assert shown(resume_from_checkpoint=True) == whole[2:]


def test_that_the_first_of_several_references_is_trained_on_is_said_once(
    sft_flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    talks = [
        {"fname": i, "dialogue": f"Ann: {i}?\nBob: No.", "summary1": "Ann asks.", "summary2": "No."} for i in "abcd"
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, talks)), "utf-8")
    train(sft_flags(phases="1,2", dataset_path=path, **SHORT))
    assert capsys.readouterr().err.count("3 of 3 dialogues have several references: fine-tuning learns the first.") == 1


def test_a_folder_in_which_another_process_trains_is_refused(sft_flags_for: Flags, tmp_path: Path):
    flags = sft_flags_for(tmp_path / "out", **LONG)
    process, said = start("sft", flags)
    with said:
        assert any("step 0 writes" in line for line in said)
        os.kill(process.pid or 0, signal.SIGSTOP)
        for more in ({}, {"resume_from_checkpoint": True}, {"overwrite_output_dir": True}):
            with pytest.raises(InputError, match="out: another process is at work there"):
                sft.main(sft_flags_for(tmp_path / "out", **LONG | more))
        assert manifest(tmp_path / "out" / "phase1")["finished"] is False
        process.kill()
    process.join()


@pytest.mark.parametrize("phase", ["phase1", "phase2"])
@pytest.mark.parametrize("name", ["eval_loss", "eval_rouge"])
def test_held_out_figures_are_logged_at_each_evaluation(finished: Path, phase: str, name: str):
    steps = [line["step"] for line in manifest(finished / phase)["log"] if name in line]
    assert steps == [4, 8, 12]


def test_no_pickle_of_the_settings_remains(finished: Path):
    assert list(finished.rglob("checkpoint-*/trainer_state.json"))
    assert not list(finished.rglob("training_args.bin"))


def test_phase_2_starts_from_the_adapter_of_phase_1(copied: Path, sft_flags_for: Flags):
    shutil.rmtree(copied / "phase2")
    train(sft_flags_for(copied, phases=2, phase2_learning_rate=0, **SHORT))  # nothing is learnt: the start is the end
    before, after = (load_file(copied / phase / ADAPTER) for phase in ("phase1", "phase2"))
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)
    assert any(tensor.any() for name, tensor in before.items() if "lora_B" in name)  # 0 where nothing was learnt


def test_phase_2_needs_a_finished_phase_1(sft_flags: Flags):
    with pytest.raises(InputError, match=r"holds no finished result. Use --phases 1,2"):
        sft.main(sft_flags(phases=2))


def test_phase_2_keeps_to_the_adapter_of_phase_1(copied: Path, sft_flags_for: Flags):
    shutil.rmtree(copied / "phase2")
    with pytest.raises(InputError, match=r"--lora_r 5: phase 1 was trained with \d+, and phase 2 goes on from its"):
        sft.main(sft_flags_for(copied, phases=2, lora_r=5, **SHORT))
    assert not (copied / "phase2").exists()


def test_overwriting_takes_another_adapter_for_both_phases(copied: Path, sft_flags_for: Flags):
    train(sft_flags_for(copied, lora_r=5, overwrite_output_dir=True, **SHORT))
    assert [manifest(copied / phase)["settings"]["lora_r"] for phase in ("phase1", "phase2")] == [5, 5]


def test_a_phase_2_that_went_on_from_another_phase_1_is_not_taken(copied: Path, sft_flags_for: Flags):
    with safe_open(copied / "phase1" / ADAPTER, "pt") as file:
        weights = {name: file.get_tensor(name) + 0.001 for name in file.keys()}  # noqa: SIM118
    save_file(weights, copied / "phase1" / ADAPTER, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"phase2: holds a run with other settings \(other weights to start from\)"):
        sft.main(sft_flags_for(copied, **LONG))


# An output folder that is there already


def test_a_second_call_does_nothing_and_says_so(
    finished: Path, sft_flags_for: Flags, capsys: pytest.CaptureFixture[str]
):
    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in finished.rglob("*/*") if path.is_file()}

    before = state()
    sft.main(sft_flags_for(finished, **LONG))
    assert state() == before
    said = capsys.readouterr().err
    assert "Phase 1: already done" in said
    assert "Phase 2: already done" in said


def test_saying_no_to_quantisation_is_the_same_as_not_saying_it(finished: Path, sft_flags_for: Flags, capsys):
    sft.main(sft_flags_for(finished, **LONG, load_in_4bit=False))
    assert "Phase 2: already done" in capsys.readouterr().err


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("tried to allocate 2.00 GiB"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 400 bytes"),
    MemoryError("Unable to allocate 728. TiB for an array"),
    OSError(12, "Cannot allocate memory"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: str(error)[:30])
def test_out_of_memory_is_told_with_its_cures(error, capsys):
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        launch(main)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert f"error: out of memory: {error}" in said
    going_on, anew = said.partition("go on with ")[2].split("; or start anew")
    assert set(re.findall(r"--(\w+)", going_on)) - {"resume_from_checkpoint"} <= run.FREE_SETTINGS
    assert "--per_device_train_batch_size" in anew


def test_other_settings_are_refused_by_name(finished: Path, sft_flags_for: Flags):
    with pytest.raises(InputError, match=re.escape("other settings (learning_rate 0.01 -> 0.02)")):
        sft.main(sft_flags_for(finished, **LONG | {"learning_rate": 0.02}))


def test_what_is_told_of_other_settings_of_phase_2_leaves_phase_1_as_it_is(copied: Path, sft_flags_for: Flags):
    before = {file: file.stat().st_mtime_ns for file in (copied / "phase1").rglob("*")}
    other = LONG | {"phase2_learning_rate": 0.003}
    with pytest.raises(InputError, match=r"phase2: .*, or add --phases 2 --overwrite_output_dir true to delete it"):
        sft.main(sft_flags_for(copied, **other))
    train(sft_flags_for(copied, **other | {"phases": 2, "overwrite_output_dir": True}))
    assert manifest(copied / "phase2")["settings"]["phase2_learning_rate"] == 0.003
    assert {file: file.stat().st_mtime_ns for file in (copied / "phase1").rglob("*")} == before


def test_prompts_to_summarise_leave_room_for_a_summary_in_the_context(tiny_model: Path, dialogues: Path):
    tokenizer, (record, *_) = load_tokenizer(str(tiny_model)), load_records(dialogues, split="eval")[0]
    whole = encode_prompt(prompt_for(record, 1, "instruction", tokenizer), "instruction", tokenizer)
    encoded = encode(
        [record], [record], 1, "instruction", tokenizer, SFTArguments(report_to=[], use_cpu=True), 8,
        score=lambda *_: 0.0, context=len(whole),
    )  # fmt: skip
    assert encoded.held_out
    (prompt,) = encoded.held_out.prompts
    assert len(prompt) <= len(whole) - 8
    assert len(encoded.evaluated[0]["input_ids"]) > len(whole)  # its loss is that of the whole dialogue


def test_held_out_dialogues_are_read_beside_others_of_their_length_and_shown_in_their_order(
    tiny_model: Path, dialogues: Path
):
    tokenizer, held_out = load_tokenizer(str(tiny_model)), load_records(dialogues, split="eval")[0][::-1]
    encoded = encode(
        held_out, held_out, 1, "instruction", tokenizer, SFTArguments(report_to=[], use_cpu=True), 8,
        score=lambda *_: 0.0,
    )  # fmt: skip
    lengths = [len(example["input_ids"]) for example in encoded.evaluated]
    assert lengths == sorted(lengths) != [len(example["input_ids"]) for example in encoded.train]
    assert encoded.held_out
    assert encoded.held_out.references == [list(record.references) for record in held_out]


@pytest.mark.parametrize("fp16", [False, True])  # which a CPU passes over
def test_adapters_on_4_bit_weights_are_float32_where_the_others_are(fp16, sft_flags_for: Flags, tmp_path: Path):
    settings = SHORT | {"max_steps": 4, "logging_steps": 1, "learning_rate": 0.1, "warmup_steps": 0, "phases": 1}
    train(sft_flags_for(tmp_path / "out", **settings, fp16=fp16, load_in_4bit=True, dtype="float32"))
    losses = curve(tmp_path / "out" / "phase1", "loss")
    weights = load_file(tmp_path / "out" / "phase1" / "adapter_model.safetensors")
    assert losses[-1] < losses[0]
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


@pytest.mark.parametrize("quantised", [False, True], ids=["bfloat16", "4-bit"])
def test_fp16_is_refused_where_the_trained_weights_are_16_bit(quantised: bool, sft_flags_for: Flags, tmp_path: Path):
    weights = {"dtype": "bfloat16", "load_in_4bit": quantised}
    with pytest.raises(InputError, match="--fp16 true: scales gradients of float32 weights alone"):
        sft.main(sft_flags_for(tmp_path / "out", fp16=True, **SHORT | weights))


def test_other_dialogues_are_refused(finished: Path, sft_flags_for: Flags):
    with pytest.raises(InputError, match="other dialogues"):
        sft.main(sft_flags_for(finished, **LONG, max_train_rows=11))


def test_an_unfinished_run_is_not_overwritten(copied: Path, sft_flags_for: Flags):
    unfinish(copied / "phase1", last_step=8)
    with pytest.raises(InputError, match=r"unfinished run \(checkpoint-8\).*--resume_from_checkpoint true"):
        sft.main(sft_flags_for(copied, **LONG))


def test_an_unfinished_run_is_not_resumed_with_other_processes(copied: Path, sft_flags_for: Flags):
    unfinish(copied / "phase1", last_step=8)
    (copied / "phase1" / "manifest.json").write_text(json.dumps(manifest(copied / "phase1") | {"world_size": 2}))
    with pytest.raises(InputError, match="number of processes 2 -> 1"):
        sft.main(sft_flags_for(copied, **LONG, resume_from_checkpoint=True))


def test_overwriting_and_resuming_exclude_each_other(copied: Path, sft_flags_for: Flags):
    unfinish(copied / "phase1", last_step=8)
    with pytest.raises(InputError, match=r"would delete the run in .* Give one of them"):
        sft.main(sft_flags_for(copied, **LONG, overwrite_output_dir=True, resume_from_checkpoint=True))
    assert (copied / "phase1" / "checkpoint-8").is_dir()


@pytest.mark.parametrize("value", ["latest", "checkpoint-8", "elsewhere"])
def test_only_a_whole_checkpoint_of_this_run_is_resumed(value: str, copied: Path, finished: Path, sft_flags_for: Flags):
    unfinish(copied / "phase1", last_step=8)
    value = str(finished / "phase1" / "checkpoint-8") if value == "elsewhere" else value
    with pytest.raises(InputError, match=r"not a whole checkpoint of this run\. Write `true`"):
        sft.main(sft_flags_for(copied, **LONG, resume_from_checkpoint=value))


def test_a_checkpoint_of_phase_1_does_not_restart_phase_2(copied: Path, sft_flags_for: Flags):
    unfinish(copied / "phase2", last_step=8)
    value = copied / "phase1" / "checkpoint-8"
    with pytest.raises(InputError, match=r"phase2: holds an unfinished run \(checkpoint-8\)"):
        sft.main(sft_flags_for(copied, **LONG, resume_from_checkpoint=value))


def test_overwriting_starts_again(copied: Path, sft_flags_for: Flags):
    train(sft_flags_for(copied, phases=1, overwrite_output_dir=True, **SHORT))
    assert manifest(copied / "phase1")["settings"]["max_steps"] == 1
    assert not list((copied / "phase1").glob("checkpoint-*"))


@pytest.mark.parametrize("foreign", ["notes.txt", "manifest.json"])
def test_a_folder_of_others_is_never_deleted(sft_flags: Flags, tmp_path: Path, foreign: str):
    file = tmp_path / "out" / "phase1" / foreign
    file.parent.mkdir(parents=True)
    file.write_text('{"name": "mine"}', "utf-8")
    with pytest.raises(InputError, match="not a result of this program"):
        sft.main(sft_flags(overwrite_output_dir=True))
    assert file.read_text("utf-8") == '{"name": "mine"}'


def test_an_output_folder_below_a_file_is_refused(sft_flags_for: Flags, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        sft.main(sft_flags_for(tmp_path / "file" / "out"))


# Killed and resumed


@pytest.fixture(scope="module")
def resumed(finished: Path, sft_flags_for: Flags, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run killed in phase 1, in its second epoch, then in phase 2 in the same way, then ended."""
    folder = tmp_path_factory.mktemp("resumed") / "out"
    flags = sft_flags_for(folder, **LONG)
    start_and_kill("sft", flags, when="Phase 1 step 5/12")
    half_written = folder / "phase1" / "checkpoint-11"
    half_written.mkdir()
    shutil.copy(finished / "phase1" / ADAPTER, half_written)

    said = start_and_kill("sft", [*flags, "--resume_from_checkpoint", "true"], when="Phase 2 step 5/12")
    assert re.search("Phase 1: going on from .*/checkpoint-[48]\\.", "".join(said))
    assert not manifest(folder / "phase2")["finished"]
    train([*flags, "--resume_from_checkpoint", "true"])
    return folder


@pytest.mark.parametrize("phase", ["phase1", "phase2"])
def test_a_killed_and_resumed_run_ends_with_the_same_bits(finished: Path, resumed: Path, phase: str):
    assert manifest(resumed / phase)["finished"]
    assert (resumed / phase / ADAPTER).read_bytes() == (finished / phase / ADAPTER).read_bytes()


@pytest.mark.parametrize("phase", ["phase1", "phase2"])
def test_a_killed_and_resumed_run_logs_the_same_losses(finished: Path, resumed: Path, phase: str):
    assert curve(resumed / phase, "loss") == curve(finished / phase, "loss")


def test_a_bfloat16_run_goes_on_with_bfloat16_adapters(sft_flags_for: Flags, tmp_path: Path):
    short = {"num_train_epochs": 2, "eval_strategy": "no", "load_best_model_at_end": False, "phases": 1}
    flags = sft_flags_for(tmp_path / "whole", **short, dtype="bfloat16")
    train(flags)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    unfinish(tmp_path / "cut" / "phase1", last_step=4)
    train([*flags, "--output_dir", str(tmp_path / "cut"), "--resume_from_checkpoint", "true"])
    whole, cut = ((tmp_path / name / "phase1" / ADAPTER).read_bytes() for name in ("whole", "cut"))
    assert cut == whole


def test_a_loss_that_is_no_number_stops_the_run(sft_flags: Flags):
    with pytest.raises(InputError, match=r"The loss is nan at step \d+. Lower --learning_rate"):
        sft.main(sft_flags(learning_rate=1e20, max_grad_norm=0, phases=1, eval_strategy="no", save_strategy="no",
                           load_best_model_at_end=False))  # fmt: skip


def test_float16_weights_are_refused_for_training(sft_flags: Flags):
    with pytest.raises(InputError, match=r"--dtype float16: .* Use bfloat16"):
        sft.main(sft_flags(dtype="float16"))


# The best model, and when to stop


OVERSHOOTING = {
    "phases": 1, "learning_rate": 0.3, "lr_scheduler_type": "constant", "num_train_epochs": 10, "rouge_eval_rows": 0,
    "early_stopping_patience": 2, "save_total_limit": 20,
}  # fmt: skip


@pytest.fixture(scope="module")
def overshooting(sft_flags_for: Flags, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phase 1 at a learning rate so high that the held-out loss soon rises again."""
    folder = tmp_path_factory.mktemp("overshooting") / "out"
    train(sft_flags_for(folder, **OVERSHOOTING))
    return folder / "phase1"


def test_the_best_checkpoint_is_the_result(overshooting: Path):
    losses = curve(overshooting, "eval_loss")
    best = overshooting / f"checkpoint-{2 * (1 + losses.index(min(losses)))}"
    last = overshooting / f"checkpoint-{2 * len(losses)}"
    assert (overshooting / ADAPTER).read_bytes() == (best / ADAPTER).read_bytes() != (last / ADAPTER).read_bytes()
    assert Path(manifest(overshooting)["best_checkpoint"]) == best


def test_training_stops_when_the_held_out_loss_no_longer_falls(overshooting: Path):
    losses = curve(overshooting, "eval_loss")
    assert len(losses) < 15  # of 30 steps
    assert losses.index(min(losses)) == len(losses) - 3


@pytest.mark.parametrize("steps_before", [2, 0])  # one evaluation without progress behind it, or both
def test_a_resumed_run_stops_when_it_would_have(
    overshooting: Path, sft_flags_for: Flags, tmp_path: Path, steps_before: int
):
    stopped_at = len(curve(overshooting, "loss"))
    shutil.copytree(overshooting, tmp_path / "out" / "phase1")
    unfinish(tmp_path / "out" / "phase1", last_step=stopped_at - steps_before)
    train(sft_flags_for(tmp_path / "out", **OVERSHOOTING, resume_from_checkpoint=True))
    for name in ("loss", "eval_loss"):
        assert curve(tmp_path / "out" / "phase1", name) == curve(overshooting, name)
    assert (tmp_path / "out" / "phase1" / ADAPTER).read_bytes() == (overshooting / ADAPTER).read_bytes()


def test_training_stops_when_rouge_no_longer_rises(sft_flags: Flags, tmp_path: Path):
    train(sft_flags(phases=1, learning_rate=0, metric_for_best_model="eval_rouge", early_stopping_patience=1))
    assert len(curve(tmp_path / "out" / "phase1", "eval_rouge")) == 2  # of 3: nothing is learnt, so nothing rises


# What is learnt


@pytest.fixture
def trainers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[DialogueSFTTrainer]]:
    """The trainers that the recipe makes."""
    made: list[DialogueSFTTrainer] = []
    make_trainer = sft.make_trainer

    def make_and_keep(*args: Any) -> DialogueSFTTrainer:
        made.append(make_trainer(*args))
        return made[-1]

    monkeypatch.setattr(sft, "make_trainer", make_and_keep)
    return made


def test_only_summary_and_end_token_carry_loss(
    sft_flags: Flags, trainers: list[DialogueSFTTrainer], dialogues: Path, tiny_tokenizer: Any
):
    sft.main(sft_flags(phases=1, **SHORT))
    learnt = set()
    for batch in trainers[0].get_train_dataloader():
        learnt |= {tiny_tokenizer.decode(labels[labels != -100]) for labels in batch["labels"]}
    records, _ = load_records(dialogues, split="train")
    assert learnt == {record.references[0] + "<eos>" for record in records}


def instructions_by_dialogue(trainer: DialogueSFTTrainer, tokenizer: Any) -> dict[str, list[str]]:
    found = defaultdict(list)
    for ids in trainer.train_dataset["input_ids"]:
        instruction, dialogue = re.fullmatch(
            r"### Instruction:\n(.*)\n\n### Input:\n(.*)\n\n### Response:.*", tokenizer.decode(ids), re.DOTALL
        ).groups()
        found[dialogue].append(instruction)
    return found


def test_all_gives_each_dialogue_with_five_instructions(
    copied: Path, sft_flags_for: Flags, trainers: list[DialogueSFTTrainer], tiny_tokenizer: Any
):
    shutil.rmtree(copied / "phase2")
    sft.main(sft_flags_for(copied, phases=2, phase2_instructions="all", **SHORT))
    found = instructions_by_dialogue(trainers[0], tiny_tokenizer)
    assert len(found) == 12
    assert all(tuple(instructions) == INSTRUCTIONS[2]["ko"] for instructions in found.values())


def test_random_gives_each_dialogue_with_one_and_always_the_same(
    copied: Path, sft_flags_for: Flags, trainers: list[DialogueSFTTrainer], tiny_tokenizer: Any
):
    for _ in range(2):
        sft.main(sft_flags_for(copied, phases=2, phase2_instructions="random", overwrite_output_dir=True, **SHORT))
    first, second = (instructions_by_dialogue(trainer, tiny_tokenizer) for trainer in trainers)
    assert first == second
    assert len(first) == 12
    assert all(len(instructions) == 1 for instructions in first.values())
    assert len({instructions[0] for instructions in first.values()}) > 1


# A full disk


def test_a_full_disk_is_told_without_a_traceback(capsys: pytest.CaptureFixture[str]):
    def fill() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(SystemExit) as stop:
        launch(fill)
    assert stop.value.code == 2
    assert "error: the disk is full" in capsys.readouterr().err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for an adapter but not for the optimizer, where this machine lets us mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_full_of_checkpoints_is_told_without_a_traceback(
    small_disk: Path, sft_flags_for: Flags, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as stop:
        train(sft_flags_for(small_disk / "out", phases=1, rouge_eval_rows=0))
    assert stop.value.code == 2
    assert "error: the disk is full" in capsys.readouterr().err
