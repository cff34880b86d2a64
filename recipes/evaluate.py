"""Scores models, or a file of predictions, on dialogues with reference summaries.

    accelerate launch recipes/evaluate.py --model runs/sft/phase2 --dataset_path dev.csv --output_dir runs/dev
    accelerate launch recipes/evaluate.py --model embedded runs/sft/phase1 runs/sft/phase2 --dataset_path dev.csv
    python recipes/evaluate.py --predictions predictions.csv --dataset_path dev.csv --profiles aistages

Prints a table, and writes OUTPUT_DIR/results.json and a predictions file for each model. Killed and started again, it
writes only the summaries that are still missing.
"""

import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from alignment import data, run
from alignment.arguments import DataArguments, ModelArguments, PromptArguments, SFTArguments, parse
from alignment.dialogue import language
from alignment.errors import InputError
from alignment.generation import Decoding
from alignment.progress import peak_memory_gib, reset_peak_memory, show_table
from alignment.submission import write_submission
from alignment.summarizer import Summarizer
from reward.rouge import PROFILES, rouge


@dataclass
class EvaluateArguments:
    """What to score, and where to write it."""

    model: list[str] | None = field(default=None, metadata={"help": "Folders or Hub names of the models to score."})
    predictions: str | None = field(default=None, metadata={"help": "Score this file (fname,summary), not a model."})
    profiles: list[str] | None = field(
        default=None, metadata={"help": f"ROUGE profiles, of {', '.join(PROFILES)}; by default those of the language."}
    )
    output_dir: str = field(default="runs/evaluate", metadata={"help": "Where results and predictions are written."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace results that are there."})


def main(argv: list[str] | None = None) -> None:
    classes = (EvaluateArguments, ModelArguments, DataArguments, PromptArguments, Decoding)
    args, model_args, data_args, prompt_args, decoding = parse(classes, argv, passed_over=(SFTArguments,))
    if args.model and args.predictions:
        raise InputError("--model and --predictions: give one of them.")
    output = Path(args.output_dir)
    if (output / "results.json").exists() and not args.overwrite_output_dir:
        raise InputError(f"{output}/results.json exists. Choose another --output_dir, or --overwrite_output_dir true.")
    systems = [args.predictions] if args.predictions else args.model or [model_args.model_name_or_path]
    names = [Path(args.predictions).stem] if args.predictions else names_of(systems)
    files = [output / ("predictions.csv" if len(systems) == 1 else f"predictions-{name}.csv") for name in names]
    # Beside a journal lie the predictions of a run that was killed as it wrote them.
    there = [
        f for f, name in zip(files, names, strict=True) if f.exists() and not any(output.glob(f"{name}.*.journal"))
    ]
    if there and not args.predictions and not args.overwrite_output_dir:
        raise InputError(f"{there[0]} exists. Choose another --output_dir, or --overwrite_output_dir true.")
    records, rejected = data.load_eval(data_args)
    korean = language(records[0].dialogue) == "ko"
    profiles = args.profiles or (["aistages", "strict"] if korean else ["english"])
    for profile in profiles:
        if profile not in PROFILES:
            raise InputError(f"--profiles {profile}: expected some of {', '.join(PROFILES)}.")
    run.make_folder(output)
    data.write_rejected(rejected, output / "rejected.jsonl")

    texts, ids = [record.dialogue for record in records], [record.id for record in records]
    references = [list(record.references) for record in records]
    results, predictions = [], []
    with ExitStack() as journals:  # which stay until all is written
        for system, name in zip(systems, names, strict=True):
            reset_peak_memory()
            started, seconds_before = time.monotonic(), 0.0
            if args.predictions:
                summaries = data.match_predictions(data.read_predictions(system), records, system)
            else:
                summarizer = Summarizer.load(system, model_args, prompt_args)
                journal = journals.enter_context(summarizer.journal(output / name, texts, decoding))
                seconds_before = journal.seconds_before
                summaries = summarizer.summarize(texts, decoding, f"Summarising with {name}", journal)
                del summarizer  # its memory, before the next one's is counted
            predictions.append(summaries)
            seconds = round(seconds_before + time.monotonic() - started, 1)
            cost = {"seconds": seconds, "peak_memory_gib": round(peak_memory_gib(), 2)}
            for profile in profiles:
                scores = asdict(rouge(summaries, references, profile)) | {"rows": len(records)}
                results.append({"name": name} | scores | cost)
        if not args.predictions:
            for file, summaries in zip(files, predictions, strict=True):
                write_submission(ids, summaries, file, allow_empty=True)
        run.write_json(results, output / "results.json")
    columns = ("name", "profile", "rouge1", "rouge2", "rougeL", "mean", "seconds", "peak_memory_gib")
    source = data_args.eval_dataset_path or data_args.dataset_path
    show_table(f"ROUGE on {len(records)} rows of {source}", columns, results)
    run.say(f"Written: {output}/results.json")


def names_of(systems: list[str]) -> list[str]:
    """A file name for each system: the last parts of its path, as many as tell it from the others."""
    for parts in range(1, max(len(Path(system).parts) for system in systems) + 1):
        names = ["-".join(Path(system).parts[-parts:]) for system in systems]
        if len(set(names)) == len(names):
            return names
    raise InputError(f"--model {' '.join(systems)}: the same model twice; name each once.")


if __name__ == "__main__":
    run.launch(main)
