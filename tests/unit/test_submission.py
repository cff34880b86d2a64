"""alignment/submission.py: what is written is read back, whole or not at all."""

import csv

from alignment.data import read_predictions
from alignment.submission import fill_empty, write_submission


def test_submission_round_trip_in_order(tmp_path):
    path = tmp_path / "new" / "submission.csv"
    write_submission(["b", "a", "c"], ['그는 "네", 했다.', " 첫 줄\r\n둘째 줄\n\n셋째 ", "다"], path)
    with path.open(encoding="utf-8", newline="") as file:
        assert next(csv.reader(file)) == ["fname", "summary"]
    predictions = read_predictions(path)
    assert list(predictions.items()) == [("b", '그는 "네", 했다.'), ("a", "첫 줄 둘째 줄 셋째"), ("c", "다")]
    assert [entry.name for entry in path.parent.iterdir()] == ["submission.csv"]


def test_the_first_turn_stands_in_for_an_empty_summary(capsys):
    talks = ["A: 안녕\nB: 응", "A: 가자\nB: 그래", "A: 나야"]
    assert fill_empty(talks, ["둘은 인사한다.", " \n", ""]) == ["둘은 인사한다.", "A: 가자", "A: 나야"]
    said = capsys.readouterr().err
    assert [f"Dialogue {i}: the model wrote nothing" in said for i in (1, 2, 3)] == [False, True, True]
