"""alignment/progress.py: what a training run shows."""

import re
import time

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from alignment.progress import TrainingProgress


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
