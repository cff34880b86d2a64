"""Before PPO against after it: the held-out figures with intervals, the curves, and summaries side by side."""

from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Template
from matplotlib.axes import Axes

from alignment.formats import write_text
from alignment.ppo.guards import reward_hacking
from alignment.progress import show_table
from alignment.records import Record
from alignment.run import is_main_process, say, write_json
from reward.quality import repeated_trigrams
from reward.report import STYLE, plot
from reward.rouge import MEASURES, paired_bootstrap, rouge

SIDE_BY_SIDE = 5
CHOSE = "These dialogues chose the checkpoint, which flatters it: score others with recipes/evaluate.py."
CURVES = {  # title -> the figure's name in the log
    "Score of the rollouts": "score",
    "Reward: score in deviations from the first, less penalties": "reward",
    "KL of a completion from the reference, in nats": "kl",
    "Tokens of a completion": "length_tokens",
    "Entropy at a token, in nats": "entropy",
    "Held-out ROUGE": "eval_rouge",
    "Held-out score": "eval_score",
}


def held_out_figures(profile: str, completions: list[str], references: list[list[str]], **_: Any) -> dict[str, float]:
    """The true metric and a warning sign: mean ROUGE in percent, and the mean share of trigrams that are repeated."""
    repetition = sum(map(repeated_trigrams, completions)) / len(completions)
    return {"rouge": rouge(completions, references, profile).mean, "repetition": repetition}


def compare(
    records: list[Record],
    answers: dict[str, list[str]],
    log: list[dict[str, float]],
    steps_per_update: int,
    profile: str,
    chose: bool,
) -> dict[str, Any]:
    """The figures of two lists of summaries of the same dialogues, and of the run between them.

    Args:
        answers: The summaries before and after, by the name of what wrote them.
        log: The trainer's, which counts steps of the optimiser.
        chose: Whether these dialogues chose the checkpoint.

    Returns:
        `systems` (name, profile, rouge1, rouge2, rougeL, mean, characters, rows), `difference` by profile
        (as `paired_bootstrap` returns it), `verdict` in words, `chosen_by`, `warning` and `note` or None, the run's
        `log` with the `update` of each line, and `answers`.
    """
    references = [list(record.references) for record in records]
    systems: list[dict[str, Any]] = []
    differences = {}
    for one in dict.fromkeys((profile, "english" if profile == "english" else "strict")):
        rows = []
        for name, summaries in answers.items():
            result = rouge(summaries, references, one)
            scores = {key: getattr(result, key) for key in MEASURES}
            characters = sum(map(len, summaries)) / len(summaries)
            systems.append({"name": name, "profile": one, **scores, "characters": characters, "rows": len(records)})
            rows.append([row["mean"] for row in result.rows])
        differences[one] = paired_bootstrap(rows[0], rows[1])
    return {
        "systems": systems, "difference": differences, "verdict": verdict(answers, differences[profile], chose),
        "chosen_by": profile, "warning": reward_hacking(log, "eval_rouge", steps_per_update),
        "note": CHOSE if chose else None, "answers": answers,
        "log": [line | {"update": line["step"] / steps_per_update} for line in log],
    }  # fmt: skip


def verdict(answers: dict[str, list[str]], difference: dict[str, float], chose: bool) -> str:
    """What a difference with its interval comes to, in words.

    Args:
        answers: The summaries before and after, by the name of what wrote them.
        chose: Whether their dialogues chose the checkpoint.
    """
    before, after = answers
    where = "on the dialogues that chose the checkpoint" if chose else "here"
    if answers[before] == answers[after]:
        return f"Not one summary changed: the policy that was kept is that of {before}, or hardly another."
    if difference["low"] <= 0 <= difference["high"]:
        return f"The difference may be chance: {after} is not shown to be better than {before}."
    if difference["difference"] < 0:
        return f"{after.capitalize()} is worse than {before} {where}, beyond chance. Use {before}."
    return f"{after.capitalize()} is better than {before} {where}, beyond chance."


def write_comparison(figures: dict[str, Any], records: list[Record], folder: Path) -> None:
    """Writes results.json and report.html, one page that needs no network, and prints table and verdict."""
    if not is_main_process():
        return
    names = ("systems", "difference", "verdict", "chosen_by", "warning", "note")
    write_json({name: figures[name] for name in names}, folder / "results.json")
    plots = [plot(partial(_curve, title), figures["log"]) for title in CURVES]
    before, after = figures["answers"]
    rows = list(zip(records, *figures["answers"].values(), strict=True))
    changed = [row for row in rows if row[1] != row[2]] or rows
    page = Template(_PAGE, autoescape=True).render(
        style=STYLE,
        plots=plots,
        rows=changed[:SIDE_BY_SIDE],
        changed=sum(one != other for _, one, other in rows),
        before=before,
        after=after,
        **figures,
    )
    write_text(page, folder / "report.html")
    columns = ("name", "profile", *MEASURES, "characters")
    show_table(f"Held-out, {len(records)} dialogues", columns, figures["systems"])
    for record, one, other in changed[:2]:
        say(f"\n{record.dialogue}\n  {before}: {one}\n  {after}: {other}")
    for profile, found in figures["difference"].items():
        say(
            f"{profile}: {after} is {found['difference']:+.2f} from {before} "
            f"(95% interval {found['low']:+.2f} to {found['high']:+.2f}, p {found['p']:.2g})."
        )
    if figures["note"]:
        say(figures["note"])
    say(figures["verdict"])
    say(f"Written: {folder}/report.html and results.json")


def _curve(title: str, axes: Axes, log: list[dict[str, float]]) -> None:
    points = [(line["update"], line[CURVES[title]]) for line in log if CURVES[title] in line]
    axes.plot(*zip(*points, strict=True), marker="o" if len(points) < 30 else "", markersize=3)
    axes.set(title=title, xlabel="update")


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>PPO</title>
<style>{{ style|safe }} td.text { text-align: left; vertical-align: top; white-space: pre-wrap }</style>
<h1>{{ before|capitalize }} against {{ after }}</h1>
{% if warning %}<p class="verdict">{{ warning }}</p>{% endif %}
<table><tr><th>system<th>profile<th>ROUGE-1<th>ROUGE-2<th>ROUGE-L<th>mean<th>characters</tr>
{% for row in systems %}<tr><td>{{ row.name }}<td>{{ row.profile }}
{%- for value in (row.rouge1, row.rouge2, row.rougeL, row.mean, row.characters) %}<td>{{ "%.2f"|format(value) }}
{%- endfor %}</tr>
{% endfor %}</table>
<p class="verdict">{{ verdict }}</p>
{% for profile, found in difference.items() %}<p>{{ profile }}: {{ "%+.2f"|format(found.difference) }}, 95% interval
{{ "%+.2f"|format(found.low) }} to {{ "%+.2f"|format(found.high) }}, p {{ "%.2g"|format(found.p) }}.</p>{% endfor %}
{% if note %}<p>{{ note }}</p>{% endif %}
<div class="plots">{% for plot in plots %}<div>{{ plot|safe }}</div>{% endfor %}</div>
<h2>Summaries before and after</h2><p>{{ changed }} of {{ systems[0].rows }} changed.</p>
<table><tr><th>dialogue<th>reference<th>{{ before }}<th>{{ after }}</tr>
{% for record, one, other in rows %}<tr>
{%- for text in (record.dialogue, record.references[0], one, other) %}<td class="text">{{ text }}{% endfor %}</tr>
{% endfor %}</table>
</html>
"""
