"""Work done by processes of this machine; their own side is `worker_process`."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from hist_cache.errors import HistError
from hist_cache.executor import TICK_S, Events, Failure, Worker, unexpected_failure
from hist_cache.scratch import scratch_folder
from hist_cache.shared_arrays import SharedFiles
from hist_cache.stopping import SIGNALS, GracefulStop
from hist_cache.task_queue import Handed, TaskQueue
from hist_cache.worker_process import live

log = logging.getLogger(__name__)
_T = TypeVar("_T")
_R = TypeVar("_R")

START_S = 300  # a worker that is not ready by then hangs; to import torch from a slow disk may take a minute
JOIN_S = 10  # a worker that does not end by then is killed
STOPPING_NOW = "stopping"
STOPPING = "stopping at the end of the epochs that run (once more to stop at once)"


def cores() -> list[int]:
    """The CPU cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


@dataclass(eq=False)
class _Process(Generic[_T]):
    """A worker process as this one sees it.

    Attributes:
        running: The tasks that it was given, by the number of their giving.
    """

    number: int
    process: BaseProcess
    pipe: Connection
    starting: bool = True
    running: dict[int, Handed[_T]] = field(default_factory=dict)


class ProcessExecutor:
    """Does tasks in processes of their own, each pinned to cores of its own.

    A process that has died is replaced, where a task may cost several (`Worker.tries`). A task that was under way in
    one then runs alone in its process, so that one which kills its processes brings no other one down three times.

    Args:
        workers: How many processes.
        gpus: Names of GPUs as CUDA_VISIBLE_DEVICES has them; each process sees one of them, in turn. Without any, all
            see what this process sees.
    """

    def __init__(self, workers: int, gpus: Sequence[str] = ()) -> None:
        self._workers, self._gpus = workers, gpus

    def run(self, tasks: Iterable[_T | None], worker: Worker[_T, _R], events: Events[_T, _R]) -> list[Failure[_T]]:
        """Do all tasks and return those that failed; see `hist_cache.executor.Executor.run`."""
        with ExitStack() as stack:
            run = _Run(self._workers, self._gpus, tasks, worker, events, stack)
            with GracefulStop(STOPPING if worker.stop_s is None else STOPPING_NOW, run.terminate) as stop:
                try:
                    run.start(range(self._workers))
                    while run.going(stop.requested > 0):
                        run.hear(stop.requested > 0)
                        if not stop.requested:
                            run.hand_out()
                        events.on_tick()
                finally:
                    run.end()
        if stop.requested:
            raise stop.interrupt()
        return run.failures + run.not_run()


class _Run(Generic[_T, _R]):
    """The tasks and processes of one call of `ProcessExecutor.run`."""

    def __init__(
        self,
        workers: int,
        gpus: Sequence[str],
        tasks: Iterable[_T | None],
        worker: Worker[_T, _R],
        events: Events[_T, _R],
        stack: ExitStack,
    ) -> None:
        self._workers, self._gpus, self._worker, self._events, self._stack = workers, gpus, worker, events, stack
        self._pickled = pickle.dumps(worker)
        self._queue: TaskQueue[_T] = TaskQueue(tasks, worker.tries)
        self._given = 0
        self._processes: list[_Process[_T]] = []
        self._deadline = 0.0
        self._shared: SharedFiles | None = None
        self._warned: set[str] = set()
        self._asked_to_stop = 0
        self._kill_at = float("inf")
        self.failures: list[Failure[_T]] = []

    def start(self, numbers: Iterable[int]) -> None:
        """Start processes, then send each its kind of work.

        Signals wait until all have started, here and, as a process inherits what is blocked, there too. So a worker
        that is half started neither dies of a Ctrl-C nor is forgotten.
        """
        context = multiprocessing.get_context("spawn")  # a fork would inherit OpenMP's threads, half of them dead
        all_cores, share = cores(), max(1, len(cores()) // self._workers)
        resource_tracker.ensure_running()  # it unblocks signals when it starts
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        new: list[_Process[_T]] = []
        try:
            for i in numbers:
                pipe, theirs = context.Pipe()
                own = all_cores[i * share : (i + 1) * share] or all_cores
                gpu = self._gpus[i % len(self._gpus)] if self._gpus else None
                process: BaseProcess = context.Process(target=live, args=(theirs, own, gpu), daemon=True)
                process.start()
                theirs.close()
                new.append(_Process(i, process, pipe))
        finally:
            self._processes += new
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._deadline = time.monotonic() + START_S
        for started in new:
            with suppress(BrokenPipeError, ConnectionResetError):  # a dead worker is found when it is heard
                started.pipe.send_bytes(self._pickled)

    def going(self, stopping: bool) -> bool:
        """Whether there is anything to wait for."""
        if any(p.running for p in self._processes):
            return True
        return not stopping and bool(self._processes) and self._queue.open

    def hear(self, stopping: bool) -> None:
        """Wait for messages for a while, and act on them."""
        if time.monotonic() > self._kill_at:
            for process in self._processes:
                process.process.kill()
        heard = wait([p.pipe for p in self._processes], timeout=TICK_S)
        late = next((p for p in self._processes if p.starting), None)
        if late is not None and time.monotonic() > self._deadline:
            raise HistError(f"{self._name(late)} did not start within {START_S} s")
        for process in [p for p in self._processes if p.pipe in heard]:
            try:
                kind, number, content = process.pipe.recv()
            except (EOFError, ConnectionResetError):
                self._died(process, stopping)
                continue
            if process.starting:
                self._started(process, kind, content, stopping)
            else:
                self._act_on(process, kind, number, content, stopping)

    def _act_on(self, process: _Process[_T], kind: str, number: int, content: Any, stopping: bool) -> None:
        """Do what a message of a process asks for; the kinds are those of `worker_process.Desk.do` and two more."""
        if kind == "message":
            self._events.on_message(process.running[number].task, content)
        elif kind == "warning":
            self._warn(content)
        elif kind == "cannot write":
            raise content  # other tasks could not write either
        elif kind == "refused":
            self._refused(process, content)
        else:
            handed = process.running.pop(number)
            if kind == "result":
                self._events.on_result(handed.task, content)
            elif kind == "stopped" and self._worker.tries > 1 and not stopping:
                self._queue.give_back([handed])  # somebody has told this process alone to stop
            elif not stopping:
                self._fail(failure_of(handed.task, kind, content))

    def hand_out(self) -> None:
        """Give tasks to the processes that have room for one."""
        takers = [p for p in self._processes if not p.starting]
        while takers:
            process = min(takers, key=lambda p: len(p.running))
            if process.running and any(p.starting for p in self._processes):
                return  # one that is not ready yet shall have a task before another has two
            handed = self._queue.next_for(list(process.running.values()), self._worker.at_once)
            if handed is None:
                takers.remove(process)
            else:
                self._give(process, handed)

    def _give(self, process: _Process[_T], handed: Handed[_T]) -> None:
        shared = self._events.shared(handed.task)
        folder = None
        if shared is not None:
            if self._shared is None:
                self._shared = SharedFiles(self._stack.enter_context(scratch_folder("hist-shared-")))
            folder = self._shared.provide(shared)
        self._given += 1
        process.running[self._given] = handed
        with suppress(BrokenPipeError, ConnectionResetError):  # a dead worker is found when it is heard
            process.pipe.send((self._given, handed.task, folder))

    def _fail(self, failure: Failure[_T]) -> None:
        self.failures.append(failure)
        self._events.on_failure(failure)

    def _warn(self, text: str) -> None:
        """Show a warning of a worker, once."""
        if text not in self._warned:
            self._warned.add(text)
            log.warning(text)

    def _started(self, process: _Process[_T], kind: str, content: Any, stopping: bool) -> None:
        """Note the first message of a worker: that it is ready, or why it is not."""
        process.starting = False
        if kind != "ready" and not stopping:
            raise HistError(f"{self._name(process)} {kind} while it started: {content}")

    def _died(self, process: _Process[_T], stopping: bool) -> None:
        """Fail what a dead process was at, or note that it is to be tried again; start another process then."""
        process.process.join(JOIN_S)
        ending = ending_of(process.process.exitcode)
        if process.starting:
            self._started(process, "died", ending, stopping)
        self._drop(process)
        if stopping:
            return
        for task in self._queue.died(list(process.running.values())):
            self._fail(failure_of(task, "died", ending))
        if self._worker.tries > 1:
            self.start([process.number])

    def _refused(self, process: _Process[_T], text: str) -> None:
        """Do without a worker that cannot make what it needs for any task; `HistError` where it was the last one."""
        self._queue.give_back(process.running.values())
        self._drop(process)
        if not self._processes:
            raise HistError(text)
        log.warning(f"{self._name(process)} is left out: {text}")

    def _drop(self, process: _Process[_T]) -> None:
        self._processes.remove(process)
        process.pipe.close()

    def _name(self, process: _Process[_T]) -> str:
        """A worker as messages name it."""
        return f"worker {process.number + 1} of {self._workers} (process {process.process.pid})"

    def not_run(self) -> list[Failure[_T]]:
        """The tasks that no process was left for."""
        error = HistError("not run, no process was left")
        return [Failure(task, error, "not run") for task in self._queue.rest()]

    def terminate(self) -> None:
        """Tell all processes to stop; asked again, those end at once that would be killed anyway."""
        self._asked_to_stop += 1
        if self._worker.stop_s is not None:
            self._kill_at = time.monotonic() + (self._worker.stop_s if self._asked_to_stop == 1 else 0)
        for process in self._processes:
            process.process.terminate()

    def end(self) -> None:
        """End all processes; those that are at something, after an error here, at once."""
        for process in self._processes:
            if process.running or process.starting:
                process.process.terminate()
        for process in self._processes:
            process.pipe.close()  # an idle worker ends when its pipe does
            process.process.join(JOIN_S)
            process.process.kill()
        self._processes.clear()


class WorkerTraceback(Exception):
    """The traceback of an error in another process, as text."""


def ending_of(exit_code: int | None) -> str:
    """How a process ended: its exit code, or the name of the signal that killed it."""
    if exit_code is not None and exit_code < 0:
        with suppress(ValueError):
            return f"killed by {signal.Signals(-exit_code).name}"
    return f"exit code {exit_code}"


def failure_of(task: _T, kind: str, content: Any) -> Failure[_T]:
    """What a worker's last message about a task means."""
    if kind == "died":
        return Failure(task, HistError(f"its process died ({content}); out of memory?"), "died")
    if kind == "stopped":
        return Failure(task, HistError("its process was told to stop"), "stopped")
    if kind == "unexpected":
        problem, text = content
        return unexpected_failure(task, problem, WorkerTraceback(text))
    return Failure(task, HistError(content))
