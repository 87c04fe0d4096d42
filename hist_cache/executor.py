"""Work is a plain function of plain data. An executor runs it, in this process or in several (`hist_cache.processes`).

A kind of work is a `Worker`: `start` makes what a process needs for many tasks (tensors, an encoder), `work` does one
task with it. Both are functions that any process can import, so that another engine can run them too. Large arrays
that many tasks read are not part of a task: each machine holds one copy of them, which its workers map.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

from hist_cache.errors import HistError, InputError, WriteError, kind_and_text

if TYPE_CHECKING:  # `--help` does without numpy
    import numpy as np

_T = TypeVar("_T")  # a task
_R = TypeVar("_R")  # its result

TICK_S = 0.5

Report = Callable[[Any], None]
"""Sends a message about the task that is being done to whoever asked for it."""


def _ignore(*_: object) -> None:
    """Do nothing."""


@dataclass(frozen=True)
class Shared:
    """Arrays that several tasks read.

    Attributes:
        key: Names them; tasks with the same key read the same arrays.
        make: Makes them, by name, in the asking process. With workers it is called once a key.
    """

    key: str
    make: Callable[[], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Worker(Generic[_T, _R]):
    """A kind of work.

    Attributes:
        start: Makes a process's context from `setup`; called once a process, before its first task.
        work: Does one task: `work(context, task, report)`. An expected failure is a `HistError`.
        setup: Plain data for `start`.
        receive: Called as `receive(context, key, arrays)` before each task that has `Events.shared` arrays. They are
            mapped, not copied, and must not be written to.
        at_once: How many tasks a process has under way, each in a thread of its own: more than one where a task waits
            for disks while another computes.
        tries: How many processes a task may cost that die while it runs, before it counts as failed.
        stop_s: Seconds that a task has to end in when it is told to stop, before its process is killed; None where it
            is waited for, because it ends in good order soon (with the epoch).
    """

    start: Callable[[Any], Any]
    work: Callable[[Any, _T, Report], _R]
    setup: Any
    receive: Callable[[Any, str, dict[str, np.ndarray]], None] = _ignore
    at_once: int = 1
    tries: int = 1
    stop_s: float | None = None


@dataclass(frozen=True)
class Events(Generic[_T, _R]):
    """What is called in the asking process while tasks are done.

    Attributes:
        on_message: With a task and each message that it reports.
        on_result: With a task and its result.
        on_failure: With each failure, as soon as a task has failed for good.
        on_tick: About twice a second, where tasks run in other processes.
        shared: Called with a task before it is handed out; returns the arrays that it reads, None for none.
    """

    on_message: Callable[[_T, Any], None] = _ignore
    on_result: Callable[[_T, _R], None] = _ignore
    on_failure: Callable[[Failure[_T]], None] = _ignore
    on_tick: Callable[[], None] = _ignore
    shared: Callable[[_T], Shared | None] = _ignore


@dataclass(frozen=True)
class Failure(Generic[_T]):
    """A task that could not be done.

    Attributes:
        task: The task.
        error: What went wrong.
        reason: Whether the task failed, as can be expected or with an error that nobody expects, its process died or
            was told to stop, or no process was left to do it.
    """

    task: _T
    error: HistError
    reason: Literal["failed", "unexpected", "died", "stopped", "not run"] = "failed"


def unexpected_failure(task: _T, problem: str, cause: BaseException) -> Failure[_T]:
    """Return a task's failure by an error that nobody expects.

    Args:
        task: The task.
        problem: The error in one line, as `kind_and_text` has it.
        cause: What a traceback shows.
    """
    error = HistError(f"{problem}; --debug shows where it happened")
    error.__cause__ = cause
    return Failure(task, error, "unexpected")


class Executor(Protocol):
    """Runs tasks."""

    def run(self, tasks: Iterable[_T | None], worker: Worker[_T, _R], events: Events[_T, _R]) -> list[Failure[_T]]:
        """Do all tasks and return those that failed.

        Args:
            tasks: Each is asked for when somebody is free to do it. None stands for a task that there is not yet: it
                is asked again at the next tick.
            worker: How they are done.
            events: What is called here.

        Raises:
            KeyboardInterrupt: The user or the system asked to stop; what ran was told to end first.
        """


class SerialExecutor:
    """Does one task after the other in this process.

    Args:
        stop_at_failure: Raise the first error instead of going on with the other tasks.
    """

    def __init__(self, stop_at_failure: bool = False) -> None:
        self._stop_at_failure = stop_at_failure

    def run(self, tasks: Iterable[_T | None], worker: Worker[_T, _R], events: Events[_T, _R]) -> list[Failure[_T]]:
        """Do all tasks and return those that failed; see `Executor.run`.

        Raises:
            InputError: A task met wrong input.
            WriteError: A task could not write its files.
        """
        failures: list[Failure[_T]] = []
        context = worker.start(worker.setup)
        for task in _awaited(tasks, events):

            def report(message: Any, task: _T = task) -> None:
                events.on_message(task, message)

            try:
                if (shared := events.shared(task)) is not None:
                    worker.receive(context, shared.key, shared.make())
                result = worker.work(context, task, report)
            except HistError as error:
                if self._stop_at_failure or isinstance(error, InputError | WriteError):  # others would meet the same
                    raise
                failures.append(Failure(task, error))
                events.on_failure(failures[-1])
            except BrokenPipeError:  # nobody reads any more what is shown
                raise
            except Exception as error:
                if self._stop_at_failure:
                    raise
                failures.append(unexpected_failure(task, kind_and_text(error), error))
                events.on_failure(failures[-1])
            else:
                events.on_result(task, result)
        return failures


def _awaited(tasks: Iterable[_T | None], events: Events[_T, Any]) -> Iterator[_T]:
    """The tasks, each as soon as there is one."""
    for task in tasks:
        if task is None:
            events.on_tick()
            time.sleep(TICK_S)
        else:
            yield task
