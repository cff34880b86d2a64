"""Systems -> summaries, figures and costs, in a folder that `read_runs` reads."""

import os
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alignment import data
from alignment.arguments import ModelArguments, PromptArguments
from alignment.errors import InputError
from alignment.generation import Decoding
from alignment.journal import left_behind
from alignment.progress import peak_memory_gib, show_table
from alignment.records import Record
from alignment.run import say, write_json
from alignment.submission import write_submission
from reward.postprocess import effects, mend
from reward.rouge import paired_bootstrap, rouge
from reward.runs import COSTS, DIALOGUES, RESULTS
from reward.system import OneAtATime, System, SystemArguments


def files_of(systems: dict[str, System | None], folder: Path) -> dict[str, Path]:
    """Where each system's summaries go, by its name."""
    return {name: folder / ("predictions.csv" if len(systems) == 1 else f"predictions-{name}.csv") for name in systems}


def files_to_refuse(systems: dict[str, System | None], folder: Path) -> list[Path]:
    """What `evaluate` would overwrite, but for what a run was writing when it was killed, whose journals are there."""
    killed = [name for name in systems if left_behind(folder / name)]
    files = [file for name, file in files_of(systems, folder).items() if name not in killed]
    return [folder / RESULTS, *files, *([] if killed else [folder / DIALOGUES])]


def evaluate(
    systems: dict[str, System | None],
    records: list[Record],
    profiles: list[str],
    folder: Path,
    rules: list[str],
    predictions: list[str],
) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    """Summarises with each system and scores it; a killed run makes only what is missing.

    Args:
        systems: By name; None stands for the predictions.
        rules: The post-processing of the predictions; systems have their own.
        predictions: Summaries in the records' order.

    Returns:
        What results.json holds, an entry for each system and profile; and by system each row's mean ROUGE in the first
        profile.
    """
    texts, ids = [record.dialogue for record in records], [record.id for record in records]
    references = [list(record.references) for record in records]
    files = files_of(systems, folder)
    results: list[dict[str, Any]] = []
    rows: dict[str, list[float]] = {}
    summaries: dict[str, list[str]] = {}
    loaded = OneAtATime()
    with ExitStack() as journals:  # which stay until all is written
        for name, system in systems.items():
            cost: dict[str, Any] = dict.fromkeys(COSTS)
            if system is None:
                raw = predictions
            else:
                started, loading = time.monotonic(), loaded.seconds
                raw, before = system.summarize(texts, f"Summarising with {name}", journals, folder / name, loaded)
                cost["seconds"] = round(before + time.monotonic() - started - (loaded.seconds - loading), 1)
                cost |= {"peak_memory_gib": round(peak_memory_gib(), 3), **system.size()}
            own_rules = system.how.postprocess if system else rules
            summaries[name] = mend(texts, raw, own_rules)
            facts = {"predictions": files[name].name, "system": system.describe() if system else None}
            for profile in profiles:
                scores = asdict(rouge(summaries[name], references, profile))
                rows.setdefault(name, [row["mean"] for row in scores["rows"]])
                results.append({"name": name} | scores | {"rows": len(records)} | cost | facts)
            if own_rules:
                found = effects(texts, raw, references, own_rules, profiles[0])
                show_table(f"Post-processing of {name}, {profiles[0]}", list(found[0]), found)
        for name, file in files.items():
            write_submission(ids, summaries[name], file)
        data.write_records(records, folder / DIALOGUES)
        write_json(results, folder / RESULTS)
    return results, rows


def say_winner(rows: dict[str, list[float]], profile: str) -> None:
    """Tells which system's mean is highest, and how surely it is above the first one's.

    Args:
        rows: Each system's score of each dialogue, by name, in the order in which they were asked for.
    """
    if len(rows) < 2:
        return
    first = next(iter(rows))
    best = max(rows, key=lambda name: sum(rows[name]))
    if best == first:
        say(f"Best by {profile}: {first}, the first; nothing else here is better.")
        return
    found = paired_bootstrap(rows[first], rows[best])
    p = min(1.0, found["p"] * (len(rows) - 1))  # Bonferroni: the best of many is ahead by chance more often than one
    chance = "; that may be chance" if p >= 0.05 else ""
    many = f" after {len(rows) - 1} comparisons" if len(rows) > 2 else ""
    say(
        f"Best by {profile}: {best}, {found['difference']:+.2f} from {first} "
        f"(95% interval {found['low']:+.2f} to {found['high']:+.2f}, p {p:.2g}{many}{chance})."
    )


def systems_of(
    names: list[str],
    how: SystemArguments,
    settings: dict[str, Decoding],
    model_args: ModelArguments,
    prompt_args: PromptArguments,
) -> dict[str, System]:
    """One system for each model and decoding, or for all models together where `how` combines them; by name.

    Args:
        names: Of models, or of folders that `System.save` wrote.
        settings: Decodings by what is to stand behind a system's name.
    """
    short = _short_names(names)
    endings = {f"-{setting}" if setting else "": decoding for setting, decoding in settings.items()}
    if how.combine:
        name = f"{how.combine}-{'+'.join(short)}"
        return {
            name + ending: System(tuple(names), how, decoding, model_args, prompt_args)
            for ending, decoding in endings.items()
        }
    return {  # one model after the other, so that each is loaded once
        name + ending: System.load(model, how, decoding, model_args, prompt_args)
        for name, model in zip(short, names, strict=True)
        for ending, decoding in endings.items()
    }


def _short_names(names: list[str]) -> list[str]:
    """The last parts of each path, as many as tell it from the others."""
    paths = [Path(os.path.abspath(name)) if Path(name).is_dir() else Path(name) for name in names]  # `.` has a name too
    pieces = [[part for part in path.parts if part.strip("/\\")] for path in paths]
    for parts in range(1, max(map(len, pieces)) + 1):
        short = ["-".join(own[-parts:]) for own in pieces]
        if len(set(short)) == len(short):
            return short
    raise InputError(f"--model {' '.join(names)}: the same model twice; name each once.")
