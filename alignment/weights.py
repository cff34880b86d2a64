"""How many numbers a model's weights are, and how much room they take."""

import math
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from safetensors import safe_open


def size_of(folder: str | Path) -> dict[str, int]:
    """How many `numbers` the weights of a folder, or of a Hub name that was loaded, hold, and their `bytes` on disk."""
    cached = None if Path(folder).is_dir() else try_to_load_from_cache(str(folder), "config.json")
    numbers, files = 0, sorted((Path(cached).parent if isinstance(cached, str) else Path(folder)).glob("*.safetensors"))
    for file in files:
        with safe_open(file, "pt") as weights:
            numbers += sum(math.prod(weights.get_slice(key).get_shape()) for key in weights.keys())  # noqa: SIM118
    return {"numbers": numbers, "bytes": sum(file.stat().st_size for file in files)}
