"""A first reading of an HDF5 file in a process of its own: on damaged bytes HDF5 may crash, or never return.

One such process serves all files of a command, one after the other. A file that ends it, or that it does not come back
from, is not opened in this process at all.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from hist_cache.child_process import ChildAnswerError, ChildEndedError, ChildProcess, child_memory

READER_PROGRAM = Path(__file__).with_name("first_reading_program.py")
READER_MEMORY = 1 << 30  # bytes of addresses that the process may take at least
READER_PATIENCE_S = 300.0  # for a file, and as long again for each
BYTES_A_SECOND = 5e6  # of it: slow network disks are faster


class FirstReader:
    """The process; it starts with the first file, and again after a file that ended it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: ChildProcess | None = None
        self._done: dict[tuple[object, ...], str] = {}
        atexit.register(self.close)

    def problem(self, path: Path, parts: Sequence[str], values: bool = True) -> str:
        """Return what happens to a process that reads these parts of a file; empty where nothing does.

        Args:
            path: The file.
            parts: Names of what is read in it.
            values: Whether the values of arrays are read too, or only names, shapes and attributes.
        """
        stat = path.stat()
        key = (str(path), stat.st_size, stat.st_mtime_ns, *parts, values)
        with self._lock:
            if key not in self._done:
                request = (str(path.absolute()), list(parts), values)
                self._done[key] = self._read(request, READER_PATIENCE_S + stat.st_size / BYTES_A_SECOND)
            return self._done[key]

    def _read(self, request: tuple[str, list[str], bool], patience_s: float) -> str:
        try:
            if self._process is None:
                memory = child_memory(READER_MEMORY)
                self._process = ChildProcess(READER_PROGRAM, str(memory), memory=memory)
            self._process.ask(request, patience_s)
        except ChildAnswerError as error:
            return f"HDF5 does not start: {error}"
        except ChildEndedError as error:
            self.close()
            return f"HDF5 {error}"
        return ""

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.close()
            self._process = None


@cache
def first_reader() -> FirstReader:
    """The one of this process."""
    return FirstReader()
