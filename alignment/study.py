"""A study of trials in an SQLite file: shared by several processes, and whole after any of them is killed.

Departs from Optuna in three ways. A trial is taken from a study by one process at a time, so that together they do as
many as were asked for. A process holds a lock for as long as it lives, so that the trial of a killed one is known and
done again at once (Optuna waits for a heartbeat to fail to come). And a trial is compared with others at the same
evaluation instead of the same step, since trials of different length are evaluated at different steps.
"""

import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import numpy as np
import optuna
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DatabaseError

from alignment.errors import InputError
from alignment.run import say

NAME = "yoyak"
STARTUP_TRIALS = 5  # Optuna's default: fewer say nothing of what is unpromising
LOCK_SECONDS = 60  # others hold a lock for milliseconds
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


class MedianAtSameEvaluation(optuna.pruners.BasePruner):
    """Prunes a trial whose best score so far is worse than the median of complete trials at their n-th evaluation.

    Not while the learning rate still rises, nor at the end, when nothing is left to save. Trials say where that is in
    their attribute `judged_steps`: the last step of the warm-up, and the last of all.
    """

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        """Whether to end this trial, which has just been evaluated."""
        warmup_steps, max_steps = trial.user_attrs["judged_steps"]
        if trial.last_step is None or not warmup_steps < trial.last_step < max_steps:
            return False
        own = _by_evaluation(trial)
        complete = map(_by_evaluation, study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
        others = [scores[len(own) - 1] for scores in complete if len(scores) >= len(own)]
        if len(others) < STARTUP_TRIALS:
            return False
        if study.direction == optuna.study.StudyDirection.MAXIMIZE:
            return max(own) < median(others)
        return min(own) > median(others)


def _by_evaluation(trial: FrozenTrial) -> list[float]:
    return [score for _, score in sorted(trial.intermediate_values.items())]


class Study:
    """A study in a folder, as one process sees it.

    Args:
        settings: All that the score of a trial depends on besides its own parameters; the same at every start.

    Raises:
        InputError: Its file is no study, is of other settings, or cannot be read and written.
    """

    def __init__(self, folder: Path, direction: str, settings: dict[str, Any], seed: int) -> None:
        self.folder, self.direction, self.seed = folder, direction, seed
        self.path = folder / "study.db"
        self._lock = FileLock(folder / "study.lock")
        self._process = f"{os.getpid()}-{uuid4().hex}"
        self._alive = FileLock(self._lock_of(self._process))
        with self.locked(), self.storage_errors():
            self._check_file()
            # Not by the path in the URL, where ? and { in a folder's name would mean something else.
            self.storage = optuna.storages.RDBStorage("sqlite:///study.db", engine_kwargs={"creator": self._connect})
            self.optuna = optuna.create_study(direction=direction, **self.arguments())  # type: ignore[arg-type]
            self._check_settings(json.loads(json.dumps(settings)))

    def arguments(self) -> dict[str, Any]:
        """What `optuna.create_study` takes besides the direction, to open this study for the next trial.

        The sampler's seed depends on the trial's number: a study that goes on does not begin its numbers again, and the
        first trials are the same however often it was interrupted, and by however many processes they are done.
        """
        known = self.optuna.get_trials(deepcopy=False) if hasattr(self, "optuna") else []
        trials = sum("retry_of" not in trial.user_attrs for trial in known)
        seed = int(np.random.SeedSequence([self.seed, trials]).generate_state(1)[0])
        return {
            "storage": self.storage,
            "study_name": NAME,
            "load_if_exists": True,
            "sampler": optuna.samplers.TPESampler(seed=seed),
            "pruner": MedianAtSameEvaluation(),
        }

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=LOCK_SECONDS, check_same_thread=False)

    def _check_file(self) -> None:
        if not self.path.exists():
            # The locks, another process's probe of the folder, and the results of a study that was moved away.
            own = ("study.", ".", "best", "trials.csv", "rejected.jsonl", "shortened-")
            foreign = sorted(path.name for path in self.folder.iterdir() if not path.name.startswith(own))
            if foreign:
                raise InputError(f"{self.folder}: holds {foreign[0]}, but no study. Choose another --output_dir.")
            return
        database = self._connect()
        try:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
        finally:
            database.close()
        if tables and "studies" not in tables:
            raise InputError(f"{self.path}: a database of something else, not a study. Choose another --output_dir.")

    def _check_settings(self, settings: dict[str, Any]) -> None:
        stored = self.optuna.user_attrs.get("settings")
        if stored is None:
            self.optuna.set_user_attr("settings", settings)
            return
        names = sorted(settings.keys() & stored.keys())  # a newer version of a library has more
        changed = [f"{k} {stored[k]} -> {settings[k]}" for k in names if stored[k] != settings[k]]
        if changed:
            raise InputError(
                f"{self.path}: holds a study of other settings ({', '.join(changed[:5])}). "
                "Choose another --output_dir, or go on with the settings that it began with."
            )

    @contextmanager
    def storage_errors(self) -> Iterator[None]:
        """Tells of a file that cannot be read or written as a user's error."""
        try:
            yield
        except (DatabaseError, sqlite3.DatabaseError, optuna.exceptions.StorageInternalError) as error:
            cause: BaseException = error
            while not isinstance(cause, sqlite3.Error) and cause.__cause__ is not None:
                cause = cause.__cause__
            raise InputError(
                f"{self.path}: cannot be read or written: {cause}. End what else uses it, or free the disk; then the "
                "same command goes on. A damaged file is to be moved away: the same command then begins anew."
            ) from error
        except RuntimeError as error:
            if "runtime optuna version" not in str(error):
                raise
            raise InputError(f"{self.path}: written by another version of Optuna: {error}") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps the other processes from taking a trial and from writing results."""
        self._acquire()
        try:
            yield
        finally:
            self.release()

    def _acquire(self) -> None:
        try:
            self._lock.acquire(timeout=LOCK_SECONDS)
        except Timeout as error:
            raise InputError(
                f"{self._lock.lock_file}: another process has held this lock for {LOCK_SECONDS} seconds. If a search "
                "was paused here, let it go on or end it."
            ) from error

    def release(self) -> None:
        """Lets the other processes go on."""
        self._lock.release(force=True)

    def _lock_of(self, process: str) -> Path:
        return self.folder / f"study.{process}.lock"

    @contextmanager
    def process_lives(self) -> Iterator[None]:
        """Marks the trials that this process takes as its own and alive; the system ends that when it is killed."""
        try:
            with self._alive:
                yield
        finally:
            self.release()
            self._lock_of(self._process).unlink(missing_ok=True)

    def take(self, total: int) -> bool:
        """Waits until there is a trial to begin (True, and the lock is held) or all are finished (False).

        Args:
            total: Finished trials, complete or pruned, that the study is to have.
        """
        waits_for = None
        while True:
            self._acquire()
            self._retry_trials_of_dead()
            trials = self.optuna.get_trials(deepcopy=False)
            running = [trial.number for trial in trials if trial.state == TrialState.RUNNING]
            if len(self.finished()) + len(running) < total:
                return True
            self.release()
            if not running:
                return False
            if running != waits_for:
                waits_for = running
                say(f"Waiting for another process to end trial {', '.join(map(str, running))}.")
            time.sleep(1)

    def begin(self, trial: optuna.Trial) -> None:
        """Marks a new trial as this process's, and lets the others take the next."""
        trial.set_user_attr("process", self._process)
        self.release()

    def _retry_trials_of_dead(self) -> None:
        """Fails the trials whose process was killed, and has their parameters tried again."""
        for trial in self.optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            process = trial.user_attrs.get("process")  # missing: killed while it held the lock that we hold
            if process is not None:
                other = FileLock(self._lock_of(process))
                try:
                    other.acquire(blocking=False)
                except Timeout:
                    continue
                other.release()
                self._lock_of(process).unlink(missing_ok=True)
            self.optuna.tell(trial.number, state=TrialState.FAIL)
            self.retry(trial)

    def retry(self, trial: FrozenTrial) -> None:
        """Has the parameters of an interrupted trial tried again, but once only: they may be what kills it."""
        if "retry_of" in trial.user_attrs:
            say(f"Trial {trial.number} was interrupted, as trial {trial.user_attrs['retry_of']} was: it is left out.")
            return
        self.optuna.enqueue_trial(trial.params, user_attrs={"retry_of": trial.number})
        say(f"Trial {trial.number} was interrupted, and is done again.")

    def finished(self) -> list[FrozenTrial]:
        """The complete and pruned trials."""
        return self.optuna.get_trials(deepcopy=False, states=FINISHED)

    def best(self) -> FrozenTrial | None:
        """The complete trial with the best score, or None while there is none."""
        complete = [trial for trial in self.finished() if trial.state == TrialState.COMPLETE]
        choose = max if self.direction == "maximize" else min
        return choose(complete, key=lambda trial: trial.value) if complete else None  # type: ignore[arg-type,return-value]
