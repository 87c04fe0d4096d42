"""A worker process's own side: it gets ready, then does tasks that come through a pipe until that closes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from hist_cache.commands import claim_packages
from hist_cache.console import hush, show_warnings
from hist_cache.errors import HistError, WriteError, kind_and_text
from hist_cache.executor import Report, Worker
from hist_cache.shared_arrays import map_arrays
from hist_cache.stopping import SIGNALS, STOP, raise_interrupt


def live(pipe: Connection, own_cores: list[int], gpu: str | None) -> None:
    """A worker's life.

    Args:
        pipe: Brings the kind of work, then tasks; takes messages `(kind, number of the task, content)`.
        own_cores: The CPU cores to be pinned to.
        gpu: The GPU to see, as CUDA_VISIBLE_DEVICES names it; None to see all.
    """
    with suppress(EOFError, KeyboardInterrupt, ConnectionError):
        worker = _get_ready(pipe, own_cores, gpu)
        if worker is not None:
            _PipeDesk(pipe, worker).work()


class _Refused(Exception):
    """What this process needs for any task cannot be made."""


class Desk:
    """Where a process does tasks, several at once where they come from several threads.

    Args:
        worker: How they are done.
    """

    def __init__(self, worker: Worker[Any, Any]) -> None:
        self._worker = worker
        self._context: Any = None
        self._started = False
        self._refusal = ""
        self._starting = threading.Lock()

    def start(self) -> tuple[str, Any]:
        """Make what all tasks need; returns what came of it, as `do`, or `ready`."""
        return _outcome(lambda: ("ready", self._make_context() and None))

    def do(self, task: Any, arrays: Callable[[], tuple[str, Any] | None], report: Report) -> tuple[str, Any]:
        """Do a task.

        Args:
            task: The task.
            arrays: Returns the key and the arrays that it reads, None for none.
            report: Sends a message about it.

        Returns:
            What came of it and more about that: `result`, `stopped`, `refused` (what any task needs cannot be made),
            `cannot write`, `failed` or `unexpected`.
        """

        def work() -> tuple[str, Any]:
            context = self._make_context()
            if (shared := arrays()) is not None:
                self._worker.receive(context, *shared)
            return "result", self._worker.work(context, task, report)

        return _outcome(work)

    def _make_context(self) -> Any:
        """Return the context of all tasks, which the first one makes."""
        with self._starting:
            if not self._started and not self._refusal:
                try:
                    self._context = self._worker.start(self._worker.setup)
                    self._started = True
                except HistError as error:
                    self._refusal = str(error)
                except Exception as error:  # of a device that is full or broken, say: other workers may do
                    self._refusal = kind_and_text(error)
            if self._refusal:
                raise _Refused(self._refusal)
        return self._context


def _outcome(work: Callable[[], tuple[str, Any]]) -> tuple[str, Any]:
    """What came of some work, in plain data: an error of a foreign package may exist in this process alone."""
    try:
        return work()
    except KeyboardInterrupt:
        return "stopped", None
    except ConnectionError:
        raise
    except _Refused as error:
        return "refused", str(error)
    except WriteError as error:
        return "cannot write", error
    except HistError as error:
        return "failed", str(error)
    except Exception as error:
        return "unexpected", (kind_and_text(error), traceback.format_exc())


class _PipeDesk:
    """Does tasks that come through a pipe: one in the main thread, which alone hears signals, or several in threads."""

    def __init__(self, pipe: Connection, worker: Worker[Any, Any]) -> None:
        self._pipe, self._desk, self._at_once = pipe, Desk(worker), worker.at_once
        self._sending = threading.Lock()
        show_warnings(lambda text: self._send("warning", 0, text))

    def work(self) -> None:
        """Do tasks until the pipe closes."""
        if self._at_once == 1:
            while True:
                self._do(*self._pipe.recv())
        with ThreadPoolExecutor(self._at_once, "task") as threads:
            try:
                while True:
                    threads.submit(self._do, *self._pipe.recv())
            finally:
                STOP.set()  # each thread ends with its next message

    def _send(self, kind: str, number: int, content: Any = None) -> None:
        with self._sending:
            self._pipe.send((kind, number, content))

    def _do(self, number: int, task: Any, folder: Path | None) -> None:
        def report(message: Any) -> None:
            if STOP.is_set():
                raise KeyboardInterrupt
            self._send("message", number, message)

        def arrays() -> tuple[str, Any] | None:
            return None if folder is None else (folder.name, map_arrays(folder))

        kind, content = self._desk.do(task, arrays, report)
        try:
            self._send(kind, number, content)
        except ConnectionError:
            raise
        except Exception as error:  # a result that cannot be pickled
            self._send("unexpected", number, (kind_and_text(error), traceback.format_exc()))


def end_with_parent() -> None:
    """End this process when its parent is killed: the same command, started again, shall find its folds free."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _get_ready(pipe: Connection, own_cores: list[int], gpu: str | None) -> Worker[Any, Any] | None:
    """Set up this process as a worker and receive its kind of work; None, after saying why, where that fails."""
    os.setpgid(0, 0)  # Ctrl-C on the terminal reaches the parent alone, which passes it on
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # also one that came before
    signal.signal(signal.SIGTERM, raise_interrupt)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    threading.Thread(target=end_with_parent, daemon=True).start()
    hush()  # the parent shows what there is to show
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, own_cores)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # before torch is imported, which reads it once
    try:
        claim_packages()  # before anything of ours is imported: the user's own train.py may stand first on the path
        import torch

        torch.set_num_threads(len(own_cores))
        worker: Worker[Any, Any] = pickle.loads(pipe.recv_bytes())
    except (EOFError, ConnectionError):
        raise
    except Exception as error:  # whatever a module raises that is imported
        pipe.send(("failed", 0, kind_and_text(error)))
        return None
    pipe.send(("ready", 0, None))
    return worker
