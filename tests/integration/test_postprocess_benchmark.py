"""benchmarks/postprocess.py: what it counts on summaries and references whose faults are known."""

import csv
import json
from pathlib import Path

import pytest

from benchmarks import postprocess as benchmark
from reward import postprocess

TALK = "#Person1#: 3시에 역에서 볼까?\n#Person2#: 좋아, 늦지 않을게."
REFERENCE = "#Person1#과 #Person2#는 3시에 역에서 만나기로 한다."
WRITTEN = {  # a file's name, and the rule that mends its summary
    "twice": (f"{REFERENCE} {REFERENCE}", "repeated_sentences"),
    "tags": (f"{REFERENCE} #Person3#는 오지 않는다.", "unseen_tag_sentences"),
    "open": (f"{REFERENCE} 두 사람은 늦지", "cut_ending_anywhere"),
}


def write(path: Path, *rows: dict[str, str]) -> str:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


@pytest.mark.filterwarnings("ignore")
def test_each_rule_changes_the_summaries_that_it_is_for(tmp_path, monkeypatch, capsys):
    data = write(tmp_path / "dev.csv", {"fname": "a", "dialogue": TALK, "summary": REFERENCE})
    predictions = [
        write(tmp_path / f"{name}.csv", {"fname": "a", "summary": text}) for name, (text, _) in WRITTEN.items()
    ]
    monkeypatch.setattr(postprocess, "RULES", dict(postprocess.RULES))  # to which it adds
    arguments = ["--dataset_path", data, "--predictions", *predictions, "--references", data, "--json"]
    monkeypatch.setattr("sys.argv", ["postprocess.py", *arguments])
    benchmark.main()
    found = json.loads(capsys.readouterr().out)
    changed = {(row["predictions"], row["rule"]): row["changed"] for row in found["effects"]}
    assert {(name, rule): changed[name, rule] for name, (_, rule) in WRITTEN.items()} == {
        (name, rule): 1 for name, (_, rule) in WRITTEN.items()
    }
    assert changed["tags", "repeated_sentences"] == changed["twice", "unseen_tag_sentences"] == 0
    assert [row["changed"]["all"] for row in found["references"]] == [0, 0]
