"""Storage of a study that several workers share: a journal file in the study's folder, or PostgreSQL.

A worker holds the study's lock while it counts the trials and asks for its next one. So no two workers run the same
trial, and no more trials are run than requested. When a worker is lost, its trial is marked as failed and queued again.
"""

from __future__ import annotations

import copy
import os
import socket
import uuid
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.storages import BaseStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial, TrialState

from hist_cache.errors import InputError
from hist_cache.fingerprint import differences, mask_passwords
from sweeps.sampling import SeededTPE, make_pruner, set_up_optuna
from sweeps.study import StudyPlan
from train.experiments.run_folders import describe_changes

JOURNAL = "journal.log"
WORKERS = "workers"  # folder with one file for each worker, locked as long as the worker runs
# PostgreSQL cannot see whether a worker on another machine still runs. So each worker writes a time to the database
# every HEARTBEAT_S seconds, and counts as lost when it has not done so for GRACE_S seconds.
HEARTBEAT_S, GRACE_S = 10, 60
CONNECT_S = 10
MAX_RETRIES = 3  # of a trial whose workers are lost, because the trial itself may be what kills them
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


class StudyStorage:
    """A study in its storage, as one worker uses it.

    Attributes:
        plan: The study.
        study: The same study in Optuna.
        title: Where the study is stored, in words.
        worker: A unique name of this worker.
    """

    title = ""

    def __init__(self, plan: StudyPlan, must_exist: bool = False) -> None:
        """Open the study, or create it.

        Args:
            plan: The study.
            must_exist: Raise an error where there is no such study, instead of creating it.

        Raises:
            InputError: Where the stored study has other settings than the plan.
        """
        set_up_optuna()
        self.plan = plan
        self.worker = uuid.uuid4().hex
        with self.lock():
            self.optuna_storage = self._open()
            if must_exist and plan.name not in optuna.get_all_study_names(self.optuna_storage):
                raise InputError(f"--resume: no study {plan.name} in {self.title}; leave it out to begin one")
            self.study = optuna.create_study(
                study_name=plan.name,
                storage=self.optuna_storage,
                sampler=SeededTPE(plan.options.seed),
                pruner=make_pruner(plan.options.pruner, plan.folds),
                direction="maximize" if plan.maximize else "minimize",
                load_if_exists=True,
            )
            self._check_settings()

    def lock(self) -> AbstractContextManager[Any]:
        """Return the study's lock, to be used as a context; only one worker holds it at a time."""
        raise NotImplementedError

    def _open(self) -> BaseStorage:
        raise NotImplementedError

    def fail_lost_trials(self) -> None:
        """Mark the trials of lost workers as failed and queue them again; the caller holds the lock."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            # A worker writes its name into a trial before it releases the lock. A trial without a name lost its worker
            # before that.
            if "worker" not in trial.user_attrs or not self._is_worker_alive(trial):
                self.study.tell(trial.number, state=TrialState.FAIL)
                queue_again(self.study, trial, MAX_RETRIES)

    def _is_worker_alive(self, trial: FrozenTrial) -> bool:
        raise NotImplementedError

    def close(self) -> None:
        """Release everything that belongs to this worker."""

    def _check_settings(self) -> None:
        """Write the settings and queue the default setting in a new study; compare the settings with an old one's."""
        plan = self.plan
        stored_settings = self.study.user_attrs.get("settings")
        if stored_settings is None:
            if plan.default_is_in_space:
                self.study.enqueue_trial(plan.defaults, user_attrs={"default": True})
            self.study.set_user_attr("settings", plan.settings)
            self.study.set_user_attr("digests", plan.digests)
        elif changes := differences(stored_settings, plan.settings):
            raise InputError(
                f"study {plan.name} in {self.title} was made with other settings: {'; '.join(changes)}; give another "
                "--name, or those settings"
            )
        elif changes := describe_changes(self.study.user_attrs.get("digests", {}), plan.digests):
            raise InputError(
                f"study {plan.name} in {self.title} was made before its slides changed ({', '.join(changes)}); give "
                "another --name"
            )

    def run_next(self, run: Callable[[optuna.Trial, dict[str, Any]], float]) -> bool | None:
        """Run one trial, where there is one to run.

        Args:
            run: Gets the trial and the value of each parameter, and returns the objective.

        Returns:
            True when a trial was run; None where the study has all its trials; False where other workers run the rest,
            so that there may be something to do later, when one of them is lost.

        Raises:
            KeyboardInterrupt: Where the trial was interrupted; it is queued again.
        """
        with ExitStack() as lock:
            lock.enter_context(self.lock())
            self.fail_lost_trials()
            states = [t.state for t in self.study.get_trials(deepcopy=False)]
            finished = sum(state in FINISHED for state in states)
            if finished >= self.plan.options.trials:
                return None
            if finished + states.count(TrialState.RUNNING) >= self.plan.options.trials:
                return False
            number = -1

            def begin(trial: optuna.Trial) -> float:
                nonlocal number
                number = trial.number
                values = {p.name: p.suggest(trial) for p in self.plan.space}
                trial.set_user_attr("process", f"{socket.gethostname()}:{os.getpid()}")
                trial.set_user_attr("worker", self.worker)
                lock.close()  # another worker may ask for its trial now
                return run(trial, values)

            try:
                self.study.optimize(begin, n_trials=1)
            except KeyboardInterrupt:
                if number >= 0:
                    queue_again(self.study, self.study.get_trials()[number])
                else:
                    self.fail_lost_trials()  # the trial was created, but has not begun
                raise
        return True


class JournalStudy(StudyStorage):
    """A study in a journal file beside its results; workers on all machines that share the folder can join."""

    def __init__(self, plan: StudyPlan, must_exist: bool = False) -> None:
        """Open or create the study, as `StudyStorage` does, and lock this worker's file."""
        self.title = str(plan.folder / JOURNAL)
        if must_exist and not (plan.folder / JOURNAL).exists():
            raise InputError(f"--resume: no study in {plan.folder}; leave it out to begin one")
        (plan.folder / WORKERS).mkdir(parents=True, exist_ok=True)
        super().__init__(plan, must_exist)
        self._worker_lock = FileLock(self._worker_file(self.worker))
        self._worker_lock.acquire()

    def _worker_file(self, worker: str) -> Path:
        return self.plan.folder / WORKERS / f"{worker}.lock"

    def lock(self) -> AbstractContextManager[Any]:
        """Return the lock of a file, which workers on other machines see too."""
        return FileLock(self.plan.folder / WORKERS / "study.lock")

    def _open(self) -> BaseStorage:
        return JournalStorage(JournalFileBackend(str(self.plan.folder / JOURNAL)))

    def _is_worker_alive(self, trial: FrozenTrial) -> bool:
        """Tell whether its worker's file is locked; the operating system unlocks it when the worker ends or dies."""
        file = self._worker_file(trial.user_attrs["worker"])
        try:
            with FileLock(file, timeout=0):
                pass
        except Timeout:
            return True
        file.unlink(missing_ok=True)
        return False

    def close(self) -> None:
        """Remove this worker's file."""
        self._worker_lock.release()
        self._worker_file(self.worker).unlink(missing_ok=True)


class PostgresStudy(StudyStorage):
    """A study in a PostgreSQL database, which workers on many machines share."""

    def __init__(self, plan: StudyPlan, must_exist: bool = False) -> None:
        """Open or create the study, as `StudyStorage` does.

        Raises:
            InputError: Also where the URL is wrong, or the database cannot be reached or used.
        """
        import sqlalchemy

        try:
            # The driver is named because versions of SQLAlchemy choose different ones for plain postgresql://.
            self.url = sqlalchemy.make_url(str(plan.options.storage)).set(drivername="postgresql+psycopg")
        except (sqlalchemy.exc.ArgumentError, ValueError) as error:
            raise InputError(
                f"--storage {mask_passwords(str(plan.options.storage))}: not a database's URL ({_brief(error)})"
            ) from None
        self.title = self.url.set(drivername="postgresql").render_as_string(hide_password=True)
        self.engine = sqlalchemy.create_engine(self.url, connect_args={"connect_timeout": CONNECT_S})
        try:
            super().__init__(plan, must_exist)
        except sqlalchemy.exc.OperationalError as error:
            raise InputError(f"--storage {self.title}: cannot be reached ({_brief(error)})") from None
        except sqlalchemy.exc.SQLAlchemyError as error:
            raise InputError(f"--storage {self.title}: cannot be used ({_brief(error)})") from None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold an advisory lock of the database, which it releases when the connection ends."""
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
            heartbeat_stale_trial_callback=lambda study, trial: queue_again(study, trial, MAX_RETRIES),
        )

    def fail_lost_trials(self) -> None:
        """Mark lost trials as failed; Optuna finds those whose workers stopped writing their heartbeat."""
        optuna.storages.fail_stale_trials(self.study)
        super().fail_lost_trials()

    def _is_worker_alive(self, trial: FrozenTrial) -> bool:
        return True  # Optuna has already dealt with the others, by their heartbeat

    def close(self) -> None:
        """Close the connections to the database."""
        self.engine.dispose()


def open_study(plan: StudyPlan, must_exist: bool = False) -> StudyStorage:
    """Open the study in its storage, or create it there.

    Args:
        plan: The study; its option --storage decides between a database and a journal file.
        must_exist: Raise an error where there is no such study, instead of creating it.

    Raises:
        InputError: Where the storage cannot be used, or has the study with other settings.
    """
    url = plan.options.storage
    if url is None:
        return JournalStudy(plan, must_exist)
    if url.split(":")[0].split("+")[0] not in ("postgresql", "postgres"):
        raise InputError(
            f"--storage {mask_passwords(url)}: give postgresql://USER:PASSWORD@HOST/DATABASE, or leave it out for a "
            "file in the study's folder"
        )
    return PostgresStudy(plan, must_exist)


def queue_again(study: optuna.Study, trial: FrozenTrial, max_retries: int | None = None) -> None:
    """Queue a failed trial's values once more, without the name of the worker that ran it.

    Args:
        study: The study.
        trial: The failed trial.
        max_retries: A trial that was queued again so often is given up; None for no limit.
    """
    retry = copy.copy(trial)
    retry.user_attrs = {k: v for k, v in trial.user_attrs.items() if k == "default"}
    RetryHeartbeatStaleTrialCallback(max_retries)(study, retry)


def _brief(error: Exception) -> str:
    """Return the first line of a database's error message."""
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]
