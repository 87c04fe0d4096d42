"""The journal file of a study: a line for each change, written under a lock that names its holder.

A process can be killed at any moment, and a disk can be full. So the lock of a dead process is removed, and a last line
that is not complete is cut off: whatever it was to tell has not happened. Readers leave such a line out anyway.

The lock is the symbolic link that Optuna makes too (`journal.log.lock`), because symbolic links are made atomically
on network file systems also where files cannot be locked, and because `optuna-dashboard` respects it. Optuna's points
at the journal and names nobody; ours points at its holder.
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend

from hist_cache.errors import InputError
from hist_cache.files import HOST
from hist_cache.living import began
from sweeps.waiting import SAY_AFTER_S, StorageLost

log = logging.getLogger(__name__)

LOCK_ENDING = ".lock"
WAIT_S = 60.0  # for a living process of this machine
OTHER_HOST_S = 30.0  # then the holder on another machine counts as dead: a line takes milliseconds
CLOCK_S = 5  # how much a clock that is set right may change when a process began
NAMELESS_S = 2.0  # the same for a lock that Optuna made
_HOLDER = re.compile(r"(?P<host>[A-Za-z0-9_-]+)\.(?P<pid>\d+)\.(?P<began>\d+)\.[0-9a-f]+")
_held: set[str] = set()  # the locks that this process holds


class JournalLock:
    """A lock that one process holds while it writes a line.

    Args:
        journal: The journal's path.
    """

    def __init__(self, journal: Path) -> None:
        self.file = journal.with_name(journal.name + LOCK_ENDING)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the lock.

        Raises:
            StorageLost: Its holder lives and does not release it.
        """
        own = f"{HOST}.{os.getpid()}.{began(os.getpid())}.{secrets.token_hex(8)}"
        try:
            self._acquire(own)
            yield
        finally:
            if self._holder() == own:  # an interrupt may come between making the link and knowing of it
                self.file.unlink(missing_ok=True)
            _held.discard(own)

    def _acquire(self, own: str) -> None:
        _held.add(own)
        pause, seen, since, said = 0.001, "", time.monotonic(), False
        while True:
            with suppress(FileExistsError):
                os.symlink(own, self.file)
                return
            holder, now = self._holder(), time.monotonic()
            if holder is None:
                continue
            if holder != seen:
                seen, since = holder, now
            waited = now - since
            if waited > SAY_AFTER_S and not said:
                log.warning(f"waiting for the journal's lock ({self.file} -> {holder})")
                said = True
            patience = _patience(holder)
            if patience is not None and waited >= patience:
                self._remove(holder)
            elif waited > WAIT_S:
                raise StorageLost(
                    f"{self.file}: held for {WAIT_S:.0f} s by process {holder.split('.')[1]}, which lives and seems to "
                    "hang; end it, then the same command goes on"
                )
            time.sleep(pause)
            pause = min(pause * 2, 0.2)

    def _holder(self) -> str | None:
        """Where the link points; for a lock that is no link, an empty text."""
        try:
            return os.readlink(self.file)
        except FileNotFoundError:
            return None
        except OSError:
            return ""

    def _remove(self, holder: str) -> None:
        """Remove a dead process's lock; of several that see it, one does."""
        breaker = FileLock(self.file.with_name(f".{self.file.name}.broken"), timeout=WAIT_S)
        with breaker:
            if self._holder() != holder:
                return
            self.file.unlink(missing_ok=True)
        log.warning(f"{self.file}: removed, its holder is dead ({holder or 'no name'})")


def _patience(holder: str) -> float | None:
    """How long a lock is left to its holder: None for a living process of this machine."""
    match = _HOLDER.fullmatch(holder)
    if match is None:
        return NAMELESS_S
    if match["host"] != HOST:
        return OTHER_HOST_S
    if int(match["pid"]) == os.getpid():
        return None if holder in _held else 0.0
    since = began(int(match["pid"]))
    if since is None:
        return 0.0
    return None if abs(since - int(match["began"])) <= CLOCK_S else NAMELESS_S  # else its number has been taken again


class Journal(JournalFileBackend):
    """The journal file as Optuna's storage reads and writes it.

    Args:
        path: Of the file, which is made where it is missing.

    Raises:
        InputError: A line before the last one is damaged.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path
        self._lock_file = JournalLock(path)
        self._thread = threading.Lock()
        with self._lock_file.hold():
            repair(path)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write lines, all or none of them.

        Raises:
            StorageLost: They could not be written.
        """
        data = "".join(json.dumps(entry, separators=(",", ":")) + "\n" for entry in logs).encode()
        try:
            with self._thread, self._lock_file.hold():
                self._append(data)
        except OSError as error:
            raise StorageLost(
                f"{self.path}: cannot be written ({error.strerror or error}); the same command goes on with the study"
            ) from None

    def _append(self, data: bytes) -> None:
        end = cut_torn_line(self.path)
        with self.path.open("ab", buffering=0) as file:
            try:
                written = 0
                while written < len(data):
                    written += file.write(data[written:]) or 0
            except BaseException:
                if os.fstat(file.fileno()).st_size < end + len(data):  # nobody has read a line without its end
                    file.truncate(end)
                raise
            os.fsync(file.fileno())


def cut_torn_line(path: Path) -> int:
    """Cut off what follows the last end of a line, and return the size then; the caller holds the lock."""
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        kept = size
        while kept:
            start = max(0, kept - 4096)
            file.seek(start)
            found = file.read(kept - start).rfind(b"\n")
            if found >= 0:
                kept = start + found + 1
                break
            kept = start
        if kept < size:
            file.truncate(kept)
            log.warning(
                f"{path}: cut off its last {size - kept} bytes, a line that is not complete: a process was killed "
                "while it wrote, or the disk was full"
            )
    return kept


def repair(path: Path) -> None:
    """Make a journal one that can be read and written; the caller holds the lock.

    A torn last line is cut off. Earlier versions could write another line behind a torn one: the torn part is then
    overwritten by spaces.

    Raises:
        InputError: Another line is damaged, so that nobody knows what it said.
    """
    cut_torn_line(path)
    with path.open("r+b") as file:
        lines = list(file)
        position = 0
        for number, line in enumerate(lines, 1):
            begin = _entry_begin(line)
            if begin is None and number < len(lines):
                raise _damaged_line(path, number)
            if begin is None:
                file.truncate(position)
                log.warning(f"{path}: cut off its last line, which is damaged")
            elif begin:
                file.seek(position)
                file.write(b" " * begin)
                log.warning(f"{path}: line {number} began with a torn one, which is taken out")
            position += len(line)


class JournalCopy(BaseJournalBackend):
    """What a journal holds now, for a look at its study that writes nothing.

    Args:
        path: Of the file.

    Raises:
        InputError: A line before the last one is damaged.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            lines = list(file)
        self._entries: list[dict[str, Any]] = []
        for number, line in enumerate(lines, 1):
            begin = _entry_begin(line)
            if begin is not None:
                self._entries.append(json.loads(line[begin:]))
            elif number < len(lines):
                raise _damaged_line(path, number)

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        """Return the entries from a number on."""
        return self._entries[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Refuse to write."""
        raise NotImplementedError


def _damaged_line(path: Path, number: int) -> InputError:
    return InputError(f"{path}: line {number} is damaged; restore it, or move it away to begin anew")


def _entry_begin(line: bytes) -> int | None:
    """Where the entry in a line begins, which may be behind a torn one; None where there is none."""
    if _is_entry(line):
        return 0
    begin = line.rfind(b'{"op_code"')
    return begin if begin > 0 and _is_entry(line[begin:]) else None


def _is_entry(line: bytes) -> bool:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(entry, dict) and isinstance(entry.get("op_code"), int)
