"""A first reading of an HDF5 file in a process of its own: on damaged bytes HDF5 may crash, or never return.

One such process serves all files of a command, one after the other. A file that ends it, or that it does not come back
from, is not opened in this process at all.
"""

from __future__ import annotations

import atexit
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from hist_cache.memory import free_memory

TRIAL_MEMORY = 1 << 30  # bytes of addresses that the process may take at least
TRIAL_S = 30  # for a file, and as long again for each
BYTES_A_SECOND = 5e6  # of it: slow network disks are faster

# What the process does: it reads all that a line names, a file and the parts of it, and answers with a line. An error
# in Python is no news: it will be met again by whoever reads the file, who can say what is wrong.
TRIAL = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
try:
    import resource
    limit = resource.getrlimit(resource.RLIMIT_AS)[1]
    memory = int(sys.argv[1])
    if limit == resource.RLIM_INFINITY or memory < limit:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
except ImportError:  # Windows
    pass
import h5py

def read(item, seen):
    address = h5py.h5o.get_info(item.id).addr
    if address in seen:
        return
    seen.add(address)
    dict(item.attrs)
    if isinstance(item, h5py.Group):
        for key in item:
            if isinstance(item.get(key, getlink=True), h5py.HardLink):
                read(item[key], seen)
    elif not item.is_virtual and not item.external and item.size and item.nbytes < memory / 4:
        item[...]

for line in sys.stdin:
    path, *parts = line.rstrip("\\n").split("\\t")
    try:
        with h5py.File(path, "r", locking=False) as file:
            for part in parts:
                if part in file and isinstance(file.get(part, getlink=True), h5py.HardLink):
                    read(file[part], set())
    except Exception:
        pass
    print("read", flush=True)
"""


class TrialReader:
    """The process; it starts with the first file, and again after a file that ended it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._done: dict[tuple[str, int, int], str] = {}
        atexit.register(self.close)

    def problem(self, path: Path, parts: Sequence[str]) -> str:
        """Return what happens to a process that reads these parts of a file; empty where nothing does."""
        stat = path.stat()
        key = (str(path), stat.st_size, stat.st_mtime_ns)
        with self._lock:
            if key not in self._done:
                self._done[key] = self._try(path, parts, TRIAL_S + stat.st_size / BYTES_A_SECOND)
            return self._done[key]

    def _try(self, path: Path, parts: Sequence[str], patience_s: float) -> str:
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Event()

        def give_up() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(patience_s, give_up)
        timer.start()
        try:
            process.stdin.write("\t".join([str(path.absolute()), *parts]) + "\n")
            process.stdin.flush()
            answered = process.stdout.readline() == "read\n"
        except BrokenPipeError:
            answered = False
        finally:
            timer.cancel()
        if answered:
            return ""
        self.close()
        if late.is_set():
            return f"HDF5 does not come back from it within {patience_s:.0f} s"
        code = process.returncode
        return f"HDF5 ends with {signal.Signals(-code).name if code < 0 else f'code {code}'} on it"

    def _start(self) -> subprocess.Popen[str]:
        memory = max(TRIAL_MEMORY, int(free_memory() / 2))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", TRIAL, str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        return self._process

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


@cache
def trial_reader() -> TrialReader:
    """The one of this process."""
    return TrialReader()
