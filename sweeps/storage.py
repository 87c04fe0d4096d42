"""Storage of a study that several workers share: what a journal file and PostgreSQL have in common.

A worker holds the study's lock while it counts the trials and asks for its next one. So no two workers run the same
trial, and no more trials are run than requested. When a worker is lost, its trial is marked as failed and queued again.
"""

from __future__ import annotations

import copy
import logging
import os
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import optuna
from optuna.storages import BaseStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

from hist_cache.errors import InputError
from hist_cache.fingerprint import differences
from sweeps.sampling import SeededTPE, make_pruner, set_up_optuna
from sweeps.study import StudyPlan
from sweeps.waiting import LockLost, StorageLost
from train.experiments.run_folders import describe_changes

log = logging.getLogger(__name__)

MAX_RETRIES = 3  # of a trial whose workers are lost, because the trial itself may be what kills them
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)

RunTrial = Callable[[optuna.Trial, dict[str, Any]], float]
"""Runs a trial with the value of each parameter, and returns the objective."""


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
                raise no_study(plan, self.title)
            self.study = optuna.create_study(
                study_name=plan.name,
                storage=self.optuna_storage,
                sampler=SeededTPE(plan.options.seed),
                pruner=make_pruner(plan.options.pruner, plan.folds),
                direction="maximize" if plan.maximize else "minimize",
                load_if_exists=True,
            )
            self._check_settings()
            self._enter()

    def lock(self) -> AbstractContextManager[Any]:
        """Return the study's lock, to be used as a context; only one worker holds it at a time."""
        raise NotImplementedError

    def _open(self) -> BaseStorage:
        raise NotImplementedError

    def _enter(self) -> None:
        """Begin to be a worker of the study; its lock is held."""

    def fail_lost_trials(self) -> None:
        """Mark the trials of lost workers as failed and queue them again; the caller holds the lock."""
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            # A worker writes its name into a trial before it releases the lock. A trial without a name lost its worker
            # before that.
            if "worker" not in trial.user_attrs or not self._is_worker_alive(trial):
                self._fail(trial, MAX_RETRIES)

    def _is_worker_alive(self, trial: FrozenTrial) -> bool:
        raise NotImplementedError

    def _beat(self, trial: optuna.Trial) -> None:
        """Tell other workers once that this one lives."""

    @contextmanager
    def _heartbeat(self, trial: optuna.Trial) -> Iterator[None]:
        """Tell other workers that this one lives, while it runs a trial."""
        yield

    def peek(self) -> list[FrozenTrial] | None:
        """Return the trials as they are now, to show them; None while the storage does not answer.

        Raises:
            StorageLost: It has not answered for too long.
        """
        return self.study.get_trials(deepcopy=False)

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
        else:
            check_same_study(plan, self.title, self.study.user_attrs)

    def run_next(self, run: RunTrial) -> bool | None:
        """Run one trial, where there is one to run.

        Args:
            run: Runs it.

        Returns:
            True when a trial was run; None where the study has all its trials; False where other workers run the rest,
            so that there may be something to do later, when one of them is lost.

        Raises:
            KeyboardInterrupt: Where the trial was interrupted; it is queued again.
            StorageLost: The storage cannot be used any more; the trial is queued again when it can be.
        """
        trial: optuna.Trial | None = None
        try:
            with self.lock():
                self.fail_lost_trials()
                states = [t.state for t in self.study.get_trials(deepcopy=False)]
                finished = sum(state in FINISHED for state in states)
                if finished >= self.plan.options.trials:
                    return None
                if finished + states.count(TrialState.RUNNING) >= self.plan.options.trials:
                    return False
                try:
                    trial, values = self._begin()
                except KeyboardInterrupt:
                    self.fail_lost_trials()  # the trial was created, but has not begun
                    raise
        except LockLost:  # another worker may have begun a trial too
            if trial is not None:
                self._give_back(trial)
            return False
        self._run(trial, values, run)
        return True

    def _begin(self) -> tuple[optuna.Trial, dict[str, Any]]:
        """Create the next trial and sign it with this worker's name; the lock is held."""
        trial = self.study.ask()
        self._beat(trial)
        values = {p.name: p.suggest(trial) for p in self.plan.space}
        trial.set_user_attr("process", f"{socket.gethostname()}:{os.getpid()}")
        trial.set_user_attr("worker", self.worker)
        return trial, values

    def _run(self, trial: optuna.Trial, values: dict[str, Any], run: RunTrial) -> None:
        """Run a trial and tell its value to the study, however it ends."""
        try:
            try:
                with self._heartbeat(trial):
                    value = run(trial, values)
            except optuna.TrialPruned:
                self.study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
            else:
                self.study.tell(trial, value, skip_if_finished=True)
        except KeyboardInterrupt:
            self._give_back(trial)
            raise
        except StorageLost:
            raise
        except optuna.exceptions.UpdateFinishedTrialError:
            log.warning(f"trial {trial.number}: another worker took this one for dead, and the trial is queued again")
        except BaseException:
            self.study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            raise

    def _give_back(self, trial: optuna.Trial) -> None:
        """Queue a trial that was not finished again, and mark it as failed."""
        stored = self.study.get_trials(deepcopy=False)[trial.number]
        if not stored.state.is_finished():
            self._fail(stored)

    def _fail(self, trial: FrozenTrial, max_retries: int | None = None) -> None:
        """Queue a running trial again, then mark it as failed: whoever is killed in between loses nothing."""
        if not any(retry_of(t) == trial.number for t in self.study.get_trials(deepcopy=False)):
            queue_again(self.study, trial, max_retries)
        self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def check_same_study(plan: StudyPlan, title: object, stored: Mapping[str, Any]) -> None:
    """Compare a plan with a stored study.

    Args:
        plan: The study as it is asked for.
        title: Where it is stored, in words.
        stored: What its storage says of it.

    Raises:
        InputError: It has other settings, or its slides have changed.
    """
    if changes := differences(stored["settings"], plan.settings):
        raise InputError(
            f"study {plan.name} in {title} was made with other settings: {'; '.join(changes)}; give another --name, or "
            "those settings"
        )
    if changes := describe_changes(stored.get("digests", {}), plan.digests):
        raise InputError(
            f"study {plan.name} in {title} was made before its slides changed ({', '.join(changes)}); give another "
            "--name"
        )


def read_study(plan: StudyPlan, storage: BaseStorage | None) -> dict[str, Any] | None:
    """What a storage says of the study; None where it, or the storage itself, is not there."""
    if storage is None or plan.name not in optuna.get_all_study_names(storage):
        return None
    return optuna.load_study(study_name=plan.name, storage=storage).user_attrs


def check_stored(plan: StudyPlan, title: object, storage: BaseStorage | None) -> None:
    """Do what opening the study in this storage checks, and write nothing.

    Raises:
        InputError: The study has other settings, or `--resume` finds none.
    """
    stored = read_study(plan, storage)
    if stored is None and plan.options.resume:
        raise no_study(plan, title)
    if stored and "settings" in stored:  # else it was stopped before anything was decided
        check_same_study(plan, title, stored)


def no_study(plan: StudyPlan, title: object) -> InputError:
    """Return the error that `--resume` finds no study."""
    return InputError(f"--resume: no study {plan.name} in {title}; leave it out to begin one")


def retry_of(trial: FrozenTrial) -> int | None:
    """Return the number of the failed trial whose values a trial tries once more; None for any other trial."""
    history = trial.system_attrs.get("retry_history")
    return history[-1] if history else None


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
