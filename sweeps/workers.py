"""Workers: each asks the study for trials until it has enough, in this process or in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import optuna
import torch

from hist_cache.console import hush, say
from hist_cache.errors import HistError
from hist_cache.options import folder_option
from sweeps.objective import TrialData, run_trial
from sweeps.options import Config
from sweeps.space import read_space
from sweeps.storage import Place, open_place
from sweeps.study import Plan, check_single, make_plan
from train.cli import open_workspace
from train.experiments.executor import cores
from train.experiments.grid import points
from train.workspace import Workspace

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

LOOK_EVERY_S = 0.5  # whether there is something to do, or to show


def work(
    plan: Plan, place: Place, workspace: Workspace, device: torch.device, tick: Callable[[], None] = lambda: None
) -> None:
    """Run trials until the study has as many as it shall; `tick` is called all the while.

    Interrupted, what was running is queued again and KeyboardInterrupt raised.
    """
    data = TrialData(workspace, device)

    def run(trial: optuna.Trial, values: dict[str, Any]) -> float:
        return run_trial(trial, values, plan, data, tick)

    with sigterm_as_ctrl_c():
        while (ran := place.run_next(run)) is not None:
            tick()
            if not ran:
                time.sleep(LOOK_EVERY_S)  # others run what is left: one of them may be lost


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """A scheduler's SIGTERM ends a trial as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def work_in_processes(config: Config, device: torch.device, workers: int, tick: Callable[[], None]) -> None:
    """Run `workers` processes, each pinned to cores of its own, until the study has its trials.

    One that is killed leaves its trial to the others. `HistError` where one failed, or all are gone too early;
    interrupted, they queue what was running and KeyboardInterrupt is raised.
    """
    context = multiprocessing.get_context("spawn")  # a fork would inherit OpenMP's threads, half of them dead
    mine, share = cores(), max(1, len(cores()) // workers)
    processes: list[tuple[BaseProcess, Connection]] = []
    for i in range(workers):
        pipe, theirs = context.Pipe(duplex=False)
        own = mine[i * share : (i + 1) * share] or mine
        process: BaseProcess = context.Process(target=_work, args=(theirs, config, str(device), own), daemon=True)
        process.start()
        theirs.close()
        processes.append((process, pipe))
    asked = 0

    def stop(number: int, frame: object) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            say("stopping at the end of the epochs that run (once more to stop at once)")
        for worker, _ in processes:
            worker.terminate()

    before = {s: signal.signal(s, stop) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        while any(worker.is_alive() for worker, _ in processes):
            time.sleep(LOOK_EVERY_S)
            tick()
    finally:
        for worker, _ in processes:
            worker.kill()
        for number, handler in before.items():
            signal.signal(number, handler)
    if asked:
        raise KeyboardInterrupt
    for _, pipe in processes:
        with suppress(EOFError):
            if problem := pipe.recv():
                raise HistError(problem)


def _work(pipe: Connection, config: Config, device: str, own: list[int]) -> None:
    """A worker's life. It opens cache and study itself, as one on another machine would."""
    os.setpgid(0, 0)  # Ctrl-C on the terminal reaches the parent alone, which passes it on
    hush()  # the parent does the talking
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, own)
    torch.set_num_threads(len(own))
    parent = os.getppid()

    def tick() -> None:
        if os.getppid() != parent:
            raise KeyboardInterrupt  # it was killed: nobody wants this any more

    problem = None
    with suppress(KeyboardInterrupt), sigterm_as_ctrl_c():
        try:
            plan, workspace = prepare(config)
            place = open_place(plan)
            try:
                work(plan, place, workspace, torch.device(device), tick)
            finally:
                place.close()
        except HistError as error:
            problem = str(error)
        except Exception:
            problem = traceback.format_exc()
    with suppress(BrokenPipeError):
        pipe.send(problem)


def prepare(config: Config) -> tuple[Plan, Workspace]:
    """Read the space and the cache, and resolve the study. `InputError` before anything is written."""
    space = read_space(config)
    check_single(config)
    sizes = {p.neighbors for p in points(config)}
    sizes |= {int(value) for p in space if p.name == "neighbors" for value in p.ends}
    workspace = open_workspace(config, sorted(sizes))
    config = replace(config, dataset=workspace.dataset)  # the last one extracted may be another by and by
    return make_plan(config, space, workspace, folder_option(config.runs, "HIST_RUNS", "runs")), workspace
