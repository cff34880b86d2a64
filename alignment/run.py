"""The frame of every run: what there is to do in its folder, resume, and the manifest."""

import dataclasses
import json
import math
import os
import platform
import shutil
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import Trainer, set_seed
from transformers.trainer_callback import TrainerState

from alignment.errors import InputError
from alignment.formats import write_text
from alignment.outputs import make_folder
from alignment.progress import console, peak_memory_gib
from alignment.weights import native_dtype

MANIFEST = "manifest.json"
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets", "tokenizers")
# Settings that may differ between a run and its continuation: the result does not depend on them, but for rounding and,
# where a vLLM server samples, its noise.
FREE_SETTINGS = {
    "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "phases", "report_to", "run_name", "project",
    "disable_tqdm", "log_level", "push_to_hub", "hub_token", "hub_model_id", "trackio_space_id",
    "save_total_limit", "dataloader_num_workers", "dataloader_pin_memory", "per_device_eval_batch_size", "stage",
    "activation_checkpointing", "generation_batch_size", "vllm_url", "eval_accumulation_steps", "local_rank",
    "torch_empty_cache_steps", "gradient_checkpointing", "min_accuracy", "sample_batch_size",
}  # fmt: skip


def is_main_process() -> bool:
    """Whether this is the one process that writes and speaks for all."""
    return PartialState().is_main_process


def say(message: str) -> None:
    """Tells the user something, from the main process only."""
    if is_main_process():
        console.print(message, markup=False, highlight=False, soft_wrap=True)


def settings_of(*configs: Any) -> dict[str, Any]:
    """All settings of a run as plain values; tokens and keys are left out by `to_dict`."""
    settings: dict[str, Any] = {}
    for config in configs:
        values = config.to_dict() if hasattr(config, "to_dict") else dataclasses.asdict(config)
        settings |= values
    return json.loads(json.dumps(settings, default=str))


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """The manifest of a result folder, or of the one that a checkpoint lies in; None where there is none of ours.

    Raises:
        InputError: It is not JSON; without it a model would be read with another prompt than it was taught with.
    """
    folder = Path(folder).absolute()
    path = (folder.parent if folder.name.startswith("checkpoint-") else folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        return None
    except ValueError as error:
        raise InputError(f"{path}: broken or cut short ({error}). Copy the run again, or delete its folder.") from error
    return manifest if isinstance(manifest, dict) and {"finished", "settings"} <= manifest.keys() else None


def trained_with(folder: str | Path) -> tuple[str, int, dict[str, Any]]:
    """Prompt form, phase and settings that a model was trained with; those of phase 1 where no manifest tells."""
    manifest = read_manifest(folder) or {}
    return manifest.get("prompt_form", "instruction"), manifest.get("phase", 1), manifest.get("settings", {})


def write_json(content: Any, path: Path) -> None:
    """Writes JSON, whole or not at all."""
    write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", path)


def last_checkpoint(folder: Path, before: float = math.inf) -> Path | None:
    """The newest whole checkpoint of a step `before` this: its `trainer_state.json`, written last, is readable."""
    for path in sorted(folder.glob("checkpoint-[0-9]*"), key=step_of, reverse=True):
        if step_of(path) >= before:
            continue
        try:
            TrainerState.load_from_json(str(path / "trainer_state.json"))
        except (OSError, ValueError, TypeError):
            continue
        return path
    return None


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's name tells."""
    return int(checkpoint.name.split("-")[1])


@dataclasses.dataclass
class Run:
    """One result folder: `start` decides what there is to do, `finish` writes the manifest that marks it as whole.

    A folder is new (not there, or empty), foreign (it holds something, but no manifest: it is left alone), unfinished
    (its manifest says so; with whole checkpoints or without), or finished. A run that is to be overwritten is kept as
    FOLDER.replaced until the new one is finished, and put back where that came to nothing.
    """

    name: str
    folder: Path
    manifest: dict[str, Any]
    finished: bool  # the result is already there; nothing to do
    checkpoint: Path | None  # where to go on from, or None to begin at the beginning
    _started: float = dataclasses.field(default_factory=time.monotonic)

    @classmethod
    def start(
        cls,
        name: str,
        folder: Path,
        settings: dict[str, Any],
        facts: dict[str, Any],
        overwrite: bool = False,
        resume: str | None = None,
        how_to_overwrite: str = "--overwrite_output_dir true",
    ) -> "Run":
        """Looks at the folder, refuses to overwrite it, says what is to do, and writes an unfinished run's manifest.

        The main process does so, and the others follow what it found: by then the folder is no longer what it was.

        Args:
            name: How it is spoken of.
            settings: All settings; a continuation must have the same, but for `FREE_SETTINGS`.
            facts: What else belongs into the manifest, such as the data's fingerprints.
            resume: `true` for the last whole checkpoint of the folder, or the path of one.
            how_to_overwrite: What is to be typed for that, as it is told.

        Raises:
            InputError: The folder holds another run, or an unfinished one and `resume` was not asked for.
        """
        outcome: list[Any] = [None]
        if is_main_process():
            try:
                outcome = [cls._prepare(folder, settings, facts, overwrite, resume, how_to_overwrite)]
            except InputError as error:
                outcome = [error]
        broadcast_object_list(outcome)
        if isinstance(outcome[0], InputError):
            raise outcome[0]
        set_seed(settings["seed"])  # before the model: adapters begin at random
        current = cls(name, folder, *outcome[0])
        if current.finished:
            say(f"{name}: already done, {folder}.")
        elif current.checkpoint:
            say(f"{name}: going on from {current.checkpoint}.")
        return current

    @classmethod
    def _prepare(
        cls,
        folder: Path,
        settings: dict[str, Any],
        facts: dict[str, Any],
        overwrite: bool,
        resume: str | None,
        how_to_overwrite: str,
    ) -> tuple[dict[str, Any], bool, Path | None]:
        wanted = bool(resume) and str(resume).lower() not in ("false", "no")
        if overwrite and wanted and folder.exists():
            raise InputError(
                f"--overwrite_output_dir true would delete the run in {folder} that --resume_from_checkpoint is to go "
                "on with. Give one of them."
            )
        if overwrite and folder.exists():
            cls._set_aside(folder)
        elif not overwrite:
            cls._put_back(folder)
        previous = read_manifest(folder)
        manifest = {
            "finished": False,
            **facts,
            "settings": settings,
            "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
            "commit": _commit(),
            "machine": _machine(),
            "world_size": PartialState().num_processes,
            "dtype": settings.get("dtype") or str(native_dtype()).removeprefix("torch."),
        }
        finished, checkpoint = cls._inspect(folder, previous, manifest, resume if wanted else None, how_to_overwrite)
        if finished and previous:
            return previous, True, None
        manifest["seconds_before"] = _seconds_until(checkpoint, folder, previous) if checkpoint and previous else 0.0
        make_folder(folder)
        write_json(manifest, folder / MANIFEST)
        return manifest, False, checkpoint

    @staticmethod
    def _inspect(
        folder: Path,
        previous: dict[str, Any] | None,
        manifest: dict[str, Any],
        resume: str | None,
        how_to_overwrite: str,
    ) -> tuple[bool, Path | None]:
        named = None  # a checkpoint by its path
        if resume and resume.lower() not in ("true", "yes"):
            checkpoint = Path(resume).resolve()
            whole = (checkpoint / "trainer_state.json").is_file() and checkpoint.parent != _replaced(folder)
            if not whole or checkpoint.parent.parent != folder.resolve().parent:
                raise InputError(
                    f"--resume_from_checkpoint {resume}: not a whole checkpoint of this run. Write `true` for the last."
                )
            named = Path(resume) if checkpoint.parent == folder.resolve() else None  # else it is the other phase's
            resume = None
        if previous is None:
            if folder.is_dir() and any(folder.iterdir()):
                raise InputError(f"{folder}: exists and is not empty. Choose another --output_dir.")
            return False, None
        if (changed := _changes(previous, manifest)) and _has_work(folder):
            cure = f"Give it its type, --dtype {changed[0].split()[1]}. " if changed[0].startswith("dtype ") else ""
            raise InputError(
                f"{folder}: holds a run with other settings ({', '.join(changed[:5])}). {cure}"
                f"Choose another --output_dir, or add {how_to_overwrite} to delete it."
            )
        if previous["finished"]:
            return True, None
        if named is not None:
            return False, named
        found = last_checkpoint(folder)
        if found is not None and not resume:
            raise InputError(
                f"{folder}: holds an unfinished run ({found.name}). Go on with --resume_from_checkpoint true, "
                f"or add {how_to_overwrite} to delete it and start again."
            )
        return False, found

    @staticmethod
    def _set_aside(folder: Path) -> None:
        """Keeps a run that is to be overwritten until the new one is finished, which may fail as it begins."""
        real, kept, previous = folder.resolve(), _replaced(folder), read_manifest(folder)
        if previous is None and any(folder.iterdir()):
            raise InputError(f"{folder}: not a result of this program, so it is not deleted. Choose another folder.")
        if Path.cwd().is_relative_to(real):
            raise InputError(f"{folder}: you are in the folder that is to be overwritten. Start from another one.")
        if kept.exists() and read_manifest(kept) is None:
            raise InputError(f"{kept}: the run that is to be overwritten would be kept there. Move that away first.")
        if previous and _has_work(folder) and (previous["finished"] or not kept.exists()):
            shutil.rmtree(kept, ignore_errors=True)  # of a run that is finished: it was killed as it cleaned up
            real.rename(kept)
            say(f"The run in {folder} is to be overwritten: it is in {kept} until the new one is finished.")
        else:  # what was to replace the one that is kept, or nothing
            shutil.rmtree(real)
        real.mkdir()

    @staticmethod
    def _put_back(folder: Path) -> None:
        """Undoes an overwriting that came to nothing."""
        real, kept = folder.resolve(), _replaced(folder)
        empty = not real.exists() or not any(real.iterdir())
        came_to_nothing = empty or (read_manifest(folder) is not None and not _has_work(folder))
        if read_manifest(kept) is not None and came_to_nothing:
            if real.exists():
                shutil.rmtree(real)
            kept.rename(real)
            say(f"{folder}: what was to overwrite it came to nothing; the run of before is back.")

    def train(self, trainer: Trainer) -> None:
        """Takes a trainer to its end from where the run is, and saves what it has learnt."""
        trainer.train(resume_from_checkpoint=str(self.checkpoint) if self.checkpoint else None)
        trainer.save_model()
        self.manifest |= {"log": trainer.state.log_history, "best_checkpoint": trainer.state.best_model_checkpoint}

    def finish(self) -> None:
        """Marks the result as whole, with its seconds and peak memory; and says so."""
        self.manifest |= {
            "finished": True,
            "seconds": round(self.manifest["seconds_before"] + time.monotonic() - self._started, 1),
            "peak_memory_gib": round(peak_memory_gib(), 3),
        }
        if is_main_process():
            write_json(self.manifest, self.folder / MANIFEST)
            if read_manifest(_replaced(self.folder)) is not None:
                shutil.rmtree(_replaced(self.folder), ignore_errors=True)
        PartialState().wait_for_everyone()  # the others look for it next
        say(f"{self.name}: done in {self.manifest['seconds'] / 60:.1f} min, {self.folder}.")


def _has_work(folder: Path) -> bool:
    """Whether a run of ours is finished or has a checkpoint; else it failed as it began."""
    manifest = read_manifest(folder)
    return manifest is not None and (manifest["finished"] or last_checkpoint(folder) is not None)


def _seconds_until(checkpoint: Path, folder: Path, manifest: dict[str, Any]) -> float:
    """How long a run, killed since and perhaps before, had worked when it wrote this checkpoint."""
    written, started = (path.stat().st_mtime for path in (checkpoint / "trainer_state.json", folder / MANIFEST))
    return manifest.get("seconds_before", 0.0) + max(0.0, written - started)


def _changes(previous: dict[str, Any], manifest: dict[str, Any]) -> list[str]:
    """What of a run is another than in the one before, so that it would not be its continuation; as it is told."""
    old, new = previous["settings"], manifest["settings"]
    if "dtype" in previous and (new.get("dtype") or not previous["finished"]):  # another machine's may differ
        old, new = old | {"dtype": previous["dtype"]}, new | {"dtype": manifest["dtype"]}
    known = new.keys() & old.keys() - FREE_SETTINGS  # a newer version of a library has more
    changed = [f"{k} {old[k]} -> {new[k]}" for k in new if k in known and old[k] != new[k]]
    if previous.get("data") != manifest.get("data"):
        changed.insert(0, "other dialogues")
    if previous.get("starts_from") != manifest.get("starts_from"):
        changed.insert(0, "other weights to start from")
    if "scorers" in previous and previous["scorers"] != manifest.get("scorers"):
        changed.insert(0, "another file of a scorer")
    if not previous["finished"] and previous["world_size"] != manifest["world_size"]:
        changed.insert(0, f"number of processes {previous['world_size']} -> {manifest['world_size']}")
    return changed


def _replaced(folder: Path) -> Path:
    real = folder.resolve()
    return real.with_name(f"{real.name}.replaced")


def _commit() -> str | None:
    root = Path(__file__).resolve().parents[1]
    try:
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _machine() -> dict[str, Any]:
    return {
        "cpu": torch.cpu.get_capabilities().get("cpu_name", platform.processor()),
        "cores": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
