"""recipes/search.py on a tiny model: what a study leaves, that the best trains as it was scored, kills, and sharing."""

import csv
import json
import re
import shutil
import weakref
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import FrozenTrial, TrialState
from recipe_runs import start, start_and_kill
from transformers import Trainer

from alignment import models, study
from alignment.errors import InputError
from alignment.progress import TrainingProgress
from alignment.search import IMPORTANCE_TRIALS
from alignment.search_space import RANGES as SEARCHED
from recipes import search, sft

Flags = Callable[..., list[str]]
RANGES = {"learning_rate_range": "1e-5 1e-1", "num_train_epochs_range": "1 2"}
# A trial of seconds, whose parameters but the learning rate are fixed.
ONE = {"learning_rate_range": "1e-3 1e-1", "lora_r_range": "4", "lora_alpha_ratio_range": "2",
       "lora_dropout_range": "0.1", "num_train_epochs_range": "1", "prompt_forms": "chat"}  # fmt: skip


@pytest.fixture(scope="session")
def search_flags_for(sft_flags_for: Flags) -> Flags:
    """Flags of recipes/search.py; ranges are given as words."""

    def flags(output_dir: Path, **changes: object) -> list[str]:
        lists = {name: str(changes.pop(name)).split() for name in list(changes) if name.endswith(("_range", "_forms"))}
        own = [word for name, words in lists.items() for word in (f"--{name}", *words)]
        usual = sft_flags_for(output_dir, **changes)
        pairs = [pair for pair in zip(usual[::2], usual[1::2], strict=True) if pair[0].strip("-") not in SEARCHED]
        return [*chain(*pairs), *own]

    return flags


def trials(folder: Path) -> list[FrozenTrial]:
    return optuna.load_study(study_name=study.NAME, storage=f"sqlite:///{folder}/study.db").trials


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "trials.csv", newline="") as file:
        return list(csv.DictReader(file))


def trained_like_the_best(folder: Path, score: str) -> tuple[dict[str, Any], list[float]]:
    """The settings and held-out scores of phase 1 as recipes/sft.py trains best.yaml."""
    sft.main(["--config", str(folder / "best.yaml"), "--phases", "1"])
    manifest = json.loads((folder / "best" / "phase1" / "manifest.json").read_text("utf-8"))
    return manifest["settings"], [line[score] for line in manifest["log"] if score in line]


# What a study leaves


@pytest.fixture(scope="module")
def finished(search_flags_for: Flags, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of a study of four trials by held-out loss, and its flags."""
    folder = tmp_path_factory.mktemp("search") / "out"
    flags = search_flags_for(folder, trials=4, objective="eval_loss", **RANGES)
    search.main(flags)
    return folder, flags


def test_every_trial_is_listed_with_settings_in_their_ranges(finished):
    listed = rows(finished[0])
    assert [row["trial"] for row in listed] == ["0", "1", "2", "3"]
    assert all(row["state"] == "complete" for row in listed)
    assert all(1e-5 <= float(row["learning_rate"]) <= 1e-1 for row in listed)
    assert all(8 <= int(row["lora_r"]) <= 64 for row in listed)
    assert all(1 <= int(row["lora_alpha"]) / int(row["lora_r"]) <= 4.1 for row in listed)
    assert all(0 <= float(row["lora_dropout"]) <= 0.2 for row in listed)
    assert all(float(row["num_train_epochs"]) in (1, 2) for row in listed)
    assert all(row["prompt_form"] in ("instruction", "chat") for row in listed)  # the tiny model has no template
    assert len({row["learning_rate"] for row in listed}) == 4


def test_the_best_yaml_is_of_the_best_trial_and_says_how_to_train_it(finished):
    folder, _ = finished
    losses = [float(row["eval_loss"]) for row in rows(folder)]
    best = rows(folder)[losses.index(min(losses))]
    assert max(losses) - min(losses) > 0.01
    text = (folder / "best.yaml").read_text("utf-8")
    content = yaml.safe_load(text)
    assert {name: str(content[name]) for name in best.keys() & content.keys()} == {
        name: best[name] for name in best.keys() & content.keys()
    }
    assert f"# eval_loss {min(losses):.6g} in trial {best['trial']}, the best of 4, of which 0 were pruned.\n" in text
    assert f"# accelerate launch recipes/sft.py --config {folder}/best.yaml\n" in text
    assert "# Searched: learning_rate 1e-05 to 0.1, num_train_epochs 1 to 2, lora_r 8 to 64, " in text
    assert "lora_dropout 0 to 0.2, prompt_form instruction or chat.\n" in text


def test_nothing_but_the_study_and_its_results_is_left(finished):
    folder = finished[0]
    left = {path.name for path in folder.iterdir()} - {"best"}
    assert left == {"study.db", "study.lock", "trials.csv", "best.yaml"}


def test_fine_tuning_takes_the_best_yaml_and_comes_to_the_same_score(finished):
    folder, _ = finished
    content = yaml.safe_load((folder / "best.yaml").read_text("utf-8"))
    settings, losses = trained_like_the_best(folder, "eval_loss")
    tried = ("learning_rate", "lora_r", "lora_alpha", "lora_dropout", "num_train_epochs", "prompt_form")
    assert {name: settings[name] for name in tried} == {name: content[name] for name in tried}
    assert min(losses) == min(float(row["eval_loss"]) for row in rows(folder))


def test_the_same_command_again_does_nothing_and_a_higher_number_goes_on(finished, capsys):
    folder, flags = finished
    before = rows(folder)
    search.main(flags)
    assert rows(folder) == before
    said = capsys.readouterr()
    assert "4 of 4 trials are done" in said.err
    assert "Best: eval_loss" in said.err
    assert "instruction" in said.out  # the table
    search.main([*flags, "--trials", "5"])
    after = rows(folder)
    assert after[:4] == before
    assert after[4]["learning_rate"] not in {row["learning_rate"] for row in before}
    said = capsys.readouterr().err
    assert "Trial 4 (5 of 5): loss" in said
    assert "best so far" in said


def test_other_settings_and_dialogues_are_refused_by_name(finished):
    _, flags = finished
    with pytest.raises(InputError, match="--learning_rate: is searched for"):
        search.main([*flags, "--learning_rate", "1e-4"])
    with pytest.raises(InputError, match=r"study of other settings \(lora_r_range \[8, 64\] -> \[8, 16\]\)"):
        search.main([*flags, "--lora_r_range", "8", "16"])
    with pytest.raises(InputError, match=r"study of other settings \(data "):
        search.main([*flags, "--max_train_rows", "11"])


def test_importance_is_told_once_there_are_trials_enough(finished, tmp_path, capsys):
    folder, flags = finished
    copy = shutil.copytree(folder, tmp_path / "copy")
    earlier = optuna.load_study(study_name=study.NAME, storage=f"sqlite:///{copy}/study.db")
    flags = [*flags, "--output_dir", str(copy)]
    found = earlier.trials[0]
    for number in range(IMPORTANCE_TRIALS):  # scores that follow the learning rate alone
        rate = 10 ** -(1 + 4 * number / IMPORTANCE_TRIALS)
        earlier.add_trial(
            optuna.create_trial(params=found.params | {"learning_rate": rate}, distributions=found.distributions,
                                value=1 + number / 10)
        )  # fmt: skip
    search.main([*flags, "--trials", str(len(earlier.trials))])
    told = re.findall(r"Importance of (\w+) for being among the best quarter: (\d+)%", capsys.readouterr().err)
    assert {name for name, _ in told} == set(found.params)
    assert max(told, key=lambda item: int(item[1]))[0] == "learning_rate"


# A trial is what recipes/sft.py trains


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "eval_rouge", "early_stopping_patience": 1, "eval_steps": 1, "save_steps": 1,
         "num_train_epochs_range": "3"},
        {"objective": "eval_rouge", "load_best_model_at_end": False},
        # dft needs the head that TRL's trainer gives a model in its constructor.
        {"loss_type": "dft", "gradient_checkpointing": True, "dtype": "bfloat16", "eval_strategy": "epoch",
         "save_strategy": "epoch"},
    ],
    ids=["stopped early", "last evaluation", "prepared model"],
)  # fmt: skip
def test_the_best_trains_as_it_was_scored(changes: dict, search_flags_for: Flags, tmp_path: Path):
    # The second trial is looked at too: its model is not the one that the trainer was made with, nor its callbacks.
    changes = {"objective": "eval_loss", "trials": 2} | ONE | changes
    search.main(search_flags_for(tmp_path / "out", **changes))
    _, scores = trained_like_the_best(tmp_path / "out", changes["objective"])
    rouge, keep_best = changes["objective"] == "eval_rouge", changes.get("load_best_model_at_end", True)
    expected = scores[-1] if not keep_best else max(scores) if rouge else min(scores)
    listed = [float(row[changes["objective"]]) for row in rows(tmp_path / "out")]
    assert expected == (max(listed) if rouge else min(listed))
    best = (max if rouge else min)(trials(tmp_path / "out"), key=lambda trial: trial.value)
    assert len(best.intermediate_values) == len(scores)


def test_without_evaluations_on_the_way_the_end_is_scored(search_flags_for: Flags, tmp_path: Path):
    changes = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "trials": 1}
    search.main(search_flags_for(tmp_path / "out", **ONE | changes, objective="eval_loss"))
    assert 0 < float(rows(tmp_path / "out")[0]["eval_loss"]) < 10


def test_one_model_at_a_time_is_in_memory(search_flags_for: Flags, tmp_path: Path, monkeypatch):
    living: list[list[int]] = []
    made: list[weakref.ref] = []
    load = models.load_base

    def load_and_count(*args: Any) -> Any:
        living.append([number for number, model in enumerate(made) if model() is not None])
        model = load(*args)
        made.append(weakref.ref(model))
        return model

    def prune(*_: Any) -> bool:  # a pruned trial leaves all behind
        return True

    monkeypatch.setattr(models, "load_base", load_and_count)
    monkeypatch.setattr(study.MedianAtSameEvaluation, "prune", prune)
    with pytest.raises(InputError, match="None of 2 trials came to a score"):
        search.main(search_flags_for(tmp_path / "out", **ONE, trials=2, rouge_eval_rows=1))
    assert living == [[], [], []]


# Pruned trials


def test_unpromising_trials_are_pruned_and_counted(search_flags_for: Flags, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(study, "STARTUP_TRIALS", 1)
    evaluated: list[float] = []
    evaluate = Trainer.evaluate
    monkeypatch.setattr(Trainer, "evaluate", lambda self, *a, **k: evaluated.append(1) or evaluate(self, *a, **k))
    changes = {"objective": "eval_loss", "trials": 5, "num_train_epochs_range": "2", "learning_rate_range": "1e-6 1e-1"}
    search.main(search_flags_for(tmp_path / "out", **ONE | changes))
    listed = rows(tmp_path / "out")
    states = [row["state"] for row in listed]
    assert len(states) == 5
    assert 1 <= states.count("pruned") <= 4
    assert len(evaluated) == sum(len(trial.intermediate_values) for trial in trials(tmp_path / "out")) < 5 * 3
    said = capsys.readouterr()
    assert ", pruned, " in said.err
    assert "* " in said.out
    complete = [float(row["eval_loss"]) for row in listed if row["state"] == "complete"]
    assert f"# eval_loss {min(complete):.6g} in trial" in (tmp_path / "out" / "best.yaml").read_text("utf-8")


def test_a_loss_that_is_no_number_prunes_its_trial_alone(search_flags_for: Flags, tmp_path: Path, capsys):
    changes = ONE | {"trials": 2, "adam_epsilon": 0, "max_grad_norm": 0}  # 0 / 0 where LoRA begins without a gradient
    with pytest.raises(InputError, match=r"None of 2 trials came to a score. Lower --learning_rate_range"):
        search.main(search_flags_for(tmp_path / "out", **changes))
    assert [trial.state for trial in trials(tmp_path / "out")] == [TrialState.PRUNED] * 2
    assert "Trial 1 (2 of 2): pruned, since its loss was no number" in capsys.readouterr().err
    assert not (tmp_path / "out" / "best.yaml").exists()


# What users get wrong


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--prompt_forms chat haiku", r"prompt form haiku: expected one of instruction, chat, template"),
        ("--prompt_forms template", r"--prompt_form template: this model has no chat template"),
        ("--trials 0", r"--trials 0: expected 1 or more"),
        ("--rouge_profile bleu", r"--rouge_profile bleu: expected one of"),
        ("--dtype float16", r"--dtype float16: .* Use bfloat16"),
    ],
)
def test_a_fault_is_told_before_anything_is_written(flags: str, message: str, search_flags_for: Flags, tmp_path: Path):
    with pytest.raises(InputError, match=message):
        search.main([*search_flags_for(tmp_path / "out", trials=1), *flags.split()])
    assert not (tmp_path / "out").exists()


# Killed, stopped, shared


def test_killed_then_shared_by_two_the_study_has_as_many_trials_as_asked_for(search_flags_for: Flags, tmp_path: Path):
    folder = tmp_path / "out"
    changes = {"trials": 6, "objective": "eval_loss", "num_train_epochs_range": "2", "rouge_eval_rows": 1}
    flags = search_flags_for(folder, **ONE | changes)
    start_and_kill("search", flags, when="Trial 1 step 3/")
    killed = trials(folder)
    assert [trial.state for trial in killed] == [TrialState.COMPLETE, TrialState.RUNNING]
    assert (
        yaml.safe_load((folder / "best.yaml").read_text("utf-8"))["learning_rate"] == killed[0].params["learning_rate"]
    )

    shared = [start("search", flags), start("search", flags)]
    said = [said.read() for _, said in shared]
    for process, _ in shared:
        process.join()
    assert [process.exitcode for process, _ in shared] == [0, 0], said
    done = trials(folder)
    counted = [trial for trial in done if trial.state in study.FINISHED]
    assert len(counted) == len(rows(folder)) == 6
    assert [trial.number for trial in done if trial.state not in study.FINISHED] == [1]
    assert done[1].state == TrialState.FAIL
    assert done[2].params == killed[1].params  # of the killed one, tried again before any other
    assert len({trial.params["learning_rate"] for trial in counted}) == 6
    assert len({trial.user_attrs["process"] for trial in counted}) == 3
    assert all("Best: eval_loss" in text for text in said)
    assert not list(folder.glob("study.*.lock"))


def test_a_stopped_trial_is_done_again(search_flags_for: Flags, tmp_path: Path, monkeypatch):
    folder = tmp_path / "out"
    flags = search_flags_for(folder, **ONE, trials=1, objective="eval_loss")

    def control_c(*_: Any, **__: Any) -> None:  # no signal: a shell's background jobs ignore it
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingProgress, "on_log", control_c)
    with pytest.raises(KeyboardInterrupt):
        search.main(flags)
    monkeypatch.undo()
    search.main(flags)
    stopped, again = trials(folder)
    assert (stopped.state, again.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert again.params == stopped.params
