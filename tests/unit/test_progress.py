"""alignment/progress.py: what a training run shows."""

import re
import time

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from alignment.progress import Progress, TrainingProgress, show_table


def test_tokens_a_second_are_those_of_training_without_its_evaluations(tmp_path, capsys: pytest.CaptureFixture[str]):
    state, control = TrainerState(max_steps=4, num_input_tokens_seen=500), TrainerControl()  # 500 before a stop
    progress = TrainingProgress("Phase 1")
    facts = (TrainingArguments(str(tmp_path)), state, control)
    progress.on_train_begin(*facts)
    seconds = 0.0
    for step, pause in ((1, 1.0), (2, 0.0)):
        started = time.perf_counter()
        progress.on_step_begin(*facts)
        time.sleep(0.1)
        state.num_input_tokens_seen += 100
        progress.on_step_end(*facts)
        seconds += time.perf_counter() - started
        state.global_step, control.should_evaluate = step, pause > 0
        progress.on_log(*facts, logs={"loss": 2.5})
        time.sleep(pause)
        progress.on_log(*facts, logs={"eval_loss": 2.25, "eval_rouge": 12.345})
    progress.on_train_end(*facts)
    first, held_out, second, _ = capsys.readouterr().err.strip().splitlines()
    assert re.fullmatch(r"Phase 1 step 1/4: loss 2\.500, [\d,]+ tokens/s, \d+\.\d GiB, evaluating", first)
    assert held_out == "Phase 1 step 1: held-out loss 2.25, rouge 12.35"
    rate = float(re.fullmatch(r"Phase 1 step 2/4: loss 2\.500, ([\d,]+) tokens/s, .*", second)[1].replace(",", ""))
    assert rate == pytest.approx(200 / seconds, rel=0.05)


def test_names_with_brackets_are_shown_whole(capsys: pytest.CaptureFixture[str]):
    show_table("data[v1]/dev.csv", ["name"], [{"name": "KoBART [ours]"}, {"name": "exp[seed=42]"}])
    with Progress("Summarising with exp[seed=42]", total=1) as progress:
        progress.advance(1)
    shown = capsys.readouterr()
    assert all(name in shown.out for name in ("data[v1]/dev.csv", "KoBART [ours]", "exp[seed=42]"))
    assert "Summarising with exp[seed=42]: 1/1" in shown.err


def test_what_is_not_known_is_left_empty(capsys: pytest.CaptureFixture[str]):
    show_table("Systems", ["name", "mean", "seconds"], [{"name": "KoBART", "mean": 40.014, "seconds": None}])
    assert capsys.readouterr().out.splitlines()[-2].split() == ["│", "KoBART", "│", "40.01", "│", "│"]


def test_a_text_has_room_in_a_log(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    show_table("Labels", ["text", "failed"], [{"text": "둘은 내일 역에서 만난다. " * 5, "failed": "unseen_numbers"}])
    assert len(capsys.readouterr().out.splitlines()) == 6  # the text on one of them


@pytest.mark.parametrize(
    ("updates", "settings", "told"),
    [
        (1, {"warmup_steps": 0.1}, True),
        (1, {"warmup_steps": 0}, False),
        (1, {"warmup_steps": 0.1, "lr_scheduler_type": "constant"}, False),
        (1, {"warmup_steps": 0.1, "lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps"}, False),
        (2, {"warmup_steps": 0.1}, False),
    ],
)
def test_one_update_of_warm_up_alone_is_told(
    updates: int, settings: dict, told: bool, tmp_path, capsys: pytest.CaptureFixture[str]
):
    arguments = TrainingArguments(str(tmp_path), **settings)
    progress = TrainingProgress("Phase 1")
    progress.on_train_begin(arguments, TrainerState(max_steps=updates), TrainerControl())
    progress.on_train_end(arguments, TrainerState(max_steps=updates), TrainerControl())
    assert ("Phase 1 has one update" in capsys.readouterr().err) is told
