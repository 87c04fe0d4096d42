"""Where a study is kept, so that workers share it: a journal file in its folder, or PostgreSQL.

A worker asks for its next trial, and counts how many there are, while it holds the study's lock: no two run the same
one, and there are never more than were wanted. What a lost worker was running is failed, and tried again.
"""

from __future__ import annotations

import copy
import os
import socket
import uuid
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.storages import BaseStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial, TrialState

from hist_cache.errors import InputError
from hist_cache.fingerprint import differences
from sweeps.sampling import SeededTPE, make_pruner, set_up_optuna
from sweeps.study import Plan

JOURNAL = "journal.log"
WORKERS = "workers"  # a file a worker, locked as long as it lives
HEARTBEAT_S, GRACE_S = 10, 60  # PostgreSQL cannot see whether a worker on another machine lives: it must say so
CONNECT_S = 10
MOST_RETRIES = 3  # of a trial whose workers are lost: it may be what kills them
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


class Place:
    """A study in its storage, and this worker's part in it."""

    def __init__(self, plan: Plan, must_exist: bool = False) -> None:
        set_up_optuna()
        self.plan = plan
        self.worker = uuid.uuid4().hex
        with self.alone():
            self.storage = self._open()
            there = plan.name in optuna.get_all_study_names(self.storage)
            if must_exist and not there:
                raise InputError(f"--resume: no study {plan.name} in {self.title}; leave it out to begin one")
            self.study = optuna.create_study(
                study_name=plan.name,
                storage=self.storage,
                sampler=SeededTPE(plan.config.seed),
                pruner=make_pruner(plan.config.pruner, plan.folds),
                direction="maximize" if plan.maximize else "minimize",
                load_if_exists=True,
            )
            self._check_settings()

    title = ""

    def alone(self) -> AbstractContextManager[Any]:
        """The study's lock."""
        raise NotImplementedError

    def _open(self) -> BaseStorage:
        raise NotImplementedError

    def fail_lost(self) -> None:
        """Fail the trials whose workers are gone, and queue them again. With the lock held."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            # One without its worker's name lost it between asking and signing: no one else asks at this time.
            if "worker" not in trial.user_attrs or not self._alive(trial):
                self.study.tell(trial.number, state=TrialState.FAIL)
                try_again(self.study, trial, MOST_RETRIES)

    def _alive(self, trial: FrozenTrial) -> bool:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing that belongs to this worker stays."""

    def _check_settings(self) -> None:
        """The first to come writes down what the study is, and queues the default setting; all others must agree."""
        plan = self.plan
        known = self.study.user_attrs.get("settings")
        if known is None:
            if plan.default_is_in_space:
                self.study.enqueue_trial(plan.defaults, user_attrs={"default": True})
            self.study.set_user_attr("settings", plan.settings)
        elif different := differences(known, plan.settings):
            raise InputError(
                f"study {plan.name} in {self.title} was made with other settings: {'; '.join(different)}; give another "
                "--name, or those settings"
            )

    def run_next(self, run: Any) -> bool | None:
        """Run one trial by `run(trial, values)`, a number; True when it is done.

        None where the study has all it shall have; False where others are running what is left, so that there may be
        something to do later. A KeyboardInterrupt queues the trial again and is raised.
        """
        with ExitStack() as lock:
            lock.enter_context(self.alone())
            self.fail_lost()
            states = [t.state for t in self.study.get_trials(deepcopy=False)]
            finished = sum(state in FINISHED for state in states)
            if finished >= self.plan.config.trials:
                return None
            if finished + states.count(TrialState.RUNNING) >= self.plan.config.trials:
                return False
            number = -1

            def begin(trial: optuna.Trial) -> float:
                nonlocal number
                number = trial.number
                values = {p.name: p.suggest(trial) for p in self.plan.space}
                trial.set_user_attr("process", f"{socket.gethostname()}:{os.getpid()}")
                trial.set_user_attr("worker", self.worker)
                lock.close()  # the next may ask
                return run(trial, values)

            try:
                self.study.optimize(begin, n_trials=1)
            except KeyboardInterrupt:
                if number >= 0:
                    try_again(self.study, self.study.get_trials()[number])
                else:
                    self.fail_lost()  # asked for and not begun
                raise
        return True


class JournalPlace(Place):
    """A journal file beside the study's results; workers on machines that share the folder may join."""

    def __init__(self, plan: Plan, must_exist: bool = False) -> None:
        self.title = str(plan.folder / JOURNAL)
        if must_exist and not (plan.folder / JOURNAL).exists():
            raise InputError(f"--resume: no study in {plan.folder}; leave it out to begin one")
        (plan.folder / WORKERS).mkdir(parents=True, exist_ok=True)
        super().__init__(plan, must_exist)
        self._life = FileLock(self._file(self.worker))
        self._life.acquire()

    def _file(self, worker: str) -> Path:
        return self.plan.folder / WORKERS / f"{worker}.lock"

    def alone(self) -> AbstractContextManager[Any]:
        return FileLock(self.plan.folder / WORKERS / "study.lock")

    def _open(self) -> BaseStorage:
        return JournalStorage(JournalFileBackend(str(self.plan.folder / JOURNAL)))

    def _alive(self, trial: FrozenTrial) -> bool:
        """Whether its worker's file is locked: the system unlocks it however the worker ends."""
        file = self._file(trial.user_attrs["worker"])
        try:
            with FileLock(file, timeout=0):
                pass
        except Timeout:
            return True
        file.unlink(missing_ok=True)
        return False

    def close(self) -> None:
        self._life.release()
        self._file(self.worker).unlink(missing_ok=True)


class PostgresPlace(Place):
    """A database that workers on many machines share. Each says every `HEARTBEAT_S` that it lives."""

    def __init__(self, plan: Plan, must_exist: bool = False) -> None:
        import sqlalchemy

        try:
            # psycopg by name: what plain postgresql:// means differs between versions of SQLAlchemy.
            self.url = sqlalchemy.make_url(str(plan.config.storage)).set(drivername="postgresql+psycopg")
        except (sqlalchemy.exc.ArgumentError, ValueError) as error:
            raise InputError(f"--storage {plan.config.storage}: not a database's URL ({_brief(error)})") from None
        self.title = self.url.set(drivername="postgresql").render_as_string(hide_password=True)
        self.engine = sqlalchemy.create_engine(self.url, connect_args={"connect_timeout": CONNECT_S})
        try:
            super().__init__(plan, must_exist)
        except sqlalchemy.exc.OperationalError as error:
            raise InputError(f"--storage {self.title}: cannot be reached ({_brief(error)})") from None
        except sqlalchemy.exc.SQLAlchemyError as error:
            raise InputError(f"--storage {self.title}: cannot be used ({_brief(error)})") from None

    @contextmanager
    def alone(self) -> Iterator[None]:
        import sqlalchemy

        with self.engine.begin() as connection:
            key = {"key": zlib.crc32(b"hist-sweep " + self.plan.name.encode())}
            connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(:key)"), key)
            yield

    def _open(self) -> BaseStorage:
        return RDBStorage(
            self.url.render_as_string(hide_password=False),
            engine_kwargs={"connect_args": {"connect_timeout": CONNECT_S}, "pool_pre_ping": True},
            heartbeat_interval=HEARTBEAT_S,
            grace_period=GRACE_S,
            heartbeat_stale_trial_callback=lambda study, trial: try_again(study, trial, MOST_RETRIES),
        )

    def fail_lost(self) -> None:
        optuna.storages.fail_stale_trials(self.study)
        super().fail_lost()

    def _alive(self, trial: FrozenTrial) -> bool:
        return True  # or its heart has stopped, which Optuna sees

    def close(self) -> None:
        self.engine.dispose()


def open_place(plan: Plan, must_exist: bool = False) -> Place:
    """The study where it is kept; begun where it is not there yet. `InputError` where it cannot be reached, or was
    made with other settings."""
    url = plan.config.storage
    if url is None:
        return JournalPlace(plan, must_exist)
    if url.split(":")[0].split("+")[0] not in ("postgresql", "postgres"):
        raise InputError(
            f"--storage {url.split('@')[-1]}: give postgresql://USER:PASSWORD@HOST/DATABASE, or leave it out for a "
            "file in the study's folder"
        )
    return PostgresPlace(plan, must_exist)


def try_again(study: optuna.Study, trial: FrozenTrial, most: int | None = None) -> None:
    """Queue a failed trial's values once more, unless it has been tried so often. What it was run by is forgotten."""
    fresh = copy.copy(trial)
    fresh.user_attrs = {k: v for k, v in trial.user_attrs.items() if k == "default"}
    RetryHeartbeatStaleTrialCallback(most)(study, fresh)


def _brief(error: Exception) -> str:
    """The first line of what a database says."""
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]
