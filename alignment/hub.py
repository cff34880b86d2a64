"""Data sets of the Hub -> rows of the split that is asked for."""

from functools import cache
from typing import Any

from datasets import load_dataset

from alignment.errors import InputError
from alignment.formats import listed

HUB_HELD_OUT = ("validation", "valid", "val", "dev", "eval")
HUB_SPLITS = {"train": ("train",), "eval": (*HUB_HELD_OUT, "test")}


@cache
def hub_splits(name: str) -> Any:
    """A data set's splits by name, each a sequence of rows; asked for once.

    Raises:
        InputError: It cannot be loaded.
    """
    try:
        return load_dataset(name)
    except Exception as error:  # the Hub's clients raise half a dozen unrelated types for "not reachable"
        cure = "without a connection, download it elsewhere as CSV or JSON lines and give the path of that file"
        raise InputError(f"{name}: not loaded from the Hub ({type(error).__name__}: {error}); {cure}") from error


def hub_rows(name: str, split: str) -> list[Any]:
    """The rows of the first split that a data set has of those that stand for `train` or `eval`.

    Raises:
        InputError: It cannot be loaded, or has none.
    """
    splits = hub_splits(name)
    for candidate in HUB_SPLITS[split]:
        if candidate in splits:
            return list(splits[candidate])
    raise InputError(f"{name}: no {split} split ({listed(HUB_SPLITS[split])}); the data set has {listed(splits)}")
