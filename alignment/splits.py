"""Which dialogues are trained on and which are held out: none is both."""

import random
from typing import Any

from alignment.arguments import DataArguments
from alignment.data import Rejected, find_split, hub_holds_out, load_records
from alignment.errors import InputError
from alignment.records import Record
from alignment.run import say


def hold_out(records: list[Record]) -> tuple[list[Record], list[Record]]:
    """Splits into train and eval, each in order, with a tenth of the distinct dialogues, 1 to 200 of them, in eval.

    Records with one dialogue text stay on one side, so that nothing evaluated was trained on.

    Raises:
        InputError: fewer than two distinct dialogues.
    """
    dialogues = list(dict.fromkeys(record.dialogue for record in records))
    if len(dialogues) < 2:
        raise InputError(f"cannot hold out from {len(dialogues)} distinct dialogues; give at least 2, or an eval file")
    count = max(1, min(round(0.1 * len(dialogues)), 200))
    held = set(random.Random(42).sample(dialogues, count))
    return [r for r in records if r.dialogue not in held], [r for r in records if r.dialogue in held]


def load_train_and_eval(args: DataArguments) -> tuple[tuple[list[Record], list[Record]], list[Rejected]]:
    """Reads what the arguments name into (to train on, held out), and the bad rows of both.

    Held out are `eval_dataset_path`, or a folder's eval file or a Hub data set's validation split (not its test), or
    else a tenth of the data; whole, whatever the most, so that none of them is trained on with another limit.
    """
    held_out, beyond, more = _own_held_out(args)
    most = args.max_train_rows if held_out else None
    train, rejected = load_records(args.dataset_path, split="train", max_rows=most, **_options(args))
    if not held_out:
        if unused := find_split(args.dataset_path, "eval"):
            say(f"{unused} is not held out, so that scores on it tell something. To choose by it: --eval_dataset_path.")
        train, held_out = hold_out(train)
        train = train[: args.max_train_rows]
        return (train, held_out[: args.max_eval_rows or max(1, round(len(train) / 9))]), rejected
    unseen = _without(train, beyond)
    if len(unseen) < len(train):
        say(f"{len(train) - len(unseen)} dialogues to train on are held out too, and are left out of training.")
    if not unseen:
        raise InputError(f"{args.dataset_path}: every dialogue to train on is held out too. Give other held-out ones.")
    return (unseen, held_out), rejected + more


def load_all_train(args: DataArguments) -> tuple[list[Record], list[Rejected]]:
    """Reads every row to train on, beyond `max_train_rows` too, but for held-out dialogues; and the bad ones."""
    records, rejected = load_records(args.dataset_path, split="train", **_options(args))
    held_out, beyond, _ = _own_held_out(args)
    return (_without(records, beyond) if held_out else hold_out(records)[0]), rejected


def load_eval(args: DataArguments) -> tuple[list[Record], list[Rejected]]:
    """Reads the dialogues to score on, those of `eval_dataset_path` or of `dataset_path`, and the bad rows.

    Raises:
        InputError: A row has no reference; or as `load_records`.
    """
    path = args.eval_dataset_path or args.dataset_path
    return load_records(path, split="eval", max_rows=args.max_eval_rows, **_options(args))


def _own_held_out(args: DataArguments) -> tuple[list[Record], list[Record], list[Rejected]]:
    """The held-out rows that are asked for, all that can be read, and the bad ones among the first."""
    path = args.eval_dataset_path or find_split(args.dataset_path, "held_out")
    if not path and hub_holds_out(args.dataset_path):
        path = args.dataset_path
    if not path:
        return [], [], []
    held_out, rejected = load_records(path, split="eval", max_rows=args.max_eval_rows, **_options(args))
    everything = held_out
    if args.max_eval_rows is not None:
        everything, _ = load_records(path, split="eval", **_options(args) | {"bad_rows": "skip"})
    return held_out, everything, rejected


def tell_of_references(train: list[Record]) -> None:
    """Says of how many dialogues fine-tuning passes over further references."""
    several = sum(len(record.references) > 1 for record in train)
    if several:
        say(f"{several} of {len(train)} dialogues have several references: fine-tuning learns the first.")


def _without(records: list[Record], held_out: list[Record]) -> list[Record]:
    dialogues = {record.dialogue for record in held_out}
    return [record for record in records if record.dialogue not in dialogues]


def _options(args: DataArguments) -> dict[str, Any]:
    return {"need_references": True, "bad_rows": args.bad_rows, "columns": args.columns}
