"""reward/leaderboard.py: each figure worked by hand, and the files written."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from alignment.errors import InputError
from alignment.records import Record
from reward.leaderboard import MOST_POINTS, Board, leaderboard, page, write_leaderboard
from reward.quality import GATES
from reward.rouge import intervals, paired_bootstrap
from reward.runs import COSTS, Entry

RECORDS = [
    Record("a", "Ann: hello\nBob: good day", ("red green blue",), "greeting"),
    Record("b", "Ann: it rains\nBob: it does\nCat: a lot", ("red green blue", "one two three")),
]
EXACT, HALF, NONE = ["red green blue", "red green blue"], ["red green blue", "nothing else here"], ["x", ""]


def entry(name: str, summaries: list[str], **changes: Any) -> Entry:
    values: dict[str, Any] = {"costs": dict.fromkeys(COSTS), "system": None, "manifests": {}} | changes
    return Entry(name, Path("runs") / name, summaries, **values)


def board_of(*entries: Entry, records: list[Record] = RECORDS) -> Board:
    return leaderboard(records, list(entries), ["english"])


# --- figures


def test_scores_are_means_over_rows_and_references():
    english = board_of(entry("exact", EXACT), entry("half", HALF), entry("none", NONE)).figures["profiles"]["english"]
    assert [row["mean"] for row in english["scores"]] == pytest.approx([75, 50, 0])  # the second row has two references
    assert english["rows"] == [pytest.approx([100, 50]), pytest.approx([100, 0]), [0, 0]]
    assert [row["rank"] for row in english["scores"]] == [1, 2, 3]
    assert "rouge-score" in english["tokenizer"]


def test_systems_that_score_alike_share_a_rank():
    found = board_of(entry("none", NONE), entry("one", HALF), entry("other", HALF)).figures["profiles"]["english"]
    assert [row["rank"] for row in found["scores"]] == [3, 1, 1]


def test_the_interval_is_that_of_the_bootstrap():
    english = board_of(entry("exact", EXACT), entry("half", HALF)).figures["profiles"]["english"]
    ends = [(row["low"], row["high"]) for row in english["scores"]]
    assert ends == intervals(english["rows"])
    assert ends == [pytest.approx((50, 100)), pytest.approx((0, 100))]  # of two rows a quarter draws one alone


def test_every_pair_is_row_less_column():
    english = board_of(entry("exact", EXACT), entry("half", HALF), entry("none", NONE)).figures["profiles"]["english"]
    pairs = english["pairs"]
    assert [pairs[i][i] for i in range(3)] == [None] * 3
    for row in range(3):
        for column in set(range(3)) - {row}:
            alone = paired_bootstrap(english["rows"][column], english["rows"][row])
            assert pairs[row][column] == {key: pytest.approx(value) for key, value in alone.items()}
    assert pairs[0][2]["difference"] == pytest.approx(75)
    assert pairs[2][0]["difference"] == pytest.approx(-75)


def test_dialogues_are_grouped_by_quarters_of_their_length():
    records = [Record(str(n), "x" * n, ("red green blue",)) for n in (1, 2, 3, 4, 5, 6, 7, 8)]
    summaries = ["red green blue"] * 4 + ["x"] * 3 + ["red green blue"]
    by_length = board_of(entry("one", summaries), records=records).figures["profiles"]["english"]["by_length"]
    assert by_length["groups"] == [
        {"label": "1 to 2", "rows": 2}, {"label": "3 to 4", "rows": 2}, {"label": "5 to 6", "rows": 2},
        {"label": "7 to 8", "rows": 2},
    ]  # fmt: skip
    assert [own["mean"] for own in by_length["scores"][0]] == pytest.approx([100, 100, 0, 50])
    assert (by_length["scores"][0][3]["low"], by_length["scores"][0][3]["high"]) == pytest.approx((0, 100))


def test_dialogues_of_one_length_are_one_group():
    records = [Record(str(n), "xx", ("red",)) for n in range(3)]
    groups = board_of(entry("one", ["red"] * 3), records=records).figures["profiles"]["english"]["by_length"]["groups"]
    assert groups == [{"label": "2", "rows": 3}]


def test_dialogues_are_grouped_by_speakers_and_many_are_one_group():
    crowds = [Record(str(n), "\n".join(f"S{i}: x" for i in range(n)), ("red",)) for n in (2, 5, 9)]
    summaries = ["red", "red", "x"]
    by_speakers = board_of(entry("one", summaries), records=crowds).figures["profiles"]["english"]["by_speakers"]
    assert by_speakers["groups"] == [{"label": "2", "rows": 1}, {"label": "5 or more", "rows": 2}]
    assert [own["mean"] for own in by_speakers["scores"][0]] == pytest.approx([66.667, 33.333], abs=0.01)


def test_lengths_are_characters_of_all_references_and_of_each_system():
    lengths = board_of(entry("one", ["abcd", "ab"]), entry("none", NONE)).figures["lengths"]
    assert lengths["references"]["mean"] == pytest.approx((14 + 14 + 13) / 3)
    one, none = lengths["systems"]
    assert (one["mean"], one["median"], one["low"], one["high"]) == (3, 3, 2.5, 3.5)
    assert [share for share in one["shares"] if share] == [0.5, 0.5]
    assert (one["shares"][2], one["shares"][4]) == (0.5, 0.5)  # bins one character wide
    assert none["shares"][:2] == [0.5, 0.5]


def test_the_last_bin_of_the_lengths_takes_what_is_longer():
    records = [Record(str(n), "Ann: x", ("red green",)) for n in range(200)]
    lengths = board_of(entry("one", ["x" * 9] * 199 + ["x" * 9000]), records=records).figures["lengths"]
    assert lengths["edges"][-1] == 9
    assert lengths["systems"][0]["shares"][-1] == 1


def test_gates_are_shares_passed():
    records = [Record("a", "#Person1#: I have 7 cats.", ("#Person1# has 7 cats.",))] * 2
    summaries = ["#Person1# has 7 cats.", "#Person9# has 8 cats and has 8 cats and"]
    gates = board_of(entry("one", summaries), records=records).figures["gates"]
    assert gates["names"] == list(GATES)
    assert gates["references"] == [1, 1, 1, 1]
    assert gates["systems"] == [[0.5, 0.5, 0.5, 0.5]]


def manifest(log: list[dict[str, float]] | None, **facts: Any) -> dict[str, Any]:
    return {"finished": True, "settings": {}, "log": log} | facts


def test_curves_are_of_each_model_once():
    log = [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.0}, {"step": 2, "eval_loss": 2.25}, {"train_runtime": 1}]
    models = {"m1": manifest(log, seconds=60)}
    curves = board_of(entry("one", EXACT, manifests=models), entry("two", NONE, manifests=models)).figures["curves"]
    assert curves == [
        {
            "model": "m1", "systems": ["one", "two"], "seconds": 60, "path": [],
            "series": {"Held-out loss": [[2, 2.25]], "Training loss": [[1, 2.5], [2, 2.0]]},
        }
    ]  # fmt: skip


def test_curves_of_ppo_have_reward_against_kl_and_no_training_loss():
    log = [{"step": 4, "loss": 0.1, "kl": 0.0, "reward": 0.5}, {"step": 8, "loss": 0.1, "kl": 0.25, "reward": 0.75}]
    (curve,) = board_of(entry("one", EXACT, manifests={"m": manifest(log)})).figures["curves"]
    assert curve["path"] == [[0.0, 0.5], [0.25, 0.75]]
    assert "Training loss" not in curve["series"]
    assert len(curve["series"]) == 2


def test_what_a_diverged_run_logged_is_left_out():
    log = [{"step": 1, "loss": 2.5}, {"step": 2, "loss": math.nan}, {"step": 3, "loss": math.inf}]
    board = board_of(entry("one", EXACT, manifests={"m": manifest(log)}))
    assert list(board.figures["curves"][0]["series"].values()) == [[[1, 2.5]]]
    assert "NaN" not in page(board)


@pytest.mark.parametrize("log", [[], None, [{"step": 1, "loss": math.nan}]])
def test_a_model_without_a_log_has_no_curve(log):
    assert board_of(entry("one", EXACT, manifests={"m": manifest(log)})).figures["curves"] == []


def test_a_long_curve_is_thinned_by_means():
    log = [{"step": n, "loss": float(n % 2)} for n in range(MOST_POINTS * 4)]
    (curve,) = board_of(entry("one", EXACT, manifests={"m": manifest(log)})).figures["curves"]
    points = curve["series"]["Training loss"]
    assert len(points) == MOST_POINTS
    assert points[:2] == [[1.5, 0.5], [5.5, 0.5]]


def test_one_system_alone_is_a_board():
    found = board_of(entry("one", EXACT)).figures
    assert found["profiles"]["english"]["pairs"] == [[None]]
    assert found["profiles"]["english"]["scores"][0]["rank"] == 1


def test_an_unknown_profile_is_refused():
    with pytest.raises(InputError, match="unknown ROUGE profile 'rough'"):
        leaderboard(RECORDS, [entry("one", EXACT)], ["rough"])


# --- what is written


def test_the_table_is_written_by_rank_with_costs_and_lengths(tmp_path):
    known = dict.fromkeys(COSTS) | {"parameters": 268_098_176, "seconds": 1.5}
    write_leaderboard(board_of(entry("none", NONE), entry("exact", EXACT, costs=known)), tmp_path)
    table = pd.read_csv(tmp_path / "leaderboard.csv")
    assert table["name"].tolist() == ["exact", "none"]
    assert table["rank"].tolist() == [1, 2]
    assert table["mean"].tolist() == pytest.approx([75, 0])
    assert table["characters"].tolist() == [14, 0.5]
    lines = (tmp_path / "leaderboard.csv").read_text("utf-8").splitlines()
    assert ",268098176,,1.5,,," in lines[1]
    assert ",,,,,," in lines[2]


def test_the_figures_are_written_as_they_are(tmp_path):
    board = board_of(entry("exact", EXACT), entry("none", NONE))
    write_leaderboard(board, tmp_path)
    assert json.loads((tmp_path / "leaderboard.json").read_text("utf-8")) == board.figures


def test_table_and_files_are_told(tmp_path, capsys):
    write_leaderboard(board_of(entry("exact", EXACT), entry("none", NONE)), tmp_path)
    shown = capsys.readouterr()
    assert "2 systems on 2 dialogues" in shown.out
    assert shown.out.index("exact") < shown.out.index("none")
    assert f"Written: {tmp_path}/report.html, leaderboard.csv and leaderboard.json" in shown.err


def data_in(text: str) -> dict[str, Any]:
    """The data of the page, as its script reads it."""
    return json.loads(text.split('<script type="application/json" id="data">')[1].split("</script>")[0])


def test_markup_in_texts_stays_data():
    hostile = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(1)>"
    records = [Record(f"{hostile}1", f"Ann: {hostile}", (hostile,), hostile)]
    text = page(board_of(entry(hostile, [hostile]), records=records))
    assert text.count("</script>") == 2  # of the data and of the page's own script
    assert "<img" not in text
    found = data_in(text)
    assert found["dialogues"][0]["dialogue"] == f"Ann: {hostile}"
    assert found["summaries"] == [[hostile]]
    assert found["systems"][0]["name"] == hostile


def test_the_page_names_nothing_to_load():
    text = page(board_of(entry("exact", EXACT)))
    own = text.replace('href="data:,"', "").replace("http://www.w3.org/2000/svg", "")  # which is a name, no address
    assert not any(word in own for word in ("http://", "https://", "@import", "url(", '<link rel="stylesheet', "<img"))
    assert "default-src 'none'" in text


def test_the_title_counts():
    assert "<title>1 system on 2 dialogues</title>" in page(board_of(entry("exact", EXACT)))
