"""A study in a journal file beside its results; workers on all machines that share the folder can join."""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress
from typing import Any

from filelock import FileLock, Timeout
from optuna.storages import BaseStorage
from optuna.storages.journal import BaseJournalBackend, JournalStorage
from optuna.trial import FrozenTrial

from hist_cache.errors import InputError
from sweeps.journal import Journal, JournalCopy
from sweeps.storage import StudyStorage, no_study
from sweeps.study import StudyPlan
from sweeps.waiting import hold

JOURNAL = "journal.log"
WORKERS = "workers"  # folder with one file for each worker, locked as long as the worker runs
STUDY_LOCK = "study.lock"


def copy_journal(plan: StudyPlan) -> tuple[str, BaseStorage | None]:
    """Name and content of the study's journal file, to be read only; None where there is no file.

    Raises:
        InputError: It is damaged.
    """
    file = plan.folder / JOURNAL
    return (str(file), _read_journal(JournalCopy(file), str(file))) if file.exists() else (str(plan.folder), None)


def _read_journal(backend: BaseJournalBackend, title: str) -> JournalStorage:
    try:
        return JournalStorage(backend)
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, AssertionError) as error:
        # Its lines are whole, but one does not follow from those before it.
        raise InputError(
            f"{title}: damaged ({type(error).__name__}: {error}); restore it, or move it away to begin anew"
        ) from None


class JournalStudy(StudyStorage):
    """A study in a journal file."""

    def __init__(self, plan: StudyPlan, must_exist: bool = False) -> None:
        """Open or create the study, as `StudyStorage` does, and lock this worker's file."""
        self.title = str(plan.folder / JOURNAL)
        if must_exist and not (plan.folder / JOURNAL).exists():
            raise no_study(plan, plan.folder)
        self._workers = plan.folder / WORKERS
        self._workers.mkdir(parents=True, exist_ok=True)
        super().__init__(plan, must_exist)

    def lock(self) -> AbstractContextManager[Any]:
        """Return the lock of a file, which workers on other machines see too."""
        return hold(FileLock(self._workers / STUDY_LOCK), "the study, where another worker asks for a trial")

    def _open(self) -> BaseStorage:
        return _read_journal(Journal(self.plan.folder / JOURNAL), self.title)

    def _enter(self) -> None:
        """Lock this worker's file, and remove those of dead workers."""
        self._worker_lock = FileLock(self._workers / f"{self.worker}.lock")
        self._worker_lock.acquire()
        self._remove_dead_workers()

    def _remove_dead_workers(self) -> None:
        for file in self._workers.glob("*.lock"):
            if file.name not in (STUDY_LOCK, f"{self.worker}.lock"):
                self._is_alive(file.stem)

    def _is_alive(self, worker: str) -> bool:
        """Tell whether its file is locked; the operating system unlocks it when the worker ends or dies."""
        file = self._workers / f"{worker}.lock"
        if not file.exists():
            return False
        try:
            with FileLock(file, timeout=0):
                pass
        except Timeout:
            return True
        file.unlink(missing_ok=True)
        return False

    def _is_worker_alive(self, trial: FrozenTrial) -> bool:
        return self._is_alive(str(trial.user_attrs["worker"]))

    def close(self) -> None:
        """Remove this worker's file, and those of workers that died meanwhile."""
        self._worker_lock.release()
        (self._workers / f"{self.worker}.lock").unlink(missing_ok=True)
        with suppress(Timeout), FileLock(self._workers / STUDY_LOCK, timeout=0):
            self._remove_dead_workers()
