"""How a recipe is run: its errors in one message, the cores shared, the launcher's settings held to ours."""

import gc
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta

import torch
from accelerate import PartialState
from huggingface_hub.utils import enable_progress_bars
from joblib import cpu_count
from transformers.utils import logging as transformers_logging

from alignment.errors import InputError
from alignment.outputs import release
from alignment.progress import console
from alignment.training import refuse_sharding

# In an error's message: the system's own words, and the two of torch.save, which does not pass those on.
DISK_FULL = ("No space left on device", "iostream error", "inline_container.cc")
# The same of memory, where it is no torch.OutOfMemoryError: a GPU's context, cuBLAS, a CPU.
MEMORY_FULL = ("out of memory", "ALLOC_FAILED", "can't allocate memory", "Cannot allocate memory")
HOW_TO_GO_ON = "The same command goes on from what is written; a training run with --resume_from_checkpoint true."


def launch(main: Callable[[], None], shards: bool = True) -> None:
    """Runs a recipe; a user's error ends in one message and exit code 2, a bug keeps its traceback.

    Args:
        shards: Whether it can share one model among several GPUs (FSDP2, ZeRO-3).
    """
    silence_libraries()
    _tell_of_unused_gpu()
    _use_all_cores()
    _leave_types_to_us()
    if "LOCAL_RANK" in os.environ:
        on_cpu = not torch.accelerator.is_available()
        if on_cpu:  # or each CPU process would take itself for the only one
            os.environ["ACCELERATE_USE_CPU"] = "true"
        PartialState(cpu=on_cpu, timeout=timedelta(hours=2))  # one may have longer summaries to write than another
    together = True  # all processes end here, or one alone, which the others wait for until the launcher ends them
    try:
        if not shards:
            refuse_sharding()
        _refuse_old_gpu()
        _refuse_unhidden_gpu()
        main()
    except InputError as error:
        _say_once(f"error: {error}")
        code = 2
    except BrokenPipeError:  # whoever read the output has left, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would write the rest when it ends
        code = 141
    except KeyboardInterrupt:
        _say_once(f"stopped. {HOW_TO_GO_ON}")
        code = 130
    except Exception as error:
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(sign in str(error) for sign in MEMORY_FULL):
            _tell_of_full_memory(error)
        elif any(sign in str(error) for sign in DISK_FULL):
            _tell(f"error: the disk is full: {error}. Free some space. {HOW_TO_GO_ON}")
        elif isinstance(error, ImportError) and "pip install" in str(error):  # what the user chose needs a package
            _say_once(f"error: {error}")
        else:
            raise
        code, together = 2, False
    else:
        code = 0
    finally:
        release()
        console.show_cursor()  # which a live table or bar hides, and leaves hidden where an error ends it
    if together and torch.distributed.is_initialized():
        gc.collect()  # trainers hold process groups, whose threads may abort the interpreter as it ends
        torch.distributed.destroy_process_group()
    if code:
        sys.exit(code)


def silence_libraries() -> None:
    """Leaves the screen to the recipe: no warnings, bars or info lines of the libraries under it."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    enable_progress_bars()  # the line above turns off the Hub's too, and a download takes minutes
    warnings.filterwarnings("ignore")


def _tell_of_unused_gpu() -> None:
    """A torch for CPUs, or a driver that is too old, would take hours where a GPU takes minutes, without a word."""
    if shutil.which("nvidia-smi") and not torch.cuda.is_available() and os.environ.get("CUDA_VISIBLE_DEVICES") is None:
        _say_once(f"There is an NVIDIA GPU, but torch {torch.__version__} cannot use it: all is done on the CPU.")


def _refuse_old_gpu() -> None:
    """A GPU that torch was not built for would end in a traceback at its first kernel."""
    if torch.cuda.is_available() and (built := re.findall(r"sm_(\d+)", " ".join(torch.cuda.get_arch_list()))):
        major, minor = torch.cuda.get_device_capability()
        if 10 * major + minor < (oldest := min(map(int, built))):
            raise InputError(
                f"The GPU has compute capability {major}.{minor}, and torch {torch.__version__} is built for "
                f"{oldest / 10} and newer. Install a build of it for an older CUDA, or hide the GPU: "
                "CUDA_VISIBLE_DEVICES= in front of the command."
            )


def _use_all_cores() -> None:
    """Shares the cores among this machine's processes: `accelerate launch` gives each one thread only.

    They are those that the process may run on, or fewer where its container has a quota.

    A number of threads that the user names in OMP_NUM_THREADS holds, and is told to torch too: left alone, two threads
    in MKL's products wait for each other so long that a tiny model trains at a hundredth of the speed.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    named = int(re.sub(r"\D.*", "", os.environ.get("OMP_NUM_THREADS", "")) or 0)
    shared = max(1, cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if launched:  # the launcher names 1 by itself, or with use_cpu all cores of a machine that we may not have
        named = min(named, shared) if named > 1 else 0
    torch.set_num_threads(named or shared)


def _leave_types_to_us() -> None:
    """Turns off the launcher's mixed precision: the trainer would compute in it, but no rollout and no summary."""
    if (given := os.environ.get("ACCELERATE_MIXED_PRECISION", "no")) != "no":
        os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
        if int(os.environ.get("RANK", "0")) == 0:
            told = f"accelerate's mixed_precision {given} is not used: --dtype and --bf16 name the types."
            console.print(told, markup=False, highlight=False, soft_wrap=True)


def _refuse_unhidden_gpu() -> None:
    """`accelerate launch --cpu` leaves a GPU in sight, and transformers' trainer would take it."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true" and torch.cuda.is_available():
        raise InputError(
            "accelerate's --cpu, or use_cpu in its settings, leaves a GPU in sight. Use --config_file "
            "accelerate_configs/cpu.yaml instead."
        )


def _tell_of_full_memory(error: Exception) -> None:
    _tell(
        f"error: out of memory: {error}. When generating, lower --batch_size (reward.py: --sample_batch_size, "
        "ppo.py: --generation_batch_size). When training, go on with --resume_from_checkpoint true and, but for "
        "ppo.py, a lower --per_device_eval_batch_size or --gradient_checkpointing true; or start anew with a "
        "lower --per_device_train_batch_size and more --gradient_accumulation_steps, --load_in_4bit true (but for "
        "baseline.py), a lower --max_length, or for ppo.py --gradient_checkpointing true --reread_prompts true."
    )


def _tell(message: str) -> None:
    console.print(message, style="bold red", markup=False, highlight=False, soft_wrap=True)


def _say_once(message: str) -> None:
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:  # of each machine: a file may be missing on one of them
        _tell(message)
