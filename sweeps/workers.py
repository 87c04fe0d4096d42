"""Workers: each asks the study for trials until it has enough, in this process or in processes of their own."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch

from hist_cache.devices import choose_device
from hist_cache.engine import Workers
from hist_cache.errors import HistError
from hist_cache.executor import Events, Report, Worker
from hist_cache.options import folder_option
from hist_cache.values import Precision
from sweeps.objective import TENSORS_KEPT, run_trial
from sweeps.opening import open_study
from sweeps.options import SweepOptions
from sweeps.precision import settle_precision
from sweeps.space import check_own_spaces, read_space, searchable_names
from sweeps.storage import StudyStorage
from sweeps.study import StudyPlan, check_single, make_study_plan
from train.experiments.announcements import open_workspace
from train.experiments.grid import points
from train.experiments.own_rows import use_own_rows
from train.models.registry import ModelEntry, get_model, model_entries, register
from train.workspace import Workspace

log = logging.getLogger(__name__)

CHECK_EVERY_S = 0.5  # how often a worker looks whether there is something to do


def run_trials(
    plan: StudyPlan,
    storage: StudyStorage,
    workspace: Workspace,
    device: torch.device,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Run trials until the study has as many as it shall.

    Args:
        plan: The study.
        storage: Where it is kept.
        workspace: The cached slides.
        device: To train on.
        tick: Called all the while.

    Raises:
        KeyboardInterrupt: It was asked to stop; the trial that was running is queued again.
    """

    def run(trial: optuna.Trial, values: dict[str, Any]) -> float:
        return run_trial(trial, values, plan, workspace, device, tick)

    while (ran := storage.run_next(run)) is not None:
        tick()
        if not ran:
            time.sleep(CHECK_EVERY_S)  # others run what is left: one of them may be lost


@dataclass(frozen=True)
class TrialWorkerSetup:
    """What a worker process is given. It opens the cache and the study itself, as one on another machine would."""

    options: SweepOptions
    models: tuple[ModelEntry, ...]
    folder: Path


def run_trials_with(workers: Workers, plan: StudyPlan, tick: Callable[[], None]) -> list[HistError]:
    """Run trials with several workers until the study has as many as it shall.

    A process that is killed leaves its trial to the others.

    Args:
        workers: Who runs them.
        plan: The study.
        tick: Called here all the while.

    Returns:
        Why processes failed.

    Raises:
        KeyboardInterrupt: It was asked to stop; trials that were running are queued again.
    """
    setup = TrialWorkerSetup(plan.options, tuple(model_entries()), plan.folder)
    worker: Worker[int, None] = Worker(start_trial_worker, run_worker, setup, tries=workers.tries)
    failures = workers.executor().run(range(workers.count), worker, Events(on_tick=tick))
    for failure in failures:
        if failure.reason == "died":
            log.warning(
                f"worker {failure.task + 1} of {workers.count}: {failure.error}; its trial is left to the others"
            )
    return [failure.error for failure in failures if failure.reason in ("failed", "unexpected")]


@dataclass(frozen=True)
class TrialContext:
    """What a worker process has."""

    options: SweepOptions
    device: torch.device


def start_trial_worker(setup: TrialWorkerSetup) -> TrialContext:
    """Choose a device, and make the models known that a user has registered."""
    device = choose_device(setup.options.device)
    if setup.options.storage is None and not setup.folder.is_dir():
        raise HistError(
            f"{setup.folder}: no such folder here, where the study is kept; give a --runs that all machines see, or "
            "--storage postgresql://..."
        )
    for entry in setup.models:
        register(entry)
    return TrialContext(setup.options, device)


def run_worker(context: TrialContext, number: int, report: Report) -> None:
    """Work of one process: trials until there are enough."""
    parent = os.getppid()

    def tick() -> None:
        if os.getppid() != parent:
            raise KeyboardInterrupt  # the command was killed: nobody needs this any more

    plan, workspace = prepare(context.options)
    storage = open_study(plan, joins=True)
    try:
        run_trials(plan, storage, workspace, context.device, tick)
    finally:
        storage.close()


def prepare(options: SweepOptions) -> tuple[StudyPlan, Workspace]:
    """Read the space and the cache, and decide what the study is.

    Raises:
        InputError: Something is wrong; nothing has been written.
    """
    use_own_rows(options)
    check_own_spaces()
    space = read_space(options)
    check_single(options, searchable_names())
    sizes = {p.neighbors for p in points(options)}
    sizes |= {int(value) for p in space if p.name == "neighbors" for value in p.ends}
    workspace = open_workspace(options, sorted(sizes), TENSORS_KEPT)
    options = options.with_values({"dataset": workspace.dataset})  # the one extracted last may change meanwhile
    runs = folder_option(options.runs, "HIST_RUNS", "runs")

    def plan_in(precision: Precision) -> StudyPlan:
        return make_study_plan(options.with_values({"precision": precision}), space, workspace, runs)

    if options.precision == "auto" and get_model(options.model).learns:
        return settle_precision(plan_in, workspace, choose_device(options.device)), workspace
    return make_study_plan(options, space, workspace, runs), workspace
