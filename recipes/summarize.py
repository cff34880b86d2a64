"""Summarises dialogues with a trained model: a file, or standard input to standard output.

    python recipes/summarize.py --model runs/sft/phase2 --input test.csv --output submission.csv
    python recipes/summarize.py --model runs/report/best --input dialogue.txt
    cat dialogue.txt | python recipes/summarize.py --model runs/sft/phase2

The input has any format that the other recipes read, and the output is then a CSV `fname,summary` in the input's
order; or it is plain text, with a blank line or a rule (---) between two dialogues, and the output has one summary a
line. Killed and started again with an output file, it writes only the summaries that are still missing.
"""

import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from accelerate.utils import broadcast_object_list

from alignment import data, outputs, run
from alignment.arguments import DataArguments, ModelArguments, PromptArguments, RowArguments, SFTArguments
from alignment.errors import InputError
from alignment.formats import is_plain_text
from alignment.generation import Decoding
from alignment.launch import launch
from alignment.parser import parse
from alignment.plain_text import dialogues_in
from alignment.submission import fill_empty, write_lines, write_submission
from reward.postprocess import mend
from reward.system import System, SystemArguments


@dataclass
class SummarizeArguments:
    """What to summarise, and where the summaries go."""

    model: list[str] | None = field(
        default=None,
        metadata={"help": "Folder or Hub name, or several with --combine; by default --model_name_or_path."},
    )
    input: str = field(
        default="-", metadata={"help": "A file, the eval split of a folder or Hub data set, or - for standard input."}
    )
    output: str = field(default="-", metadata={"help": "A file, or - for standard output."})
    overwrite: bool = field(default=False, metadata={"help": "Replace the output file."})


def main(argv: list[str] | None = None) -> None:
    classes = (SummarizeArguments, SystemArguments, ModelArguments, RowArguments, PromptArguments, Decoding)
    own = {"passed_over": (DataArguments, SFTArguments)}
    args, how, model_args, row_args, prompt_args, decoding = parse(classes, argv, **own)
    output = None if args.output == "-" else Path(args.output)
    if output:
        claim_file(output, args.overwrite)

    names = args.model or [model_args.model_name_or_path]
    if len(names) == 1 and not how.combine:
        system = System.load(names[0], how, decoding, model_args, prompt_args)
    else:
        system = System(tuple(names), how, decoding, model_args, prompt_args)

    dialogues, ids, rejected = read_standard_input(row_args) if args.input == "-" else read(args.input, row_args)
    if output:
        data.write_rejected(rejected, f"{output}.rejected.jsonl")
    elif rejected:
        run.say(f"{len(rejected)} bad rows have no summary.")

    description = "Summarising" if len(dialogues) > 1 else None
    with ExitStack() as journals:
        raw, _ = system.summarize(dialogues, description, journals if output else None, output or Path())
        summaries = fill_empty(dialogues, mend(dialogues, raw, system.how.postprocess))
        if run.is_main_process():
            destination = output or sys.stdout
            write_lines(summaries, destination) if ids is None else write_submission(ids, summaries, destination)
    if output:
        run.say(f"{len(summaries)} summaries written to {output}.")


def claim_file(output: Path, overwrite: bool) -> None:
    """Holds that summaries can be written to a file, and takes it for this process."""
    if output.is_dir():
        raise InputError(f"--output {output}: is a folder. Give the name of a file.")
    if output.suffix.lower() in (".json", ".jsonl", ".xlsx", ".tsv"):
        raise InputError(f"--output {output}: summaries are written as CSV, those of plain text one a line.")
    if output.exists() and not overwrite:
        raise InputError(f"--output {output}: exists. Choose another name, or add --overwrite true.")
    if not output.parent.is_dir():
        raise InputError(f"--output {output}: no such folder {output.parent}.")
    outputs.make_folder(output.parent, "--output")
    outputs.claim(output)


def read(source: str, row_args: RowArguments) -> tuple[list[str], list[str] | None, list[data.Rejected]]:
    """Dialogues, their ids, which plain text has none of, and bad rows."""
    place = data.place_of(source)
    if place.is_file() and is_plain_text(place, data.column_names(row_args.columns)):
        dialogues = dialogues_in(place)
        if len(dialogues) > 1:
            run.say(f"{len(dialogues)} dialogues, as blank lines part them: a summary for each.")
        return dialogues, None, []
    options = {"bad_rows": row_args.bad_rows, "columns": row_args.columns}
    records, rejected = data.load_records(source, split="eval", **options)
    return [record.dialogue for record in records], [record.id for record in records], rejected


def read_standard_input(row_args: RowArguments) -> tuple[list[str], list[str] | None, list[data.Rejected]]:
    """As `read`, and what is wrong is said of standard input."""
    if sys.stdin is None:
        raise InputError("--input -: there is no standard input. Give it dialogues, or --input FILE.")
    if sys.stdin.isatty():
        run.say("Reading dialogues from the keyboard, up to Ctrl-D.")
    content = [sys.stdin.buffer.read() if run.is_main_process() else b""]  # which all processes share
    broadcast_object_list(content)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "standard input"
        source.write_bytes(content[0])
        try:
            return read(str(source), row_args)
        except InputError as error:
            raise InputError(str(error).replace(str(source), source.name)) from error


if __name__ == "__main__":
    launch(main)
