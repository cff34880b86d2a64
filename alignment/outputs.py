"""Outputs: made, claimed by one process, and not overwritten."""

import contextlib
import fcntl
import os
import tempfile
from pathlib import Path
from typing import IO, Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from alignment.errors import InputError


def make_folder(folder: Path, flag: str = "--output_dir") -> None:
    """Makes an output folder, which the user named with this flag.

    Raises:
        InputError: It cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"{flag} {folder}: cannot be written ({error.strerror}). Choose another folder.") from error


_claims: dict[Path, IO[bytes]] = {}


def claim_folder(folder: Path) -> None:
    """Makes an output folder, and claims it.

    Raises:
        InputError: Another process has claimed it, or it cannot be written to.
    """
    make_folder(folder)
    claim(folder)


def claim(output: Path) -> None:
    """Keeps other processes out of an output folder or file until `release` or this one's end, however it ends.

    The lock lies beside it. Where there can be no file, or no lock on it, nobody is kept out.

    Raises:
        InputError: Another process has claimed it.
    """
    outcome: list[Any] = [None]
    if PartialState().is_main_process:
        real = output.resolve()
        try:
            _lock(real.with_name(f".{real.name}.lock"))
        except BlockingIOError:
            outcome = [f"{output}: another process is at work there. Wait for it, end it, or choose another name."]
        except OSError:
            pass
    broadcast_object_list(outcome)
    if outcome[0]:
        raise InputError(outcome[0])


def _lock(path: Path) -> None:
    while True:
        file = _claims.get(path) or path.open("wb")
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(FileNotFoundError):  # whoever had it removed it meanwhile
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                _claims[path] = file
                return
        _claims.pop(path, file).close()


def release() -> None:
    """Lets other processes into what this one has claimed."""
    while _claims:
        path, file = _claims.popitem()
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        file.close()


def refuse_existing(files: list[Path], overwrite: bool) -> None:
    """Holds that nothing is overwritten unless that is wanted.

    Raises:
        InputError: One of these files or folders exists.
    """
    if not overwrite and (there := [file for file in files if file.exists()]):
        raise InputError(f"{there[0]} exists. Choose another --output_dir, or --overwrite_output_dir true.")
