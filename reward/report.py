"""What a reward model is worth on dialogues it has not seen: JSON, a table, and one HTML page with plots.

The figures decide too: below `min_accuracy` the model is marked unfit, and PPO will not take it.
"""

import io
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Template
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from alignment.formats import write_text
from alignment.progress import show_table
from alignment.records import Record
from alignment.run import is_main_process, say, write_json
from reward.candidates import CORRUPTED
from reward.labels import Label
from reward.model import RewardModel
from reward.pairs import BINS, Pair

CONFIDENCE_BINS = 5


def report(
    model: RewardModel,
    labels: list[Label],
    pairs: list[Pair],
    records: list[Record],
    min_accuracy: float,
    batch_size: int = 8,
) -> dict[str, Any]:
    """Scores every candidate and pair of held-out dialogues.

    Args:
        batch_size: Dialogues at a time.

    Returns:
        `fit`, `accuracy` (share of pairs whose chosen summary scores higher; a tie counts half), the same
        `without_faults` (pairs of which neither text was made worse on purpose; those are the hard ones), `by_kind` and
        `by_length_bin`, `spearman` (of score and label within a dialogue, mean), `calibration`, `length_correlation`
        (Pearson, of score and characters), `length_slope` (what the scale takes off, fitted on these references), and
        `scores` by kind of candidate.
    """
    texts = list(dict.fromkeys([(label.id, label.text) for label in labels] + _texts(pairs)))
    dialogues = {record.id: record.dialogue for record in records}
    values = model.score([dialogues[name] for name, _ in texts], [text for _, text in texts], batch_size, "Scoring")
    scores = dict(zip(texts, values, strict=True))
    margins = np.array([scores[pair.id, pair.chosen] - scores[pair.id, pair.rejected] for pair in pairs])
    right = (np.sign(margins) + 1) / 2

    def accuracy_by(key: Callable[[Pair], str], order: tuple[str, ...] = ()) -> list[dict[str, Any]]:
        groups: dict[str, list[float]] = defaultdict(list, {name: [] for name in order})
        for pair, value in zip(pairs, right, strict=True):
            groups[key(pair)].append(value)
        rows = [
            {"name": name, "pairs": len(own), "accuracy": float(np.mean(own))} for name, own in groups.items() if own
        ]
        return rows if order else sorted(rows, key=lambda row: -row["pairs"])

    by_kind: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for label in labels:
        by_kind[label.kind].append((scores[label.id, label.text], len(label.text)))
    accuracy = float(right.mean())
    plain = right[np.array([pair.kind.rpartition(" > ")[2] not in CORRUPTED for pair in pairs])]
    return {
        "fit": accuracy >= min_accuracy,
        "min_accuracy": min_accuracy,
        "accuracy": accuracy,
        "pairs": len(pairs),
        "without_faults": {"pairs": len(plain), "accuracy": float(plain.mean()) if len(plain) else None},
        "dialogues": len({label.id for label in labels}),
        "by_kind": accuracy_by(lambda pair: pair.kind),
        "by_length_bin": accuracy_by(lambda pair: pair.length_bin, BINS),
        "spearman": spearman_within(labels, scores),
        "calibration": calibration(margins * model.scale.deviation),
        "length_slope": model.scale.length_slope,
        "length_correlation": {
            "references": correlation(by_kind["reference"]),
            "candidates": correlation([item for own in by_kind.values() for item in own]),
        },
        "scores": {kind: [round(score, 4) for score, _ in own] for kind, own in by_kind.items() if own},
        "lengths": {kind: [length for _, length in own] for kind, own in by_kind.items() if own},
    }


def _texts(pairs: list[Pair]) -> list[tuple[str, str]]:
    return [(pair.id, text) for pair in pairs for text in (pair.chosen, pair.rejected)]


def spearman_within(labels: list[Label], scores: dict[tuple[str, str], float]) -> float | None:
    """Mean rank correlation of score and label over the dialogues with three candidates or more; None without any."""
    frame = pd.DataFrame(
        {"id": label.id, "label": label.label, "score": scores[label.id, label.text]} for label in labels
    )
    tables = frame.groupby("id").corr("spearman", min_periods=3)  # 2 x 2 each, NaN where either does not vary
    values = tables.xs("label", level=1)["score"].dropna()
    return float(values.mean()) if len(values) else None


def correlation(points: list[tuple[float, int]]) -> float | None:
    """Pearson's correlation of score and length, or None where either does not vary."""
    table = np.array(points, dtype=float).reshape(-1, 2)
    return float(np.corrcoef(table.T)[0, 1]) if len(table) > 1 and np.ptp(table, axis=0).all() else None


def calibration(margins: np.ndarray) -> dict[str, Any]:
    """How often the summary that scores higher is the chosen one, by how sure the model is of it.

    Args:
        margins: Score of chosen less that of rejected, in the head's own units; the sigmoid of its size is how sure the
            model is. Training asks for a margin besides, so a model that does as it was taught is a little too sure.

    Returns:
        `bins` from confidence 0.5 to 1, and `error`: the expected calibration error, weighted by the pairs in each.

    Source: Guo et al. 2017 (arXiv 1706.04599), section 2.
    """
    confidence = 1 / (1 + np.exp(-np.abs(margins)))
    right = (np.sign(margins) + 1) / 2
    index = np.minimum(((confidence - 0.5) * 2 * CONFIDENCE_BINS).astype(int), CONFIDENCE_BINS - 1)
    bins = [
        {
            "confidence": float(confidence[index == i].mean()),
            "accuracy": float(right[index == i].mean()),
            "pairs": int((index == i).sum()),
        }
        for i in range(CONFIDENCE_BINS)
        if (index == i).any()
    ]
    error = sum(one["pairs"] * abs(one["confidence"] - one["accuracy"]) for one in bins) / len(margins)
    return {"bins": bins, "error": float(error)}


# --- the page ---------------------------------------------------------------------------------------------------------


def verdict_files(folder: Path) -> list[Path]:
    """What `write_report` writes into a folder."""
    return [folder / "report.json", folder / "report.html"]


def write_report(figures: dict[str, Any], title: str, folder: Path) -> None:
    """Writes report.json and report.html, one page that needs no network, into a folder; prints tables and verdict."""
    if not is_main_process():
        return
    as_json, as_page = verdict_files(folder)
    write_json(figures, as_json)
    plots = [plot(draw, figures) for draw in (_by_kind, _reliability, _histogram, _lengths)]
    page = Template(_PAGE, autoescape=True).render(style=STYLE, title=title, plots=plots, **figures)
    write_text(page, as_page)
    for heading, rows in (("kind of pair", figures["by_kind"]), ("length", figures["by_length_bin"])):
        show_table(f"Held-out accuracy by {heading}", ("name", "pairs", "accuracy"), rows)
    verdict = "fit for PPO" if figures["fit"] else "UNFIT for PPO: give more dialogues or samples, or train for longer"
    asked = f"accuracy {figures['accuracy']:.3f} on {figures['pairs']} pairs, asked for {figures['min_accuracy']:.2f}"
    if (plain := figures["without_faults"])["pairs"]:
        asked += f"; {plain['accuracy']:.3f} on the {plain['pairs']} without a fault put in, where 0.5 is chance"
    say(f"{verdict} ({asked}). Written: {folder}/report.html and report.json")


def plot(draw: Callable[[Axes, Any], None], figures: Any) -> str:
    """What `draw` makes of the figures, as an SVG."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    draw(axes, figures)
    axes.spines[["top", "right"]].set_visible(False)
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()[file.getvalue().index("<svg") :]


def _by_kind(axes: Axes, figures: dict[str, Any]) -> None:
    rows = figures["by_kind"][:12][::-1]
    axes.barh([row["name"] for row in rows], [row["accuracy"] for row in rows], color="#3b6ea5")
    axes.axvline(0.5, color="#888", linestyle=":")
    axes.set(title="Accuracy by kind of pair", xlim=(0, 1))


def _reliability(axes: Axes, figures: dict[str, Any]) -> None:
    bins = figures["calibration"]["bins"]
    axes.plot([0.5, 1], [0.5, 1], color="#888", linestyle=":")
    axes.plot([one["confidence"] for one in bins], [one["accuracy"] for one in bins], "o-", color="#3b6ea5")
    axes.set(title="Calibration", xlabel="confidence", ylabel="share right", xlim=(0.5, 1.01), ylim=(0, 1.02))


def _histogram(axes: Axes, figures: dict[str, Any]) -> None:
    values = figures["scores"]
    edges = np.histogram_bin_edges([score for own in values.values() for score in own], 30)
    for kind, own in values.items():
        axes.hist(own, edges.tolist(), histtype="step", density=True, label=kind)
    axes.legend(fontsize="x-small", frameon=False)
    axes.set(title="Scores by kind of candidate", xlabel="score (0: a mean reference)", yticks=[])


def _lengths(axes: Axes, figures: dict[str, Any]) -> None:
    for kind in figures["scores"]:
        axes.scatter(figures["lengths"][kind], figures["scores"][kind], s=6, alpha=0.5, label=kind)
    axes.legend(fontsize="x-small", frameon=False)
    axes.set(title="Score against length", xlabel="characters", ylabel="score")


STYLE = """
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; color: #222 }
  table { border-collapse: collapse } td, th { padding: .2rem .9rem .2rem 0; text-align: left }
  td + td { text-align: right; font-variant-numeric: tabular-nums } .verdict { font-weight: 600 }
  .plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 1rem } svg { width: 100% }
"""

_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{{ title }}</title>
<style>{{ style|safe }}</style>
<h1>{{ title }}</h1>
<p class="verdict">{{ "Fit for PPO" if fit else "Unfit for PPO" }}: held-out accuracy
  {{ "%.3f"|format(accuracy) }}, at least {{ min_accuracy }} is asked for.</p>
{% if without_faults.pairs %}<p>{{ "%.3f"|format(without_faults.accuracy) }} on the {{ without_faults.pairs }} pairs of
  which neither summary was made worse on purpose, where 0.5 is chance.</p>{% endif %}
<p>{{ pairs }} pairs of {{ dialogues }} held-out dialogues. Rank correlation with the label within a dialogue:
  {{ "%.3f"|format(spearman) if spearman is not none else "none" }}. Calibration error:
  {{ "%.3f"|format(calibration.error) }}. Correlation with length:
  {% for name, value in length_correlation.items() -%}
  {{ "%.3f"|format(value) if value is not none else "none" }} over {{ name }}{{ ", " if not loop.last else "." }}
  {%- endfor %}{% if length_slope %} What length brings these references was taken off the scores, so over
  them it is near 0.{% endif %}</p>
<div class="plots">{% for plot in plots %}<div>{{ plot|safe }}</div>{% endfor %}</div>
{% for heading, rows in (("kind of pair", by_kind), ("length", by_length_bin)) %}
<h2>Accuracy by {{ heading }}</h2>
<table><tr><th>{{ heading }}<th>pairs<th>accuracy</tr>
{% for row in rows %}<tr><td>{{ row.name }}<td>{{ row.pairs }}<td>{{ "%.3f"|format(row.accuracy) }}</tr>
{% endfor %}</table>{% endfor %}
</html>
"""
