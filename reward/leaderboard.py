"""Evaluated systems compared: what `read_runs` has read -> figures, and one page that shows them.

Every figure is computed anew from the predictions, so that all systems are scored by the same code on the same rows.
"""

import json
import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Template

from alignment.data import fingerprint
from alignment.dialogue import language
from alignment.formats import write_text
from alignment.progress import Progress, show_table
from alignment.records import Record
from alignment.run import is_main_process, say, write_json
from alignment.speakers import names_in
from reward.comparison import CURVES
from reward.quality import GATES
from reward.rouge import MEASURES, intervals, paired_bootstraps, rouge
from reward.runs import COSTS, Entry

BINS = 40  # of the length histogram
MOST_SPEAKERS = 5  # and more than that
MOST_POINTS = 400  # of a curve: more than a screen can tell apart
TRAINING_LOSS = "Training loss"
ALL_CURVES = {"Held-out loss": "eval_loss", TRAINING_LOSS: "loss"} | CURVES


@dataclass(frozen=True)
class Board:
    """What is compared, and the figures: values that JSON can hold, systems in the order of `entries`."""

    records: list[Record]
    entries: list[Entry]
    figures: dict[str, Any]


# --- computing --------------------------------------------------------------------------------------------------------


def leaderboard(records: list[Record], entries: list[Entry], profiles: list[str]) -> Board:
    """Scores every system by every profile, and says how sure the differences are.

    Figures:
        `profiles`, by name: `scores` (MEASURES, the 95% interval `low` to `high` of the mean, and `rank`), `pairs` (row
        less column: difference, low, high, p; None on the diagonal), `by_length` and `by_speakers` (`groups` of
        dialogues, and of each system the mean and interval in each), and `rows` (the mean of each row);
        `lengths` (characters), `gates` (share passed), `curves` of the models' training, and what was compared.

    Raises:
        InputError: An unknown profile; or as `rouge`.
    """
    references = [list(record.references) for record in records]
    summaries = [entry.summaries for entry in entries]
    groups = {"by_length": _quartiles(records), "by_speakers": _speakers(records)}
    by_profile = {}
    with Progress("Scoring", len(profiles) * len(entries) * len(records)) as progress:
        for profile in profiles:
            results = []
            for texts in summaries:
                results.append(rouge(texts, references, profile))
                progress.advance(len(records))
            means = [[row["mean"] for row in result.rows] for result in results]
            ends = intervals(means)
            by_profile[profile] = {
                "tokenizer": results[0].tokenizer,
                "scores": [
                    {key: getattr(result, key) for key in MEASURES}
                    | {"low": low, "high": high, "rank": 1 + sum(other.mean > result.mean for other in results)}
                    for result, (low, high) in zip(results, ends, strict=True)
                ],
                "pairs": _matrix(means),
                **{name: _by_group(means, own) for name, own in groups.items()},
                "rows": means,
            }
    return Board(
        records,
        entries,
        {
            "rows": len(records),
            "references": [min(map(len, references)), max(map(len, references))],
            "sha256": fingerprint(records),
            "systems": [
                {"name": entry.name, "run": str(entry.run), **entry.costs, "system": entry.system} for entry in entries
            ],
            "profiles": by_profile,
            "lengths": _lengths([text for texts in references for text in texts], summaries),
            "gates": _gates(records, summaries),
            "curves": _curves(entries),
        },
    )


def _matrix(means: list[list[float]]) -> list[list[dict[str, float] | None]]:
    """Row less column for every two systems; `paired_bootstraps` has each pair once, and as later less earlier."""
    matrix: list[list[dict[str, float] | None]] = [[None] * len(means) for _ in means]
    for (a, b), found in paired_bootstraps(means).items():
        matrix[b][a] = found
        turned = {"difference": -found["difference"], "low": -found["high"], "high": -found["low"]}
        matrix[a][b] = turned | {"p": found["p"]}
    return matrix


Groups = list[tuple[str, list[int]]]  # a label, and the indices of its rows


def _quartiles(records: list[Record]) -> Groups:
    lengths = np.array([len(record.dialogue) for record in records])
    edges = np.floor(np.quantile(lengths, (0, 0.25, 0.5, 0.75, 1))).astype(int).tolist()
    edges[0] -= 1
    groups = []
    for low, high in pairwise(edges):
        index = np.flatnonzero((low < lengths) & (lengths <= high)).tolist()
        groups.append((f"{low + 1} to {high}" if low + 1 < high else str(high), index))
    return [(label, index) for label, index in groups if index]


def _speakers(records: list[Record]) -> Groups:
    counts = [min(len(names_in(record.dialogue)), MOST_SPEAKERS) for record in records]
    labels = {number: str(number) for number in range(MOST_SPEAKERS)} | {MOST_SPEAKERS: f"{MOST_SPEAKERS} or more"}
    return [(labels[n], [i for i, count in enumerate(counts) if count == n]) for n in sorted(set(counts))]


def _by_group(means: list[list[float]], groups: Groups) -> dict[str, Any]:
    columns = []
    for _, index in groups:
        own = [[scores[i] for i in index] for scores in means]
        ends = zip(own, intervals(own), strict=True)
        columns.append([{"mean": float(np.mean(scores)), "low": low, "high": high} for scores, (low, high) in ends])
    return {
        "groups": [{"label": label, "rows": len(index)} for label, index in groups],
        "scores": [list(row) for row in zip(*columns, strict=True)],
    }


def _lengths(references: list[str], summaries: list[list[str]]) -> dict[str, Any]:
    """Characters: mean and quartiles, and a histogram whose last bin takes the longest hundredth of all."""
    counts = [np.array([len(text) for text in texts]) for texts in (references, *summaries)]
    top = max(float(np.quantile(np.concatenate(counts), 0.99)), 1.0)
    width = max(1, math.ceil(top / BINS))
    edges = np.arange(0, width * (math.ceil(top / width) + 1), width)
    figures = [
        {
            "mean": float(own.mean()),
            **dict(zip(("low", "median", "high"), np.quantile(own, (0.25, 0.5, 0.75)).tolist(), strict=True)),
            "shares": (np.histogram(np.minimum(own, edges[-1]), edges)[0] / len(own)).tolist(),
        }
        for own in counts
    ]
    return {"edges": edges.tolist(), "references": figures[0], "systems": figures[1:]}


def _gates(records: list[Record], summaries: list[list[str]]) -> dict[str, Any]:
    dialogues = [record.dialogue for record in records]

    def passed(pairs: list[tuple[str, str]]) -> list[float]:
        return [sum(gate(*pair) for pair in pairs) / len(pairs) for gate in GATES.values()]

    return {
        "names": list(GATES),
        "references": passed([(record.dialogue, text) for record in records for text in record.references]),
        "systems": [passed(list(zip(dialogues, texts, strict=True))) for texts in summaries],
    }


def _curves(entries: list[Entry]) -> list[dict[str, Any]]:
    """What each model's training logged, by title: lists of [step, value]; and `path`, of [KL, reward] in PPO."""
    models: dict[str, dict[str, Any]] = {}
    for entry in entries:
        for path, manifest in entry.manifests.items():
            models.setdefault(path, {"manifest": manifest, "systems": []})["systems"].append(entry.name)
    curves = []
    for path, found in models.items():
        log = [line for line in found["manifest"].get("log") or [] if isinstance(line, dict) and "step" in line]
        by_kl = _points(log, "kl", "reward")
        series = {title: _thinned(_points(log, "step", name)) for title, name in ALL_CURVES.items()}
        if by_kl:  # the loss of PPO is of another kind than that of fine-tuning
            series[TRAINING_LOSS] = []
        own = {"model": path, "systems": found["systems"], "seconds": found["manifest"].get("seconds")}
        if any(series.values()):
            curves.append(own | {"series": {title: own for title, own in series.items() if own}, "path": by_kl})
    return curves


def _points(log: list[dict[str, Any]], x: str, y: str) -> list[list[float]]:
    """The lines that have both as finite numbers; a run that diverged logs NaN."""
    points: list[list[Any]] = [[line.get(x), line.get(y)] for line in log]
    return [point for point in points if all(isinstance(v, (int, float)) and math.isfinite(v) for v in point)]


def _thinned(points: list[list[float]]) -> list[list[float]]:
    """At most MOST_POINTS points, each the mean of its neighbours."""
    if len(points) <= MOST_POINTS:
        return points
    return [part.mean(axis=0).tolist() for part in np.array_split(np.array(points), MOST_POINTS)]


# --- the page ---------------------------------------------------------------------------------------------------------


def write_leaderboard(board: Board, folder: Path) -> None:
    """Writes report.html, one page that needs no network, leaderboard.csv and leaderboard.json; prints the table."""
    if not is_main_process():
        return
    figures = board.figures
    rows = []
    for profile, own in figures["profiles"].items():
        scored = zip(figures["systems"], own["scores"], figures["lengths"]["systems"], strict=True)
        table = [
            {"profile": profile, "rank": scores["rank"], "name": system["name"], "run": system["run"]}
            | {key: scores[key] for key in (*MEASURES, "low", "high")}
            | {key: system[key] for key in COSTS}
            | {"characters": lengths["mean"]}
            for system, scores, lengths in scored
        ]
        rows += sorted(table, key=lambda row: row["rank"])
    pd.DataFrame(rows).convert_dtypes().to_csv(folder / "leaderboard.csv", index=False, lineterminator="\n")
    write_json(figures, folder / "leaderboard.json")
    write_text(page(board), folder / "report.html")
    columns = ("name", "profile", "mean", "low", "high", "rouge1", "rouge2", "rougeL")
    show_table(f"{len(board.entries)} systems on {figures['rows']} dialogues, with 95% intervals", columns, rows)
    say(f"Written: {folder}/report.html, leaderboard.csv and leaderboard.json")


def page(board: Board) -> str:
    """The page as one HTML file: figures and texts in it as JSON, drawn by its own script."""
    content = {
        **board.figures,
        "language": language(board.records[0].dialogue),
        "dialogues": [asdict(record) for record in board.records],
        "summaries": [entry.summaries for entry in board.entries],
    }
    # No `<` stays in the JSON: neither </script> nor <!-- in a dialogue can end the element that it stands in.
    data = json.dumps(_rounded(content), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    template = Path(__file__).with_name("leaderboard.html").read_text(encoding="utf-8")
    title = f"{_counted(len(board.entries), 'system')} on {_counted(len(board.records), 'dialogue')}"
    return Template(template, autoescape=True).render(title=title, data=data)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _rounded(value: Any) -> Any:
    """The same with its floats to four decimals: the scores of all rows would be most of the page."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(own) for key, own in value.items()}
    return [_rounded(own) for own in value] if isinstance(value, (list, tuple)) else value
