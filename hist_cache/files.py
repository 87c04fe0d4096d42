"""Write files so that nobody reads a half-written one: write under another name, sync to disk, rename."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTIAL = ".partial"  # suffix of a file that is being written


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write a file under the name `path`.partial and rename it to `path` when it is complete.

    Args:
        path: The file to write. Missing folders above it are created.

    Yields:
        The path to write to. On success the file is synced to disk and becomes `path`; on failure it is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_name(path.name + PARTIAL)
    try:
        yield partial_path
        sync(partial_path)
        os.replace(partial_path, path)
        sync(path.parent)
    except BaseException:
        partial_path.unlink(missing_ok=True)
        raise


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
