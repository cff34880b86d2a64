"""The shared study: what is sampled, pruned and done again, who may take a trial, and what is wrong with its file."""

import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
from filelock import FileLock
from optuna.trial import TrialState

from alignment import study as study_module
from alignment.errors import InputError
from alignment.study import STARTUP_TRIALS, MedianAtSameEvaluation, Study

optuna.logging.set_verbosity(optuna.logging.CRITICAL)
SETTINGS = {"model_name_or_path": "embedded", "learning_rate_range": [1e-4, 1e-3], "data": {"rows": 12}}


@pytest.fixture
def open_study(tmp_path: Path) -> Callable[..., Study]:
    def opened(folder: Path = tmp_path, settings: dict = SETTINGS, seed: int = 42) -> Study:
        return Study(folder, "maximize", settings, seed)

    return opened


def ask(study: Study) -> optuna.Trial:
    """The next trial, as the trainer asks for it."""
    return optuna.create_study(direction=study.direction, **study.arguments()).ask()


def sample(study: Study) -> float:
    trial = ask(study)
    value = trial.suggest_float("x", 0, 1)
    study.optuna.tell(trial.number, value)
    return value


# What is sampled


def test_the_same_seed_samples_the_same_first_trials_however_often_it_is_opened(open_study, tmp_path):
    for name in ("whole", "in parts", "other seed"):
        (tmp_path / name).mkdir()
    whole = open_study(tmp_path / "whole")
    values = [sample(whole) for _ in range(4)]
    assert [sample(open_study(tmp_path / "in parts")) for _ in range(4)] == values
    assert [sample(open_study(tmp_path / "other seed", seed=43)) for _ in range(4)] != values


def test_a_study_that_goes_on_does_not_repeat_itself(open_study):
    values = [sample(open_study()) for _ in range(8)]
    assert len(set(values)) == 8


def test_the_best_is_the_highest_complete_score(open_study):
    study = open_study()
    assert study.best() is None
    for score, state in ((1.0, None), (3.0, None), (2.0, None)):
        study.optuna.tell(ask(study).number, score, state=state)
    pruned = ask(study)
    pruned.report(9.0, 1)
    study.optuna.tell(pruned.number, state=TrialState.PRUNED)
    assert study.best().value == 3.0
    assert len(study.finished()) == 4


# What is pruned


def pruned(direction: str, earlier: list[list[float]], own: list[float], step: int, judged: tuple[int, int]) -> bool:
    """Whether a trial with these scores, the last at `step`, is pruned after complete trials with theirs."""
    study = optuna.create_study(direction=direction, pruner=MedianAtSameEvaluation())
    for scores in earlier:
        trial = study.ask()
        for number, score in enumerate(scores):
            trial.report(score, 10 * number + 10)
        study.tell(trial, scores[-1])
    trial = study.ask()
    trial.set_user_attr("judged_steps", list(judged))
    for back, score in enumerate(reversed(own)):
        trial.report(score, step - back)
    return trial.should_prune()


EARLIER = [[10.0, 20.0]] * STARTUP_TRIALS  # evaluated at steps 10 and 20


@pytest.mark.parametrize(
    ("own", "expected"), [([5.0], True), ([10.0], False), ([5.0, 19.0], True), ([5.0, 20.0], False)]
)
def test_a_trial_below_the_median_at_its_nth_evaluation_is_pruned_whatever_the_step(own, expected):
    assert pruned("maximize", EARLIER, own, step=55, judged=(3, 100)) is expected


def test_a_lower_loss_is_the_better_one():
    assert pruned("minimize", EARLIER, [11.0], step=55, judged=(3, 100))
    assert not pruned("minimize", EARLIER, [9.0], step=55, judged=(3, 100))


def test_the_best_evaluation_so_far_counts():
    assert not pruned("maximize", EARLIER, [25.0, 5.0], step=55, judged=(3, 100))


@pytest.mark.parametrize("judged", [(55, 100), (3, 55)], ids=["while it warms up", "at the end"])
def test_nothing_is_pruned(judged):
    assert not pruned("maximize", EARLIER, [5.0], step=55, judged=judged)


def test_nothing_is_pruned_by_fewer_trials_than_say_something():
    assert not pruned("maximize", EARLIER[1:], [5.0], step=55, judged=(3, 100))
    assert not pruned("maximize", EARLIER, [5.0, 5.0, 5.0], step=55, judged=(3, 100))  # none has three evaluations


# Who takes a trial


def test_no_more_trials_are_taken_than_asked_for(open_study):
    study = open_study()
    done = 0
    while study.take(total=3):
        trial = ask(study)
        study.begin(trial)
        study.optuna.tell(trial.number, 1.0)
        done += 1
    assert done == len(study.finished()) == 3
    assert not study.take(total=2)


def test_another_process_cannot_take_a_trial_between_taking_and_beginning_one(open_study, monkeypatch):
    monkeypatch.setattr(study_module, "LOCK_SECONDS", 0.1)
    first, second = open_study(), open_study()
    assert first.take(total=2)
    with pytest.raises(InputError, match=r"study\.lock: another process has held this lock"):
        second.take(total=2)
    first.begin(ask(first))
    with first.process_lives():
        assert second.take(total=2)


def test_the_last_trial_of_a_living_process_is_waited_for(open_study, capsys):
    first, second = open_study(), open_study()
    with first.process_lives():
        assert first.take(total=1)
        trial = ask(first)
        first.begin(trial)
        taken: list[bool] = []
        thread = threading.Thread(target=lambda: taken.append(second.take(total=1)))
        thread.start()
        thread.join(timeout=1.5)
        assert thread.is_alive()
        first.optuna.tell(trial.number, 1.0)
        thread.join(timeout=10)
    assert taken == [False]
    assert "Waiting for another process to end trial 0." in capsys.readouterr().err


def leave_running(study: Study) -> int:
    """A trial whose process is killed in the middle of it."""
    assert study.take(total=5)
    trial = ask(study)
    study.begin(trial)
    trial.suggest_float("x", 0, 1)
    return trial.number


def test_the_trial_of_a_killed_process_is_failed_and_its_parameters_are_tried_next(open_study, capsys):
    killed = leave_running(open_study())
    study = open_study()
    assert study.take(total=5)
    failed = study.optuna.trials[killed]
    assert failed.state == TrialState.FAIL
    assert study.finished() == []
    again = ask(study)
    assert again.suggest_float("x", 0, 1) == failed.params["x"]
    assert "Trial 0 was interrupted, and is done again." in capsys.readouterr().err


def test_the_trials_are_the_same_whether_or_not_one_was_killed(open_study, tmp_path):
    def suggested(study: Study, trials: int) -> list[float]:
        for _ in range(trials):
            assert study.take(total=4)
            trial = ask(study)
            study.begin(trial)
            trial.suggest_float("x", 0, 1)
            study.optuna.tell(trial.number, 1.0)
        return sorted(trial.params["x"] for trial in study.finished())

    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    undisturbed.mkdir()
    killed.mkdir()
    suggested(open_study(killed), 1)
    leave_running(open_study(killed))
    assert suggested(open_study(killed), 3) == suggested(open_study(undisturbed), 4)


def test_parameters_that_kill_twice_are_left_out(open_study, capsys):
    first = leave_running(open_study())
    second = leave_running(open_study())
    study = open_study()
    assert study.take(total=5)
    trials = study.optuna.trials
    assert [trial.state for trial in trials] == [TrialState.FAIL, TrialState.FAIL]
    assert trials[first].params == trials[second].params
    assert "Trial 1 was interrupted, as trial 0 was: it is left out." in capsys.readouterr().err


def test_a_trial_whose_process_was_killed_before_it_said_so_is_failed(open_study):
    study = open_study()
    assert study.take(total=5)
    ask(study)
    study.release()  # as the system does when the process is killed
    assert open_study().take(total=1)
    assert study.optuna.trials[0].state == TrialState.FAIL


def test_a_process_leaves_no_lock_behind(open_study, tmp_path):
    study = open_study()
    with study.process_lives():
        assert len(list(tmp_path.glob("study.*.lock"))) == 1
    assert list(tmp_path.glob("study.*.lock")) == []


# What is wrong with the file


def refused(opening: Callable[[], object], *telling: str) -> None:
    with pytest.raises(InputError) as caught:
        opening()
    assert [word for word in telling if word not in str(caught.value)] == [], caught.value


def test_a_damaged_file_is_refused_and_kept(open_study, tmp_path):
    (tmp_path / "study.db").write_bytes(b"no database " * 100)
    refused(open_study, f"{tmp_path}/study.db: cannot be read or written: file is not a database", "moved away")
    assert (tmp_path / "study.db").read_bytes() == b"no database " * 100


def test_a_file_cut_short_is_refused(open_study, tmp_path):
    open_study()
    path = tmp_path / "study.db"
    path.write_bytes(path.read_bytes()[:20_000])
    refused(open_study, "study.db: cannot be read or written: database disk image is malformed")


def test_a_database_of_something_else_is_refused_and_kept(open_study, tmp_path):
    with sqlite3.connect(tmp_path / "study.db") as database:
        database.execute("CREATE TABLE photos (name TEXT)")
    before = (tmp_path / "study.db").read_bytes()
    refused(open_study, "a database of something else", "Choose another --output_dir")
    assert (tmp_path / "study.db").read_bytes() == before


def test_a_folder_in_its_place_is_refused(open_study, tmp_path):
    (tmp_path / "study.db").mkdir()
    refused(open_study, "study.db: cannot be read or written: unable to open database file")


def test_a_damaged_study_that_is_moved_away_begins_anew(open_study, tmp_path):
    for name in ("best.yaml", "trials.csv", "shortened-chat.json"):
        (tmp_path / name).touch()
    (tmp_path / "best").mkdir()  # what best.yaml trains
    assert open_study().finished() == []


def test_a_folder_with_other_results_is_refused(open_study, tmp_path):
    (tmp_path / "phase1").mkdir()
    refused(open_study, f"{tmp_path}: holds phase1, but no study. Choose another --output_dir")
    assert not (tmp_path / "study.db").exists()


@pytest.fixture
def nobody() -> Iterator[Path]:
    """A folder for all, and no rights of root while the test runs."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    readable = os.access(optuna.__file__, os.R_OK, effective_ids=True)
    if readable:
        yield folder
    os.seteuid(user)
    shutil.rmtree(folder)
    if not readable:
        pytest.skip("root's own environment, which nobody else can read")


def test_a_file_that_must_not_be_written_is_refused(open_study, nobody):
    open_study(nobody)
    (nobody / "study.db").chmod(0o444)
    refused(lambda: open_study(nobody, settings=SETTINGS).optuna.set_user_attr("x", 1), "study.db", "readonly database")


def test_a_locked_file_is_told_at_the_start_and_later(open_study, tmp_path, monkeypatch):
    monkeypatch.setattr(study_module, "LOCK_SECONDS", 0.1)
    study = open_study()
    other = sqlite3.connect(tmp_path / "study.db")
    other.execute("BEGIN EXCLUSIVE")
    refused(open_study, "study.db: cannot be read or written: database is locked", "End what else uses it")

    def go_on() -> None:
        with study.storage_errors():
            study.optuna.set_user_attr("x", 1)

    refused(go_on, "study.db: cannot be read or written: database is locked")
    other.rollback()
    other.close()
    go_on()


def test_a_paused_process_is_told_of(open_study, tmp_path, monkeypatch):
    monkeypatch.setattr(study_module, "LOCK_SECONDS", 0.1)
    with FileLock(tmp_path / "study.lock"):
        refused(open_study, "study.lock: another process has held this lock")


def test_a_file_of_another_version_of_optuna_is_refused(open_study, tmp_path):
    open_study()
    with sqlite3.connect(tmp_path / "study.db") as database:
        database.execute("UPDATE alembic_version SET version_num = 'v99.0.0.a'")
    refused(open_study, "study.db: written by another version of Optuna")


def test_other_settings_are_refused_by_name(open_study):
    open_study()
    changed = SETTINGS | {"learning_rate_range": [1e-4, 1e-2], "data": {"rows": 11}}
    refused(
        lambda: open_study(settings=changed),
        "study.db: holds a study of other settings (data {'rows': 12} -> {'rows': 11}, "
        "learning_rate_range [0.0001, 0.001] -> [0.0001, 0.01])",
        "Choose another --output_dir",
    )
    open_study()


@pytest.mark.parametrize("name", ["a b", "요약", "100%", "what?", "a#b", "{x}"])
def test_any_name_of_a_folder_will_do(name, open_study, tmp_path):
    (tmp_path / name).mkdir()
    study = open_study(tmp_path / name)
    study.optuna.tell(ask(study).number, 1.0)
    assert len(open_study(tmp_path / name).finished()) == 1
    assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["study.db", "study.lock"]
