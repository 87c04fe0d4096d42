"""A gang: several processes that do one thing together, which no one of them can go on with when another is lost.

Each finds in its environment which one it is and where the others are, as torchrun sets it. `run_local_gang` starts the
processes on this machine.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from hist_cache.commands import claim_packages
from hist_cache.errors import HistError, InputError, WriteError, kind_and_text
from hist_cache.executor import TICK_S
from hist_cache.processes import JOIN_S, WorkerTraceback, ending_of
from hist_cache.stopping import SIGNALS, GracefulStop, raise_interrupt, sigterm_as_interrupt
from hist_cache.worker_process import end_with_parent

log = logging.getLogger(__name__)

RESTARTS = 3
SETTLE_S = 3.0  # within that time of an error in one process it is known whether the loss of another was its cause
STOP_S = 60.0  # a process that has not stopped so long after another has hangs, since it waits for that one
LOOPBACK = "127.0.0.1"

RunGang = Callable[[int, Callable[..., int], tuple[Any, ...]], int]
"""Called as `run_gang(world_size, function, arguments)`: runs `function(*arguments)` in so many processes at once.

Returns the largest exit code that the function has returned. A `HistError` of one process ends the others and is
raised; `LostRankError` where a process died, KeyboardInterrupt where the gang was asked to stop.
"""


class LostRankError(HistError):
    """A process of a gang died, and the others were ended."""


def run_with_restarts(start_gang: Callable[[int], int]) -> int:
    """Run a gang, and start it again when it has lost a process, three times at most.

    Args:
        start_gang: Runs the gang once and returns its exit code. Called with how often it was started before.

    Raises:
        HistError: The gang has lost a process once too often.
    """
    with sigterm_as_interrupt():
        for restart in itertools.count():
            try:
                return start_gang(restart)
            except LostRankError as error:
                if restart == RESTARTS:
                    advice = "the same command goes on from the last checkpoint"
                    raise HistError(f"{error}; given up after {RESTARTS} restarts; {advice}") from error
                log.warning(f"{error}; all start again from the last checkpoint (restart {restart + 1} of {RESTARTS})")
    raise AssertionError("a count has no end")


def run_local_gang(world_size: int, function: Callable[..., int], arguments: tuple[Any, ...] = ()) -> int:
    """Run a function in several processes of this machine; see `RunGang`.

    With GPUs each process has one of its own. Ctrl-C and SIGTERM are passed on to all, once for each time.

    Args:
        world_size: How many processes.
        function: Can be imported from any process; returns an exit code.
        arguments: Its arguments, which can be pickled.

    Raises:
        InputError: There are fewer GPUs.
    """
    import torch  # it takes seconds, in which Ctrl-C ends this process alone

    if torch.cuda.is_available() and world_size > torch.cuda.device_count():
        raise InputError(
            f"{world_size} processes on one batch need a GPU each, and {torch.cuda.device_count()} can be seen here"
        )
    store, port = meeting_place(LOOPBACK)
    gang = _Gang(pickle.dumps((function, arguments)))
    try:
        with GracefulStop(f"stopping {world_size} processes", gang.pass_on) as stop:
            try:
                gang.start(world_size, port)
                gang.wait(stop)
            finally:
                gang.end()
        return gang.result(stop)
    finally:
        del store  # it was needed until here


def meeting_place(address: str) -> tuple[Any, int]:
    """Open the place where the processes of a gang find each other, at this address alone.

    Torch by itself would listen at all addresses; and a port that it is told could be taken by another program before.

    Returns:
        The place, which is open as long as this is kept, and its port.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    listening = socket.create_server((address, 0))
    port = int(listening.getsockname()[1])
    store = TCPStore(
        *(address, port),
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listening.detach(),
        use_libuv=False,  # before torch 2.8 it does not answer at a socket that it is given
    )
    return store, port


def rank_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """The environment variables of one process, as torchrun sets them on one machine.

    Args:
        rank: Which one, from 0.
        world_size: How many there are.
        port: Where on this machine they find each other.
    """
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    variables = {name: str(value) for name, value in own.items()}
    variables |= {"MASTER_ADDR": LOOPBACK, "MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    names = {name for _, name in socket.if_nameindex()}
    loopback = next((name for name in ("lo", "lo0") if name in names), None)
    unless_given = {"OMP_NUM_THREADS": "1"}
    if loopback is not None:  # whatever the machine's name resolves to
        unless_given |= {"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback}
    return variables | {name: value for name, value in unless_given.items() if name not in os.environ}


class _Gang:
    """The processes of a gang, as the one that has started them sees them.

    Args:
        work: The pickled function and its arguments.
    """

    def __init__(self, work: bytes) -> None:
        self._work = work
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []
        self._outcomes: dict[int, tuple[str, Any]] = {}  # by rank: how a process has ended
        self._deadline = float("inf")

    def start(self, world_size: int, port: int) -> None:
        """Start all processes; signals wait until that is done, here and there."""
        context = multiprocessing.get_context("spawn")  # a fork would inherit OpenMP's threads, half of them dead
        resource_tracker.ensure_running()  # it unblocks signals when it starts
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            for rank in range(world_size):
                pipe, theirs = context.Pipe()
                arguments = (theirs, rank_environment(rank, world_size, port))
                process: BaseProcess = context.Process(target=_be_rank, args=arguments)
                process.start()
                theirs.close()
                self._processes.append(process)
                self._pipes.append(pipe)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for pipe in self._pipes:
            with suppress(BrokenPipeError, ConnectionResetError):  # a dead process is found when it is heard
                pipe.send_bytes(self._work)

    def pass_on(self) -> None:
        """Ask all processes to stop, as they are asked by Ctrl-C; those that do not stop then are ended."""
        for rank, process in enumerate(self._processes):
            if rank not in self._outcomes and process.exitcode is None and process.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGINT)

    def wait(self, stop: GracefulStop) -> None:
        """Wait until all processes have ended, or one of them so that the others need not go on."""
        while len(self._outcomes) < len(self._processes) and time.monotonic() < self._deadline:
            left = {self._pipes[rank]: rank for rank in range(len(self._pipes)) if rank not in self._outcomes}
            for pipe in wait(list(left), timeout=TICK_S):
                rank = left[pipe]  # type: ignore[index]
                self._outcomes[rank] = self._receive(rank)
            if stop.requested > 1:
                self._end_within(JOIN_S)
            for kind, _ in self._outcomes.values():
                self._end_within({"returned": float("inf"), "stopped": STOP_S, "unexpected": SETTLE_S}.get(kind, 0.0))

    def _end_within(self, seconds: float) -> None:
        self._deadline = min(self._deadline, time.monotonic() + seconds)

    def _receive(self, rank: int) -> tuple[str, Any]:
        try:
            outcome: tuple[str, Any] = self._pipes[rank].recv()
        except (EOFError, ConnectionResetError):
            process = self._processes[rank]
            process.join(JOIN_S)
            how = ending_of(process.exitcode)
            return "lost", f"process {rank + 1} of {len(self._processes)} on one batch died ({how}; out of memory?)"
        return outcome

    def end(self) -> None:
        """End the processes that are left, at once where they have not ended by themselves."""
        for rank, process in enumerate(self._processes):
            if self._outcomes.get(rank, ("",))[0] in ("returned", "stopped"):
                process.join(JOIN_S)
            process.kill()
        for process in self._processes:
            process.join()
        for pipe in self._pipes:
            pipe.close()

    def result(self, stop: GracefulStop) -> int:
        """The exit code of all, or the error of that process which ended first of those that had one; see `RunGang`."""
        by_kind: dict[str, Any] = {}
        for kind, content in self._outcomes.values():
            by_kind.setdefault(kind, content)
        if "failed" in by_kind:
            error, text = by_kind["failed"]
            raise error from WorkerTraceback(text)
        cut_short = stop.requested and len(self._outcomes) < len(self._processes)
        if "stopped" in by_kind or cut_short or (stop.requested and "lost" in by_kind):
            raise stop.interrupt()
        if "lost" in by_kind:
            raise LostRankError(by_kind["lost"])
        if "unexpected" in by_kind:
            problem, text = by_kind["unexpected"]
            raise HistError(f"{problem}; --debug shows where it happened") from WorkerTraceback(text)
        return max(int(code) for kind, code in self._outcomes.values())


def _be_rank(pipe: Connection, environment: dict[str, str]) -> None:
    """A process's life: the function, whose outcome is sent."""
    outcome = _outcome(pipe, environment)
    with suppress(ConnectionError):  # nobody reads what is shown any more, or waits for the outcome
        sys.stdout.flush()
    with suppress(ConnectionError):
        pipe.send(outcome)


def _outcome(pipe: Connection, environment: dict[str, str]) -> tuple[str, Any]:
    """Call the function that comes through the pipe; returns what came of it.

    The process that has started this one asks it to stop by SIGINT. A Ctrl-C on the terminal does not reach it, and a
    SIGTERM, which schedulers send to all processes of a job, is not heard: twice means to stop at once.
    """
    os.setpgid(0, 0)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # it writes to the terminal from the background
    signal.signal(signal.SIGINT, raise_interrupt)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        os.environ.update(environment)  # before torch is imported, which reads it once
        claim_packages()  # before anything of ours is imported: the user's own train.py may stand first on the path
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"].split(",")[0]))  # it may have been imported before
        function, arguments = pickle.loads(pipe.recv_bytes())
        return "returned", int(function(*arguments))
    except KeyboardInterrupt:
        return "stopped", None
    except (HistError, OSError) as error:
        return "failed", (plain_error(error), traceback.format_exc())
    except Exception as error:
        return "unexpected", (kind_and_text(error), traceback.format_exc())


def plain_error(error: HistError | OSError) -> HistError | OSError:
    """An error that can be pickled, whatever it was made from; those that a command tells apart stay as they are."""
    if isinstance(error, WriteError | OSError):
        return error
    return InputError(str(error)) if error.exit_code == InputError.exit_code else HistError(str(error))
