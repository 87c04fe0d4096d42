"""Commands that start at once, and what else tests replace by something quicker unless they are marked `unpatched`.

- A process takes three to five seconds to import torch and what else a command needs. So the commands of tests, and
  their workers, are forked from a server that has imported all of it (`multiprocessing` calls it a fork server). It has
  one thread and has computed nothing: what it forks is like a new process, and inherits no pipes and no other state.
- A figure takes half a second to lay out and to draw, and a fold has three. All that is in it is still made, but
  `Figure.savefig` writes a blank picture of the same size. What is forked makes no figures of folds and studies at
  all, a third of a tiny fold's time and more of a study's: its tests look at processes, files and numbers.
- hist-train trains one fold at a time, in the process of the test, unless `--jobs` says otherwise.
- Nothing is measured: `--precision auto` is fp32, whatever the machine can do.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import threading
import types
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

import hist_cache.gang
import hist_cache.processes

REPOSITORY = Path(__file__).resolve().parents[1]
TIMEOUT_S = 200


@functools.cache
def fork_server() -> ForkServerContext:
    """The context of processes that begin with everything imported; the first call starts the server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preloaded"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        patch.setenv("OMP_NUM_THREADS", "1")  # a process must have one thread when it is forked
        for name in ("HIST_CACHE", "HIST_RUNS", "HIST_DATA", "HIST_TOML"):
            patch.delenv(name, raising=False)
        multiprocessing.forkserver.ensure_running()
    return context


class Command:
    """A process that runs a script; it can be used as a `subprocess.Popen` with text and all output in `stdout`.

    Args:
        script: As for `python -c`.
        argv: Its arguments.
        file: Where the script is said to be; its workers import it.
    """

    def __init__(self, script: str, argv: list[str], file: Path | None = None) -> None:
        reader, writer = fork_server().Pipe(duplex=False)
        self._process = fork_server().Process(target=_run_script, args=(script, argv, file, writer))
        self._process.start()
        writer.close()
        self.stdout = os.fdopen(os.dup(reader.fileno()))
        reader.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, number)

    def wait(self) -> None:
        self._process.join(TIMEOUT_S)

    def communicate(self, timeout: float = TIMEOUT_S) -> tuple[str, None]:
        """Wait for its end and return what it printed; one that takes longer is killed."""
        timer = threading.Timer(timeout, self.send_signal, [signal.SIGKILL])
        timer.start()
        text = self.stdout.read()
        self.wait()
        timer.cancel()
        return text, None

    def end(self) -> None:
        """Kill it where it still runs."""
        self.send_signal(signal.SIGKILL)
        self._process.join()
        self.stdout.close()


def _run_script(script: str, argv: list[str], file: Path | None, output: Connection) -> None:
    """Be the process of a `Command`."""
    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)
    output.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.version_info < (3, 14):  # workers of a command come from the server too, which later versions do not allow
        multiprocessing.forkserver._forkserver.ensure_running = lambda: None  # type: ignore[attr-defined]
        context = multiprocessing.get_context("forkserver")
        for module in (hist_cache.processes, hist_cache.gang):
            vars(module)["multiprocessing"] = types.SimpleNamespace(get_context=lambda how: context)
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    sys.argv = ["-c", *argv]
    if file is not None:
        main.__file__ = sys.argv[0] = str(file)
    exec(compile(script, str(file or "<string>"), "exec"), main.__dict__)


def blank_figure(figure: Any, file: Any, *, dpi: float = 100, **others: Any) -> None:
    """Write an empty PNG as large as the figure, in place of `Figure.savefig`."""
    from PIL import Image

    width, height = (round(inches * dpi) for inches in figure.get_size_inches())
    Image.new("L", (width, height), 255).save(file, format="PNG")


def blank_picture(path: Path, *others: Any) -> None:
    """Write a small empty PNG as figures are written, whole or not at all, in place of a figure of a fold."""
    from PIL import Image

    from hist_cache.files import atomic_write

    with atomic_write(path) as aside:
        Image.new("L", (8, 8), 255).save(aside, format="PNG")


def no_speedup(device: Any, width: int, rows: int) -> float:
    """Say that bf16 is no faster, in place of a measurement, so that `--precision auto` is the same everywhere."""
    return 1.0


def make_quick(patch: pytest.MonkeyPatch) -> None:
    """Replace in this process what takes long."""
    patch.setattr("matplotlib.figure.Figure.savefig", blank_figure)
    patch.setattr("train.experiments.runner.default_workers", lambda jobs, device: 1)
    patch.setattr("train.experiments.precision.measured_speedup", no_speedup)
    for module in ("processes", "gang"):
        where = f"hist_cache.{module}.multiprocessing"
        patch.setattr(where, types.SimpleNamespace(get_context=lambda how: fork_server()))
