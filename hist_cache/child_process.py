"""A program in a process of its own, for libraries that may crash or never come back from a damaged file.

The process has a limit of its memory, is asked one thing at a time, and is not waited for without end. Its programs
are Python files (see `hist_cache.child_main`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from hist_cache import child_main
from hist_cache.child_main import ANSWER_HEAD
from hist_cache.errors import one_line
from hist_cache.memory import free_memory

CHILD_START_S = 300.0  # to import libraries: minutes from a network disk that nobody has read yet

# OpenBLAS reserves addresses for each thread, so that on a node with many cores the limit would not suffice for numpy.
ONE_THREAD = {name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}


class ChildEndedError(Exception):
    """The process ended, or did not answer in time; the text goes on after the name of what it runs."""


class ChildAnswerError(Exception):
    """The program raised an error, with this text; the process lives."""


class ChildProcess:
    """A process that runs a program.

    Args:
        program: The program's file.
        arguments: Those of its `main`.
        memory: Bytes of addresses that the process may take.

    Raises:
        ChildEndedError: It does not start.
        ChildAnswerError: The program raised an error as it started.
    """

    def __init__(self, program: Path, *arguments: str, memory: int) -> None:
        self._late = threading.Event()
        self._process = subprocess.Popen(
            [sys.executable, "-P", child_main.__file__, str(program), str(memory), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | ONE_THREAD,
        )
        try:
            self._talk(b"", CHILD_START_S)
        except ChildEndedError as error:
            self.close()
            raise ChildEndedError(f"does not start: it {error}") from error
        except BaseException:
            self.close()
            raise

    def ask(self, request: Any, patience_s: float) -> bytes:
        """Send a request and wait for its answer.

        Args:
            request: Anything that JSON can hold.
            patience_s: How long to wait; then the process is killed.

        Raises:
            ChildEndedError: The process ended, or did not answer in time.
            ChildAnswerError: The program raised an error.
        """
        return self._talk(json.dumps(request).encode() + b"\n", patience_s)

    def _talk(self, line: bytes, patience_s: float) -> bytes:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        timer = threading.Timer(patience_s, self._give_up)
        timer.start()
        try:
            stdin.write(line)
            stdin.flush()
            head = stdout.read(ANSWER_HEAD.size)
            failed, n_bytes = ANSWER_HEAD.unpack(head) if len(head) == ANSWER_HEAD.size else (False, -1)
            data = stdout.read(n_bytes) if n_bytes >= 0 else b""
        except BrokenPipeError:
            failed, n_bytes, data = False, -1, b""
        finally:
            timer.cancel()
        if len(data) != n_bytes:
            code = self._process.wait()
            if self._late.is_set():
                raise ChildEndedError(f"does not answer within {round(patience_s, 1):g} s")
            raise ChildEndedError(f"ends with {signal.Signals(-code).name if code < 0 else f'code {code}'}")
        if failed:
            raise ChildAnswerError(one_line(OSError(data.decode(errors="replace"))))
        return data

    def _give_up(self) -> None:
        self._late.set()
        self._process.kill()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        self._process.wait()


def child_memory(least: int) -> int:
    """Bytes of addresses that a process may take: half of the free memory, but no less than `least`."""
    return max(least, int(free_memory() / 2))
