"""Worker processes and signals: pinned spawned workers, Ctrl-C and SIGTERM, in one place for all commands."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from hist_cache.commands import claim_packages
from hist_cache.console import hush
from hist_cache.errors import HistError, WriteError, kind_and_text
from hist_cache.executor import TICK_S, Events, Failure, Worker, unexpected_failure

log = logging.getLogger(__name__)
_T = TypeVar("_T")
_R = TypeVar("_R")

SIGNALS = {signal.SIGINT, signal.SIGTERM}
START_S = 300  # a worker that is not ready by then hangs; to import torch from a slow disk may take a minute
JOIN_S = 10  # a worker that does not end by then is killed
STOPPING = "stopping at the end of the epochs that run (once more to stop at once)"


def cores() -> list[int]:
    """The CPU cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


class GracefulStop:
    """Ctrl-C, or a scheduler's SIGTERM, asks to stop; asked a second time, KeyboardInterrupt is raised at once.

    Outside the main thread, which alone hears signals, it does nothing.

    Attributes:
        requested: How often it was asked for.
    """

    def __init__(self, message: str, on_request: Callable[[], None] | None = None) -> None:
        self.requested = 0
        self._message, self._on_request = message, on_request
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> GracefulStop:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {s: signal.signal(s, self._request) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _request(self, number: int, frame: object) -> None:
        self.requested += 1
        if self.requested == 1:
            log.info(self._message)
        if self._on_request is not None:
            self._on_request()
        elif self.requested > 1:
            raise KeyboardInterrupt

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Have SIGTERM raise KeyboardInterrupt, as Ctrl-C does; outside the main thread it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


class ProcessExecutor:
    """Does tasks in processes of their own, each pinned to cores of its own.

    Args:
        workers: How many processes.
        prepare: Called here with each task just before a worker takes it.
    """

    def __init__(self, workers: int, prepare: Callable[[Any], None] = lambda task: None) -> None:
        self._workers, self._prepare = workers, prepare
        self._processes: dict[Connection, BaseProcess] = {}
        self._starting: list[Connection] = []  # the workers that have not yet said that they are ready
        self._deadline = 0.0

    def run(self, tasks: Sequence[_T], worker: Worker[_T, _R], events: Events[_T, _R]) -> list[Failure[_T]]:
        """Do all tasks and return those that failed; see `hist_cache.executor.Executor.run`."""
        failures: list[Failure[_T]] = []
        waiting, running = list(tasks), dict[Connection, _T]()
        with GracefulStop(STOPPING, self._terminate) as stop:
            try:
                self._start(worker)
                while running or (self._starting and waiting and not stop.requested):
                    for pipe in self._ready({*running, *self._starting}):
                        kind, content = self._receive(pipe)
                        if kind == "message":
                            events.on_message(running[pipe], content)
                            continue
                        if pipe in self._starting:
                            self._started(pipe, kind, content, stop.requested > 0)
                        elif kind == "result":
                            events.on_result(running.pop(pipe), content)
                        else:
                            task = running.pop(pipe)
                            failures += [] if stop.requested else [_failure(task, kind, content)]
                        if kind != "died" and not stop.requested:
                            self._hand_out(pipe, waiting, running)
                    events.on_tick()
            finally:
                self._end({*running, *self._starting})
        if stop.requested:
            raise KeyboardInterrupt
        return failures + [Failure(task, HistError("not run, no process was left"), "not run") for task in waiting]

    def _start(self, worker: Worker[_T, _R]) -> None:
        """Start the processes, then send each its kind of work.

        Signals wait until all have started, here and, as a process inherits what is blocked, there too. So a worker
        that is half started neither dies of a Ctrl-C nor is forgotten.
        """
        context = multiprocessing.get_context("spawn")  # a fork would inherit OpenMP's threads, half of them dead
        all_cores, share = cores(), max(1, len(cores()) // self._workers)
        resource_tracker.ensure_running()  # it unblocks signals when it starts
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            for i in range(self._workers):
                pipe, theirs = context.Pipe()
                own = all_cores[i * share : (i + 1) * share] or all_cores
                process: BaseProcess = context.Process(target=_live, args=(theirs, own), daemon=True)
                process.start()
                theirs.close()
                self._processes[pipe] = process
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._starting, self._deadline = list(self._processes), time.monotonic() + START_S
        pickled = pickle.dumps(worker)
        for pipe in self._processes:
            with suppress(BrokenPipeError, ConnectionResetError):  # a dead worker is found when it is heard
                pipe.send_bytes(pickled)

    def _hand_out(self, pipe: Connection, waiting: list[_T], running: dict[Connection, _T]) -> None:
        if waiting:
            task = running[pipe] = waiting.pop(0)
            self._prepare(task)
            with suppress(BrokenPipeError, ConnectionResetError):  # a dead worker is found when it is heard
                pipe.send(task)

    def _started(self, pipe: Connection, kind: str, content: Any, stopping: bool) -> None:
        """Note the first message of a worker: that it is ready, or why it is not."""
        self._starting.remove(pipe)
        if kind != "ready" and not stopping:
            raise HistError(f"{self._name(pipe)} {kind} while it started: {content}")

    def _ready(self, pipes: Collection[Connection]) -> list[Connection]:
        ready = wait(list(pipes), timeout=TICK_S)
        if self._starting and time.monotonic() > self._deadline:
            raise HistError(f"{self._name(self._starting[0])} did not start within {START_S} s")
        return [pipe for pipe in self._processes if pipe in ready]

    def _name(self, pipe: Connection) -> str:
        """A worker as messages name it."""
        number = list(self._processes).index(pipe) + 1
        return f"worker {number} of {len(self._processes)} (process {self._processes[pipe].pid})"

    def _receive(self, pipe: Connection) -> tuple[str, Any]:
        try:
            kind, content = pipe.recv()
        except (EOFError, ConnectionResetError):
            self._processes[pipe].join(JOIN_S)
            return "died", _ending(self._processes[pipe].exitcode)
        if kind == "cannot write":
            raise content  # other tasks could not write either
        return kind, content

    def _terminate(self) -> None:
        for process in self._processes.values():
            process.terminate()

    def _end(self, busy: Collection[Connection]) -> None:
        for pipe in busy:  # after an error here: nobody needs what they are at
            self._processes[pipe].terminate()
        for pipe, process in self._processes.items():
            pipe.close()  # an idle worker ends when its pipe does
            process.join(JOIN_S)
            process.kill()
        self._processes.clear()
        self._starting.clear()


class WorkerTraceback(Exception):
    """The traceback of an error in another process, as text."""


def _ending(exit_code: int | None) -> str:
    """How a process ended: its exit code, or the name of the signal that killed it."""
    if exit_code is not None and exit_code < 0:
        with suppress(ValueError):
            return f"killed by {signal.Signals(-exit_code).name}"
    return f"exit code {exit_code}"


def _failure(task: _T, kind: str, content: Any) -> Failure[_T]:
    """What a worker's last message about a task means."""
    if kind == "died":
        return Failure(task, HistError(f"its process died ({content}); out of memory?"), "died")
    if kind == "stopped":
        return Failure(task, HistError("its process was told to stop"), "stopped")
    if kind == "unexpected":
        problem, text = content
        return unexpected_failure(task, problem, WorkerTraceback(text))
    return Failure(task, HistError(content))


def _live(pipe: Connection, own: list[int]) -> None:
    """A worker's life: its kind of work, then tasks, from the pipe until it closes."""
    with suppress(EOFError, KeyboardInterrupt, ConnectionError):
        worker = _get_ready(pipe, own)
        context: Any = None
        started = False
        while worker is not None:
            task = pipe.recv()
            try:
                if not started:
                    context, started = worker.start(worker.setup), True
                result = worker.work(context, task, lambda message: pipe.send(("message", message)))
                pipe.send(("result", result))
            except KeyboardInterrupt:
                pipe.send(("stopped", None))
            except ConnectionError:
                raise
            except WriteError as error:
                pipe.send(("cannot write", error))
            except HistError as error:
                pipe.send(("failed", str(error)))
            except Exception as error:
                pipe.send(("unexpected", (kind_and_text(error), traceback.format_exc())))


def _end_with_parent() -> None:
    """End this process when its parent is killed: the same command, started again, shall find its folds free."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _get_ready(pipe: Connection, own: list[int]) -> Worker[Any, Any] | None:
    """Set up this process as a worker and receive its kind of work; None, after saying why, where that fails."""
    os.setpgid(0, 0)  # Ctrl-C on the terminal reaches the parent alone, which passes it on
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # also one that came before
    signal.signal(signal.SIGTERM, _interrupt)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    hush()  # the parent shows what there is to show
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, own)
    try:
        claim_packages()  # before anything of ours is imported: the user's own train.py may stand first on the path
        import torch

        torch.set_num_threads(len(own))
        worker: Worker[Any, Any] = pickle.loads(pipe.recv_bytes())
    except (EOFError, ConnectionError):
        raise
    except Exception as error:  # whatever a module raises that is imported
        pipe.send(("failed", kind_and_text(error)))
        return None
    pipe.send(("ready", None))
    return worker
