"""Write files so that nobody reads a half-written one: write under another name, sync to disk, rename."""

from __future__ import annotations

import errno
import glob
import io
import json
import os
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hist_cache.errors import HistError, WriteError
from hist_cache.living import may_be_at_work

PARTIAL = ".partial"  # ending of a file that is being written
HOST = re.sub(r"[^A-Za-z0-9-]", "_", socket.gethostname())
WRITER = re.compile(r"\.(?P<host>[A-Za-z0-9_-]+)-(?P<pid>\d+)-[0-9a-f]{8}\.partial")
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # no space, no quota, larger than the file system or a limit allows


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write a file under a name of its own and rename it to `path` when it is complete.

    Every writer has another name, `path`.<host>-<process>-<random>.partial. So two that write the same file at once,
    where no lock holds them apart, never write into each other's: the last one that is complete stays.

    Args:
        path: The file to write. Missing folders above it are created.

    Yields:
        The path to write to. On success the file is synced to disk and becomes `path`; on failure it is removed.

    Raises:
        WriteError: The disk is full, or nothing can be written there for another reason.
    """
    partial_path = path.with_name(f"{path.name}.{HOST}-{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_partial_files(path)
        yield partial_path
        sync(partial_path)
        os.replace(partial_path, path)
        sync(path.parent)
    except BaseException as error:
        with suppress(OSError):
            partial_path.unlink(missing_ok=True)
        if isinstance(error, FileNotFoundError) and str(error.filename) == str(partial_path):
            problem = "was removed while it was written, as if its writer were gone; run the same command again"
            raise HistError(f"{partial_path}: {problem}") from error
        places = {str(partial_path), str(path), *map(str, path.parents)}
        if isinstance(error, OSError) and error.errno and str(error.filename or path) in places:
            raise write_error(error, path.parent) from error
        raise


@contextmanager
def atomic_file(path: Path) -> Iterator[LateErrorFile]:
    """Like `atomic_write`, for libraries that do not survive a failed write (HDF5, torch).

    Yields:
        An open file to give to the library. A write that failed is raised as `WriteError` at the end of the block.
    """
    with atomic_write(path) as partial_path, LateErrorFile(partial_path, "w+") as file:
        try:
            yield file
        finally:
            file.check()


class LateErrorFile(io.FileIO):
    """A binary file that keeps the first error of a write to itself, and from then on writes nothing.

    HDF5 crashes, now or as the process ends, when it closes a file whose last writes failed.
    """

    error: OSError | None = None

    def check(self) -> None:
        """Raise the error of the write that failed, if there is one."""
        if self.error is not None:
            raise self.error

    def write(self, data: Any) -> int:
        """Write all of `data`, or nothing any more."""
        part = memoryview(data).cast("B")
        n_bytes = len(part)
        try:
            while part and self.error is None:
                part = part[super().write(part) :]
        except OSError as error:
            self.error = error
        self.seek(len(part), os.SEEK_CUR)
        return n_bytes

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer; what was not written is zero, as where a file has holes."""
        part = memoryview(buffer).cast("B")
        n_bytes = super().readinto(part) or 0
        if self.error is not None:
            part[n_bytes:] = bytes(len(part) - n_bytes)
        return n_bytes

    def truncate(self, size: int | None = None) -> int:
        """Make the file so long."""
        try:
            if self.error is None:
                super().truncate(size)
        except OSError as error:
            self.error = error
        return self.tell() if size is None else size


def write_error(error: OSError, place: Path | str) -> WriteError:
    """Return the error that says which folder cannot be written to, why, and what to do."""
    reason = error.strerror or str(error)
    return WriteError(place, reason, "make room" if error.errno in FULL else "give a folder that can be written to")


def partial_files_of(path: Path) -> list[Path]:
    """Incomplete files that shall become `path`, of this and of other writers; 0.1 wrote to `path`.partial."""
    return sorted(path.parent.glob(f"{glob.escape(path.name)}.*partial"))


def remove_partial_files(path: Path) -> None:
    """Remove the incomplete files that dead writers of `path` have left."""
    for leftover in partial_files_of(path):
        if not writer_may_live(leftover):
            leftover.unlink(missing_ok=True)


def writer_may_live(partial_path: Path) -> bool:
    """Whether the writer of an incomplete file may still be at it: a living process here, or any on another host."""
    writer = WRITER.search(partial_path.name)
    if writer is None:
        return False  # of version 0.1, whose writers held a lock
    return writer["host"] != HOST or may_be_at_work(int(writer["pid"]), partial_path)


def sync(path: Path) -> None:
    """Make the system write the contents of a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some network file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 with `atomic_write`, unless it has this text: its folder may be read-only by now."""
    with suppress(OSError, UnicodeDecodeError):
        if path.read_bytes().decode("utf-8") == text:
            return
    with atomic_write(path) as partial_path:
        partial_path.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, indented, with `atomic_write`.

    Raises:
        ValueError: `value` contains NaN or infinity, which JSON does not have.
    """
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")
