"""reward/report.py: each figure worked by hand, and the page that shows them."""

import json
import math
from html.parser import HTMLParser

import numpy as np
import pytest

from alignment.records import Record
from reward.labels import Label
from reward.model import Scale
from reward.pairs import BINS, Pair
from reward.report import calibration, correlation, report, spearman_within, write_report


def margin(confidence: float) -> float:
    """The raw margin at which the model is so sure."""
    return math.log(confidence / (1 - confidence))


def label(name: str, text: str, value: float = 0.5, kind: str = "sample") -> Label:
    return Label(
        name, kind, text, value, rouge=0.5, roles=0.5, formal=1, hangul=1, own_words=1, failed=(), length_ratio=0.2
    )


# --- calibration


def test_calibration_is_confidence_against_the_share_right_by_bin():
    margins = np.array([margin(0.75), -margin(0.75), margin(0.95), margin(0.97)])
    figures = calibration(margins)
    assert figures["bins"] == [
        {"confidence": pytest.approx(0.75), "accuracy": 0.5, "pairs": 2},
        {"confidence": pytest.approx(0.96), "accuracy": 1.0, "pairs": 2},
    ]
    assert figures["error"] == pytest.approx((2 * 0.25 + 2 * 0.04) / 4)


def test_bins_weigh_by_their_pairs():
    margins = np.array([margin(0.95)] * 3 + [-margin(0.55)])
    assert calibration(margins)["error"] == pytest.approx((3 * 0.05 + 1 * 0.55) / 4)


@pytest.mark.parametrize(("value", "accuracy"), [(1e4, 1.0), (-1e4, 0.0)])
def test_full_confidence_is_of_the_last_bin(value, accuracy):
    assert calibration(np.array([value]))["bins"] == [{"confidence": 1.0, "accuracy": accuracy, "pairs": 1}]


def test_a_tie_is_half_right_and_perfectly_calibrated():
    assert calibration(np.array([0.0])) == {
        "bins": [{"confidence": 0.5, "accuracy": 0.5, "pairs": 1}],
        "error": 0.0,
    }


# --- correlations


@pytest.mark.parametrize(
    ("points", "value"),
    [
        ([(1, 1), (2, 2), (3, 3)], 1.0),
        ([(0.5, 30), (1.5, 10)], -1.0),
        ([(1, 1), (2, 3), (3, 2)], 0.5),
        ([(0, 0), (0, 1), (3, 0), (3, 1)], 0.0),
    ],
)
def test_correlation(points, value):
    assert correlation(points) == pytest.approx(value)


@pytest.mark.parametrize("points", [[], [(1, 1)], [(1, 5), (2, 5)], [(0.5, 5), (0.5, 6)]])
def test_there_is_no_correlation_where_nothing_varies(points):
    assert correlation(points) is None


LABELS = [
    *(label("a", text, value) for text, value in (("하나", 0.1), ("둘", 0.2), ("셋", 0.9))),
    *(label("b", text, value) for text, value in (("하나", 0.1), ("둘", 0.2), ("셋", 0.9))),
]


def test_rank_correlation_is_within_a_dialogue_and_then_the_mean():
    in_order = {("a", "하나"): 1, ("a", "둘"): 2, ("a", "셋"): 3}
    two_exchanged = {("b", "하나"): -7, ("b", "둘"): 99, ("b", "셋"): 0}  # ranks 1, 3, 2: 1 - 6 * 2 / 24
    assert spearman_within(LABELS, in_order | two_exchanged) == pytest.approx((1 + 0.5) / 2)


def test_dialogues_with_two_candidates_or_equal_scores_do_not_count():
    labels = [*LABELS, label("c", "하나", 0.1), label("c", "둘", 0.9)]
    scores = {(one.id, one.text): {"a": one.label, "b": 5, "c": -one.label}[one.id] for one in labels}
    assert spearman_within(labels, scores) == pytest.approx(1)


def test_there_is_no_rank_correlation_without_three_candidates():
    assert spearman_within(LABELS[:2], {("a", "하나"): 1, ("a", "둘"): 2}) is None


# --- the whole report


class Scorer:
    """Scores each text of each dialogue by a table, as `RewardModel` scores them by a model."""

    scale = Scale(deviation=2.0)

    def __init__(self, scores: dict[tuple[str, str], float]) -> None:
        self.scores = scores

    def score(self, dialogues: list[str], summaries: list[str], batch_size: int, description: str) -> list[float]:
        return [self.scores[key] for key in zip(dialogues, summaries, strict=True)]


RECORDS = [Record("a", "대화 가", ("참",)), Record("b", "대화 나", ("참",))]
SCORES = {
    ("대화 가", "참"): 1.0, ("대화 가", "견본"): 0.25, ("대화 가", "사람"): 0.0,
    ("대화 나", "참"): 0.5, ("대화 나", "견본"): 0.5, ("대화 나", "반"): 0.75,
}  # fmt: skip
CANDIDATES = [
    label("a", "참", 1.0, "reference"), label("a", "견본", 0.5),
    label("b", "참", 0.9, "reference"), label("b", "견본", 0.5), label("b", "반", 0.1, "cut"),
]  # fmt: skip
SHORTER, LIKE, LONGER = BINS
PAIRS = [
    Pair("a", "참", "견본", 0.5, "reference > sample", SHORTER),  # 1 - 0.25: right
    Pair("b", "참", "견본", 0.4, "reference > sample", SHORTER),  # a tie
    Pair("b", "참", "반", 0.8, "reference > cut", LIKE),  # 0.5 - 0.75: wrong
    Pair("a", "참", "사람", 0.5, "human", LIKE),  # 1 - 0: right, of a text that is no candidate
]


def figures(min_accuracy: float = 0.6) -> dict:
    return report(Scorer(SCORES), CANDIDATES, PAIRS, RECORDS, min_accuracy)


def test_accuracy_counts_a_tie_half():
    found = figures()
    assert found["accuracy"] == 2.5 / 4
    assert (found["pairs"], found["dialogues"]) == (4, 2)


def test_accuracy_without_faults_leaves_out_what_was_made_worse_on_purpose():
    assert figures()["without_faults"] == {"pairs": 3, "accuracy": pytest.approx(2.5 / 3)}


def test_accuracy_by_kind_has_the_most_frequent_first():
    by_kind = figures()["by_kind"]
    assert by_kind[0] == {"name": "reference > sample", "pairs": 2, "accuracy": 0.75}
    assert {row["name"]: row["accuracy"] for row in by_kind[1:]} == {"reference > cut": 0.0, "human": 1.0}


def test_accuracy_by_length_stands_in_order_without_empty_bins():
    assert figures()["by_length_bin"] == [
        {"name": SHORTER, "pairs": 2, "accuracy": 0.75},
        {"name": LIKE, "pairs": 2, "accuracy": 0.5},
    ]


def test_calibration_is_of_raw_scores():
    raw = 2.0 * np.array([0.75, 0.0, -0.25, 1.0])  # scores are in deviations
    assert figures()["calibration"] == calibration(raw)


def test_scores_and_lengths_are_by_kind_of_candidate():
    found = figures()
    assert found["scores"] == {"reference": [1.0, 0.5], "sample": [0.25, 0.5], "cut": [0.75]}
    assert found["lengths"] == {"reference": [1, 1], "sample": [2, 2], "cut": [1]}


def test_length_correlation_is_of_references_and_of_all_candidates():
    found = figures()["length_correlation"]
    assert found["references"] is None  # of one length
    assert found["candidates"] == correlation([(1.0, 1), (0.25, 2), (0.5, 1), (0.5, 2), (0.75, 1)])


@pytest.mark.parametrize(("min_accuracy", "fit"), [(0.6, True), (0.625, True), (0.63, False)])
def test_a_model_is_fit_from_the_accuracy_asked_for(min_accuracy, fit):
    assert figures(min_accuracy)["fit"] is fit


# --- the page


class Loads(HTMLParser):
    """Collects whatever a browser would load for a page, and its elements."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.elements: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "srcset", "href", "xlink:href", "data")]


def test_the_page_has_four_plots_and_loads_nothing(tmp_path):
    write_report(figures(), "Reward model", tmp_path)
    page = (tmp_path / "report.html").read_text("utf-8")
    found = Loads(page)
    assert found.elements.count("svg") == page.count("<svg") == 4
    assert {"script", "link", "img", "iframe"}.isdisjoint(found.elements)
    assert all(target.startswith("#") for target in found.loads)
    assert "@import" not in page
    assert page.count("url(") == page.count("url(#")


def test_report_json_holds_the_figures(tmp_path):
    found = figures()
    write_report(found, "Reward model", tmp_path)
    assert json.loads((tmp_path / "report.json").read_text("utf-8")) == found


@pytest.mark.parametrize(
    ("min_accuracy", "on_page", "told"),
    [(0.6, "Fit for PPO: held-out accuracy", "fit for PPO (accuracy 0.625"), (0.7, "Unfit for PPO: ", "UNFIT for PPO")],
)
def test_page_and_terminal_say_whether_the_model_is_fit(min_accuracy, on_page, told, tmp_path, capsys):
    write_report(figures(min_accuracy), "Reward model", tmp_path)
    assert f">{on_page}" in (tmp_path / "report.html").read_text("utf-8")
    assert capsys.readouterr().err.startswith(told)


def test_tables_of_kind_and_length_are_printed_and_on_the_page(tmp_path, capsys):
    write_report(figures(), "Reward model", tmp_path)
    shown = capsys.readouterr().out
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "reference > sample" in shown
    assert "chosen shorter" in shown
    assert "<td>reference &gt; sample<td>2<td>0.750" in page
    assert "<td>chosen shorter<td>2<td>0.750" in page


def test_a_page_without_correlations_says_none(tmp_path):
    write_report(figures() | {"spearman": None}, "Reward model", tmp_path)
    page = " ".join((tmp_path / "report.html").read_text("utf-8").split())
    assert "within a dialogue: none." in page
    assert "none over references, -" in page


def test_a_title_is_text_and_no_markup(tmp_path):
    write_report(figures(), "runs/<b>mine", tmp_path)
    assert "<h1>runs/&lt;b&gt;mine</h1>" in (tmp_path / "report.html").read_text("utf-8")
