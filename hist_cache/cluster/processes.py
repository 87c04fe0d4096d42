"""What runs in processes on a cluster: a worker's tasks, a rank of a gang, and the mailbox for their messages."""

from __future__ import annotations

import io
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

from hist_cache.cluster.checks import interface_of, is_loopback
from hist_cache.cluster.courier import Courier
from hist_cache.cluster.facts import CommandPlace, ProcessPlace
from hist_cache.cluster.ray_cluster import answer, call, whereabouts
from hist_cache.commands import claim_packages
from hist_cache.console import hush, show_warnings
from hist_cache.errors import HistError, kind_and_text
from hist_cache.gang import meeting_place, plain_error
from hist_cache.stopping import STOP
from hist_cache.worker_process import Desk


class Mailbox:
    """Where processes post messages and the command takes them; it runs beside the command."""

    def __init__(self) -> None:
        self._messages: list[Any] = []
        self._stopping = False

    def post(self, messages: list[Any]) -> bool:
        """Take messages; returns whether work shall stop."""
        self._messages += messages
        return self._stopping

    def take(self, stopping: bool) -> list[Any]:
        """Return the messages that have come since, and note whether work shall stop."""
        messages, self._messages, self._stopping = self._messages, [], stopping
        return messages


class ClusterProcess:
    """What the processes have in common: a place, a courier, and how they are stopped.

    What they do is interrupted by SIGTERM, as that of local workers: whether the command asks for it, or whoever ends
    the machine's job. Several tasks at once run beside the main thread, and are interrupted as they report.

    Args:
        mailbox: Where messages go.
    """

    def __init__(self, mailbox: Any) -> None:
        self.courier = Courier(lambda messages: bool(answer(call(mailbox, "post", messages))), self._stop)
        self._at_work = self._threaded = False
        self._usual: Any = signal.signal(signal.SIGTERM, self._interrupt)

    def hello(self) -> ProcessPlace:
        """Say where this is, before anything else is done."""
        return whereabouts()

    def _stop(self) -> None:
        STOP.set()
        if not self._threaded:
            os.kill(os.getpid(), signal.SIGTERM)

    def _interrupt(self, number: int, frame: Any) -> None:
        if self._at_work:
            raise KeyboardInterrupt
        if self.courier.stopping:  # what was to be stopped has just ended
            return
        if not callable(self._usual):
            os._exit(1)
        self._usual(number, frame)

    def interruptible(self, work: Callable[[], tuple[str, Any]]) -> tuple[str, Any]:
        """Do work, and deliver messages meanwhile; returns what came of it, `stopped` where it was interrupted."""
        main = threading.current_thread() is threading.main_thread()
        self._threaded = not main
        try:
            with self.courier.work():
                self._at_work = main
                try:
                    return work()
                finally:
                    self._at_work = False
        except KeyboardInterrupt:
            return "stopped", None


class TaskProcess(ClusterProcess):
    """Does tasks; the other side is `hist_cache.cluster.executor`.

    Args:
        mailbox: Where messages go.
        pickled: The kind of work, a `Worker`.
        threads: How many torch may use.
        command: Where the command was started.
    """

    def __init__(self, mailbox: Any, pickled: bytes, threads: int, command: CommandPlace) -> None:
        super().__init__(mailbox)
        hush()  # the command shows what there is to show
        show_warnings(lambda text: self.courier.send(("warning", 0, text)))
        self._pickled, self._threads, self._command = pickled, threads, command
        self._desk: Desk | None = None

    def start(self) -> tuple[str, Any]:
        """Make what all tasks need; returns `ready`, or why that is impossible."""
        try:
            self._command.enter()
            os.environ["OMP_NUM_THREADS"] = str(self._threads)
            _obey_threads()
            claim_packages()  # before anything of ours is imported: the user's own train.py may stand first on the path
            self._desk = Desk(pickle.loads(self._pickled))
        except HistError as error:
            return "refused", str(error)
        except Exception as error:  # whatever a module raises that is imported
            return "refused", kind_and_text(error)
        return self._desk.start()

    def do(self, number: int, pickled: bytes, key: str | None, arrays: dict[str, Any]) -> tuple[str, Any]:
        """Do a task; returns what came of it, as `Desk.do`.

        Args:
            number: Of the task's giving.
            pickled: The task.
            key: Of the arrays that it reads, None for none.
            arrays: They, as `share_array` returns them, by name.
        """
        desk = self._desk
        assert desk is not None, "start comes first"

        def report(message: Any) -> None:
            if self._threaded and self.courier.stopping:
                raise KeyboardInterrupt
            self.courier.send(("message", number, message))

        def shared() -> tuple[str, Any] | None:
            return None if key is None else (key, {name: answer(array) for name, array in arrays.items()})

        def work() -> tuple[str, Any]:
            self.courier.send(("began", number, None))
            self.courier.flush()  # now: should this process die of it, the command knows that it had begun
            return desk.do(pickle.loads(pickled), shared, report)

        return self.interruptible(work)


def _obey_threads() -> None:
    """Have torch compute with as many threads as the variable says, which it reads only when it is imported."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


class RankProcess(ClusterProcess):
    """One process of a gang; the other side is `hist_cache.cluster.gang`.

    Args:
        mailbox: Where messages go.
        command: Where the command was started.
    """

    def __init__(self, mailbox: Any, command: CommandPlace) -> None:
        super().__init__(mailbox)
        self._command = command

    def meet(self) -> tuple[str, int]:
        """Open the place where the processes of the gang find each other, at this machine's address in the cluster."""
        address = whereabouts().address
        self._store, port = meeting_place(address)
        return address, port

    def run(self, environment: dict[str, str], pickled: bytes) -> tuple[str, Any]:
        """Call a function; what the first process prints is sent as messages.

        Args:
            environment: Variables by which the processes know each other.
            pickled: The function and its arguments.

        Returns:
            `returned` with its exit code, `failed` with an error of one line, `stopped` or `unexpected`.
        """
        os.environ.update(environment)
        _obey_threads()  # the first one has imported torch
        for name, value in network_variables(whereabouts().address).items():
            os.environ.setdefault(name, value)
        first = environment["RANK"] == "0"

        def work() -> tuple[str, Any]:
            try:
                self._command.enter()
                out, err = (_Lines(self.courier, stream, shown=first) for stream in ("out", "err"))
                with redirect_stdout(out), redirect_stderr(err):
                    try:
                        claim_packages()
                        function, arguments = pickle.loads(pickled)
                        return "returned", int(function(*arguments))
                    finally:
                        out.end_line()
                        err.end_line()
            except HistError as error:
                return "failed", plain_error(error)
            except Exception as error:
                return "unexpected", (kind_and_text(error), traceback.format_exc())

        return self.interruptible(work)


def network_variables(address: str) -> dict[str, str]:
    """Variables by which torch talks to other machines at an address of this one, whatever its name resolves to."""
    interface = interface_of(address)
    if interface is None:
        return {}
    names = ("GLOO_SOCKET_IFNAME", *(["NCCL_SOCKET_IFNAME"] if is_loopback(address) else []))
    return dict.fromkeys(names, interface)


class _Lines(io.TextIOBase):
    """Sends what is printed as messages, a line each; drops it where it is not shown."""

    def __init__(self, courier: Courier, stream: str, shown: bool) -> None:
        self._courier, self._stream, self._shown, self._begun = courier, stream, shown, ""

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines if self._shown else ():
            self._courier.send(("line", self._stream, line))
        return len(text)

    def end_line(self) -> None:
        """Send the last line too, where it was not ended."""
        if self._begun:
            self.write("\n")
