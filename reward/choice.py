"""Which of several systems is best, by how much, and how sure that is; and the best one kept for use."""

from pathlib import Path

from alignment.data import Record
from alignment.errors import InputError
from alignment.run import say
from reward.leaderboard import Entry
from reward.rouge import paired_bootstrap, rouge
from reward.system import System


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
    say(
        f"Best by {profile}: {best}, {found['difference']:+.2f} from {first} "
        f"(95% interval {found['low']:+.2f} to {found['high']:+.2f}, p {found['p']:.3f})."
    )
    if found["low"] < 0:
        say("That may be chance: the interval holds 0.")


def select(records: list[Record], entries: list[Entry], profile: str, folder: Path) -> System:
    """Writes the system with the highest mean ROUGE of a profile into a folder that `System.load` reads.

    Raises:
        InputError: No entry is a system that can be run: all are files of predictions.
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
    system = System.described(runnable[best].system or {})
    system.save(folder)
    say(f"Written: {folder}, which is {best}. Use it with: python recipes/summarize.py --model {folder} --input FILE")
    return System.load(str(folder))
