"""reward/comparison.py: what is said of two lists of summaries, on the screen, in results.json and on the page."""

import json
import re

import pytest

from alignment.records import Record
from reward.comparison import compare, verdict, write_comparison

RECORDS = [Record(str(i), "#Person1#: 봐.\n#Person2#: 응.", ("둘은 역에서 만난다.",)) for i in range(6)]
GOOD, BAD = ["둘은 역에서 만난다."] * 6, ["눈이 온다."] * 6
LOG = [
    {"step": 0, "eval_rouge": 50.0, "eval_score": 0.1},
    {"step": 8, "eval_rouge": 60.0, "eval_score": 0.2},
    {"step": 8, "score": 1.0, "reward": 1.0, "kl": 0.1, "length_tokens": 9, "entropy": 1.0},
]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (BAD, GOOD, "Phase 3 is better than phase 2 here, beyond chance."),
        (GOOD, BAD, "Phase 3 is worse than phase 2 here, beyond chance. Use phase 2."),
        (GOOD[:3] + BAD[:3], BAD[:2] + GOOD[:4], "The difference may be chance: phase 3 is not shown to be better"),
        (GOOD, GOOD, "Not one summary changed: the policy that was kept is that of phase 2"),
    ],
)
def test_the_verdict_is_said_and_stands_on_the_page(before, after, said, tmp_path, capsys):
    figures = compare(RECORDS, {"phase 2": before, "phase 3": after}, LOG, 4, "strict", chose=False)
    write_comparison(figures, RECORDS, tmp_path)
    assert said in capsys.readouterr().err
    assert said in (tmp_path / "report.html").read_text("utf-8")
    assert json.loads((tmp_path / "results.json").read_text("utf-8"))["verdict"].startswith(said)


@pytest.mark.parametrize(("difference", "low", "high"), [(0.11, -2.0, 2.3), (-0.5, -1.0, 0.0)])
def test_an_interval_with_0_in_it_may_be_chance(difference, low, high):
    found = {"difference": difference, "low": low, "high": high}
    assert "may be chance" in verdict({"phase 2": ["가"], "phase 3": ["나"]}, found, chose=False)


def test_a_gain_on_the_dialogues_that_chose_the_checkpoint_is_called_so():
    found = {"difference": 2.0, "low": 1.0, "high": 3.0}
    told = verdict({"phase 2": ["가"], "phase 3": ["나"]}, found, chose=True)
    assert told == "Phase 3 is better than phase 2 on the dialogues that chose the checkpoint, beyond chance."


def test_the_curves_count_updates(tmp_path):
    write_comparison(compare(RECORDS, {"phase 2": BAD, "phase 3": GOOD}, LOG, 4, "strict", False), RECORDS, tmp_path)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert len(re.findall("<!-- update -->", page)) == 7
    assert not re.search("<!-- (step|8) -->", page)
