"""Scores models, systems of several models, or a file of predictions on dialogues with references; and compares them.

    accelerate launch recipes/evaluate.py --model runs/sft/phase2 --dataset_path dev.csv --output_dir runs/dev
    accelerate launch recipes/evaluate.py --model embedded runs/sft/phase1 runs/sft/phase2 --dataset_path dev.csv
    accelerate launch recipes/evaluate.py --model runs/sft/phase2 --grid num_beams=1,4 length_penalty=0.6,1,1.4
    accelerate launch recipes/evaluate.py --model runs/sft/phase1 runs/sft/phase2 --combine mbr --samples 4
    python recipes/evaluate.py --predictions predictions.csv --dataset_path dev.csv --profiles aistages
    python recipes/evaluate.py --compare runs/dev runs/mbr --select aistages --output_dir runs/report

Prints a table, and writes OUTPUT_DIR/results.json, the dialogues, and a predictions file for each system. Killed and
started again, it writes only the summaries that are still missing. `--compare` takes such folders and writes one page,
OUTPUT_DIR/report.html; `--select` writes the best of their systems into OUTPUT_DIR/best, which summarize.py uses.
"""

import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from alignment import data, run
from alignment.arguments import DataArguments, ModelArguments, PromptArguments, SFTArguments, parse
from alignment.dialogue import language
from alignment.errors import InputError
from alignment.generation import Decoding, decoding_grid
from alignment.progress import peak_memory_gib, reset_peak_memory, show_table
from alignment.submission import fill_empty, write_submission
from reward.choice import say_winner, select
from reward.leaderboard import leaderboard, read_runs, write_leaderboard
from reward.postprocess import effects, mend
from reward.rouge import PROFILES, rouge
from reward.system import OneAtATime, System, SystemArguments


@dataclass
class EvaluateArguments:
    """What to score, and where to write it."""

    model: list[str] | None = field(default=None, metadata={"help": "Folders or Hub names of the models to score."})
    predictions: str | None = field(default=None, metadata={"help": "Score this file (fname,summary), not a model."})
    name: str | None = field(default=None, metadata={"help": "The system's name in the table, where there is one."})
    grid: list[str] | None = field(
        default=None,
        metadata={"help": "Decoding options to try in every combination: num_beams=1,4 length_penalty=0.6,1."},
    )
    profiles: list[str] | None = field(
        default=None, metadata={"help": f"ROUGE profiles, of {', '.join(PROFILES)}; by default those of the language."}
    )
    compare: list[str] | None = field(
        default=None, metadata={"help": "Output folders of this recipe: compare their systems on one page."}
    )
    select: str | None = field(
        default=None, metadata={"help": "With --compare: write the best system by this profile's mean into best/."}
    )
    submission: str | None = field(
        default=None, metadata={"help": "With --select: dialogues to summarise with it, into submission.csv."}
    )
    output_dir: str = field(default="runs/evaluate", metadata={"help": "Where results and predictions are written."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace results that are there."})


def main(argv: list[str] | None = None) -> None:
    classes = (EvaluateArguments, SystemArguments, ModelArguments, DataArguments, PromptArguments, Decoding)
    args, how, model_args, data_args, prompt_args, decoding = parse(classes, argv, passed_over=(SFTArguments,))
    if sum(map(bool, (args.model, args.predictions, args.compare))) > 1:
        raise InputError("--model, --predictions and --compare: give one of them.")
    if (args.select and not args.compare) or (args.submission and not args.select):
        raise InputError("--select needs --compare, and --submission needs --select.")
    for profile in [*(args.profiles or []), *([args.select] if args.select else [])]:
        if profile not in PROFILES:
            flag = "--select" if profile == args.select else "--profiles"
            raise InputError(f"{flag} {profile}: expected some of {', '.join(PROFILES)}.")
    if args.compare:
        compare(args, data_args, decoding)
        return
    systems = systems_of(args, how, model_args, prompt_args, decoding)
    score(systems, how, args, data_args)


def systems_of(
    args: EvaluateArguments,
    how: SystemArguments,
    model_args: ModelArguments,
    prompt_args: PromptArguments,
    decoding: Decoding,
) -> dict[str, System | None]:
    """The systems to score, by name; None stands for the file of predictions."""
    if args.predictions:
        return {args.name or Path(args.predictions).stem: None}
    models = args.model or [model_args.model_name_or_path]
    names = names_of(models)
    if how.combine:
        models, names = [models], [f"{how.combine}-{'+'.join(names)}"]
    settings = decoding_grid(args.grid, decoding) if args.grid else {"": decoding}
    systems: dict[str, System | None] = {}
    for model, name in zip(models, names, strict=True):
        for setting, own in settings.items():
            full_name = "-".join(filter(None, (name, setting)))
            if isinstance(model, list):
                systems[full_name] = System(tuple(model), how, own, model_args, prompt_args)
            else:
                systems[full_name] = System.load(model, how, own, model_args, prompt_args)
    if args.name and len(systems) > 1:
        raise InputError(f"--name {args.name}: there are {len(systems)} systems, which have names of their own.")
    return dict(zip([args.name], systems.values(), strict=True)) if args.name else systems


def score(
    systems: dict[str, System | None], how: SystemArguments, args: EvaluateArguments, data_args: DataArguments
) -> None:
    """Summarises with each system, or reads the predictions, and writes results and table."""
    output = Path(args.output_dir)
    files = {name: output / ("predictions.csv" if len(systems) == 1 else f"predictions-{name}.csv") for name in systems}
    # Beside a journal lie the predictions of a run that was killed as it wrote them.
    there = [file for name, file in files.items() if file.exists() and not any(output.glob(f"{name}.*.journal"))]
    for file in [output / "results.json", *there]:
        if file.exists() and not args.overwrite_output_dir:
            raise InputError(f"{file} exists. Choose another --output_dir, or --overwrite_output_dir true.")
    predicted = data.read_predictions(args.predictions) if args.predictions else {}
    records, rejected = data.load_eval(data_args)
    korean = language(records[0].dialogue) == "ko"
    profiles = args.profiles or (["aistages", "strict"] if korean else ["english"])
    run.make_folder(output)
    data.write_rejected(rejected, output / "rejected.jsonl")

    texts, ids = [record.dialogue for record in records], [record.id for record in records]
    references = [list(record.references) for record in records]
    results: list[dict[str, Any]] = []
    rows: dict[str, list[float]] = {}  # of the first profile
    summaries: dict[str, list[str]] = {}
    loaded = OneAtATime()
    with ExitStack() as journals:  # which stay until all is written
        for name, system in systems.items():
            reset_peak_memory()
            started = time.monotonic()
            if system is None:
                raw = data.match_predictions(predicted, records, str(args.predictions))
                cost = dict.fromkeys(("seconds", "peak_memory_gib", "parameters", "trained_parameters", "disk_bytes"))
            else:
                description = f"Summarising with {name}"
                raw, before = system.summarize(texts, description, journals, output / name, loaded)
                cost = {"seconds": round(before + time.monotonic() - started, 1)}
                cost |= {"peak_memory_gib": round(peak_memory_gib(), 2), **system.size()}
            rules = (system.how if system else how).postprocess
            summaries[name] = mend(texts, raw, rules)
            facts = {"predictions": files[name].name, "system": system.describe() if system else None}
            for profile in profiles:
                scores = asdict(rouge(summaries[name], references, profile))
                rows.setdefault(name, [row["mean"] for row in scores["rows"]])
                results.append({"name": name} | scores | {"rows": len(records)} | cost | facts)
            if rules:
                found = effects(texts, raw, references, rules, profiles[0])
                show_table(f"Post-processing of {name}, {profiles[0]}", list(found[0]), found)
        for name, file in files.items():
            write_submission(ids, summaries[name], file, allow_empty=True)
        data.write_records(records, output / "dialogues.jsonl")
        run.write_json(results, output / "results.json")
    columns = ("name", "profile", "rouge1", "rouge2", "rougeL", "mean", "seconds", "peak_memory_gib")
    source = data_args.eval_dataset_path or data_args.dataset_path
    show_table(f"ROUGE on {len(records)} rows of {source}", columns, results)
    say_winner(rows, profiles[0])
    run.say(f"Written: {output}/results.json")


def compare(args: EvaluateArguments, data_args: DataArguments, decoding: Decoding) -> None:
    """Writes the page of several runs, and the best of their systems where it is asked for."""
    output, runs = Path(args.output_dir), [Path(one) for one in args.compare or []]
    for file in (output / "report.html", output / "best", output / "submission.csv"):
        if file.exists() and not args.overwrite_output_dir:
            raise InputError(f"{file} exists. Choose another --output_dir, or --overwrite_output_dir true.")
    records, entries = read_runs(runs)
    korean = language(records[0].dialogue) == "ko"
    profiles = args.profiles or (["aistages", "strict"] if korean else ["english"])
    profiles += [args.select] if args.select and args.select not in profiles else []
    dialogues, _ = data.load_records(args.submission, split="eval") if args.submission else ([], [])
    run.make_folder(output)
    write_leaderboard(leaderboard(records, entries, profiles), output)
    if not args.select:
        return
    best = select(records, entries, args.select, output / "best")
    if dialogues:
        texts = [record.dialogue for record in dialogues]
        with ExitStack() as journals:
            raw, _ = best.summarize(texts, "Submission", journals, output / "submission")
            ids, whole = [record.id for record in dialogues], fill_empty(texts, mend(texts, raw, best.how.postprocess))
            write_submission(ids, whole, output / "submission.csv")
        run.say(f"Written: {output}/submission.csv")


def names_of(systems: list[str]) -> list[str]:
    """A file name for each system: the last parts of its path, as many as tell it from the others."""
    for parts in range(1, max(len(Path(system).parts) for system in systems) + 1):
        names = ["-".join(Path(system).parts[-parts:]) for system in systems]
        if len(set(names)) == len(names):
            return names
    raise InputError(f"--model {' '.join(systems)}: the same model twice; name each once.")


if __name__ == "__main__":
    run.launch(main)
