"""Scores models, systems of several models, or a file of predictions on dialogues with references; and compares them.

    accelerate launch recipes/evaluate.py --model embedded runs/sft/phase2 --dataset_path dev.csv --output_dir runs/dev
    accelerate launch recipes/evaluate.py --model runs/sft/phase2 --grid num_beams=1,4 length_penalty=0.6,1,1.4
    accelerate launch recipes/evaluate.py --model runs/sft/phase1 runs/sft/phase2 --combine mbr --samples 16
    python recipes/evaluate.py --predictions predictions.csv --dataset_path dev.csv --profiles aistages
    python recipes/evaluate.py --compare runs/dev runs/mbr --select aistages --output_dir runs/report

Prints a table, and writes OUTPUT_DIR/results.json, the dialogues, and a predictions file for each system. Killed and
started again, it writes only the summaries that are still missing. `--compare` takes such folders and writes one page,
OUTPUT_DIR/report.html; `--select` writes the best of their systems into OUTPUT_DIR/best, which summarize.py uses.
"""

import sys
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from alignment import data, journal, outputs, run, splits
from alignment.arguments import DataArguments, ModelArguments, PromptArguments, SFTArguments
from alignment.errors import InputError
from alignment.generation import Decoding, decoding_grid
from alignment.launch import launch
from alignment.parser import parse
from alignment.progress import show_table
from alignment.submission import fill_empty, write_submission
from reward.choice import select
from reward.evaluation import evaluate, files_to_refuse, say_winner, systems_of
from reward.leaderboard import leaderboard, write_leaderboard
from reward.postprocess import mend
from reward.rouge import PROFILES, check_profiles, usual_profiles
from reward.runs import read_runs
from reward.system import System, SystemArguments


@dataclass
class EvaluateArguments:
    """What to score, and where to write it."""

    model: list[str] | None = field(default=None, metadata={"help": "Folders or Hub names of the models to score."})
    predictions: str | None = field(default=None, metadata={"help": "Score this file (fname,summary), not a model."})
    name: str | None = field(default=None, metadata={"help": "The system's name in the table, where there is one."})
    grid: list[str] | None = field(
        default=None, metadata={"help": "Decoding options, every combination: num_beams=1,4 length_penalty=0.6,1."}
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
    usual = decoding == Decoding() and not args.grid
    asked = (how, prompt_args, replace(data_args, bad_rows=DataArguments.bad_rows, columns=None))
    if args.compare and (asked != (SystemArguments(), PromptArguments(), DataArguments()) or not usual or args.name):
        raise InputError("--compare: reads what was written. Leave out systems, prompts, decoding and dialogues.")
    check_profiles("--profiles", *(args.profiles or []))
    check_profiles("--select", args.select)
    output = Path(args.output_dir)
    if args.compare:
        overwrite = args.overwrite_output_dir or (bool(args.submission) and journal.left_behind(output / "submission"))
        outputs.refuse_existing([output / name for name in ("report.html", "best", "submission.csv")], overwrite)
        compare(args, data_args, output)
        return

    systems: dict[str, System | None] = {Path(args.predictions or "").stem: None}
    if args.predictions and (how.combine or not usual):
        raise InputError("--predictions: nothing to combine or decode. Leave out --combine and options of decoding.")
    if "/" in (args.name or ""):
        raise InputError(f"--name {args.name}: becomes part of a file's name; leave out the slash.")
    if not args.predictions:
        settings = decoding_grid(args.grid, decoding) if args.grid else {"": decoding}
        systems = systems_of(args.model or [model_args.model_name_or_path], how, settings, model_args, prompt_args)
    if args.name and len(systems) > 1:
        raise InputError(f"--name {args.name}: there are {len(systems)} systems, which have names of their own.")
    systems = dict(zip([args.name], systems.values(), strict=True)) if args.name else systems
    outputs.refuse_existing(files_to_refuse(systems, output), args.overwrite_output_dir)
    by_id = data.read_predictions(args.predictions) if args.predictions else {}
    records, rejected = splits.load_eval(data_args)
    predictions = data.match_predictions(by_id, records, args.predictions) if args.predictions else []
    outputs.claim_folder(output)
    data.write_rejected(rejected, output / "evaluate.rejected.jsonl")
    profiles = args.profiles or usual_profiles([record.dialogue for record in records])
    results, rows = evaluate(systems, records, profiles, output, how.postprocess, predictions)
    columns = ("name", "profile", "rouge1", "rouge2", "rougeL", "mean", "seconds", "peak_memory_gib")
    path = data_args.eval_dataset_path or data_args.dataset_path
    show_table(f"ROUGE on {len(records)} rows of {path}", columns, results)
    say_winner(rows, profiles[0])
    run.say(f"Written: {output}/results.json")


def compare(args: EvaluateArguments, data_args: DataArguments, output: Path) -> None:
    """Writes the page of several runs, and where it is asked for the best of their systems, and its submission."""
    records, entries = read_runs([Path(folder) for folder in args.compare or []])
    profiles = args.profiles or usual_profiles([record.dialogue for record in records])
    profiles += [args.select] if args.select and args.select not in profiles else []
    options = {"split": "eval", "bad_rows": data_args.bad_rows, "columns": data_args.columns}
    dialogues, rejected = data.load_records(args.submission, **options) if args.submission else ([], [])
    outputs.claim_folder(output)
    data.write_rejected(rejected, output / "submission.rejected.jsonl")
    write_leaderboard(leaderboard(records, entries, profiles), output)
    best = select(records, entries, args.select, output / "best") if args.select else None
    if best and (texts := [record.dialogue for record in dialogues]):
        with ExitStack() as journals:
            raw, _ = best.summarize(texts, "Submission", journals, output / "submission")
            summaries = fill_empty(texts, mend(texts, raw, best.how.postprocess))
            write_submission([record.id for record in dialogues], summaries, output / "submission.csv")
        run.say(f"Written: {output}/submission.csv")


if __name__ == "__main__":
    launch(main)
