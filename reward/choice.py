"""The best of several evaluated systems, kept for use."""

from pathlib import Path

from accelerate import PartialState

from alignment.errors import InputError
from alignment.records import Record
from alignment.run import is_main_process, say
from reward.evaluation import say_winner
from reward.rouge import rouge
from reward.runs import Entry
from reward.system import System


def select(records: list[Record], entries: list[Entry], profile: str, folder: Path) -> System:
    """Writes the system with the highest mean ROUGE of a profile into a folder that `System.load` reads.

    Raises:
        InputError: No entry is a system that can be run: all are files of predictions; or the best one's weights are
            no longer those that were scored.
    """
    references = [list(record.references) for record in records]
    runnable = {entry.name: entry for entry in entries if entry.system is not None}
    if not runnable:
        raise InputError(f"--select {profile}: these runs hold predictions alone, and no model that could be kept.")
    rows = {
        name: [row["mean"] for row in rouge(entry.summaries, references, profile).rows]
        for name, entry in runnable.items()
    }
    say_winner(rows, profile)
    best = max(rows, key=lambda name: sum(rows[name]))
    entry = runnable[best]
    try:
        system = System.described(entry.system or {})
    except InputError as error:
        raise InputError(f"{entry.run}: {error} Evaluate {best} again.") from error
    made_of = (*system.models, system.how.reward_model)
    if (entry.system or {}).get("weights_of") != system.describe()["weights_of"]:
        raise InputError(
            f"--select {profile}: {best} is best, but weights of {', '.join(filter(None, made_of))} are gone, or are "
            f"not those that {entry.run} was made with. Evaluate it again."
        )
    if is_main_process():
        system.save(folder)
    PartialState().wait_for_everyone()
    say(f"Written: {folder}, which is {best}. Use it with: python recipes/summarize.py --model {folder} --input FILE")
    return System.load(str(folder))
