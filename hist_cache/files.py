"""Write files so that nobody reads a half-written one: write under another name, sync to disk, rename."""

from __future__ import annotations

import glob
import json
import os
import re
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

PARTIAL = ".partial"  # ending of a file that is being written
HOST = re.sub(r"[^A-Za-z0-9-]", "_", socket.gethostname())
WRITER = re.compile(r"\.(?P<host>[A-Za-z0-9_-]+)-(?P<pid>\d+)-[0-9a-f]{8}\.partial")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write a file under a name of its own and rename it to `path` when it is complete.

    Every writer has another name, `path`.<host>-<process>-<random>.partial. So two that write the same file at once,
    where no lock holds them apart, never write into each other's: the last one that is complete stays.

    Args:
        path: The file to write. Missing folders above it are created.

    Yields:
        The path to write to. On success the file is synced to disk and becomes `path`; on failure it is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in partial_files_of(path):
        if not _writer_may_live(leftover):
            leftover.unlink(missing_ok=True)
    partial_path = path.with_name(f"{path.name}.{HOST}-{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}")
    try:
        yield partial_path
        sync(partial_path)
        os.replace(partial_path, path)
        sync(path.parent)
    except BaseException:
        partial_path.unlink(missing_ok=True)
        raise


def partial_files_of(path: Path) -> list[Path]:
    """Incomplete files that shall become `path`, of this and of other writers; 0.1 wrote to `path`.partial."""
    return sorted(path.parent.glob(f"{glob.escape(path.name)}.*partial"))


def _writer_may_live(partial_path: Path) -> bool:
    """Whether the writer of an incomplete file may still be at it: a living process here, or any on another host."""
    writer = WRITER.search(partial_path.name)
    if writer is None:
        return False  # of version 0.1, whose writers held a lock
    return writer["host"] != HOST or psutil.pid_exists(int(writer["pid"]))


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
    """Write a text file in UTF-8 with `atomic_write`."""
    with atomic_write(path) as partial_path:
        partial_path.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, indented, with `atomic_write`.

    Raises:
        ValueError: `value` contains NaN or infinity, which JSON does not have.
    """
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")
