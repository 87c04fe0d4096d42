"""Whether there is a place, and room on its disk, for what will be written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from hist_cache.console import size
from hist_cache.errors import WriteError


def free_bytes(folder: Path) -> int:
    """Return the free bytes on the disk of a folder, which need not exist yet."""
    return shutil.disk_usage(_existing(folder)).free


def _existing(folder: Path) -> Path:
    """Return the folder, or the first one above it that is there."""
    return next(f for f in (folder, *folder.absolute().parents) if f.exists())


def check_room(folder: Path, needed: int, purpose: str, advice: str = "make room") -> None:
    """Check that a folder can be written to and that its disk has room, before anything is computed.

    Args:
        folder: Where files will be written; it need not exist yet.
        needed: Bytes that will be written at least.
        purpose: What for.
        advice: What the user can do.

    Raises:
        WriteError: It cannot be written to, or there is less room.
    """
    if needed and not (existing := _existing(folder)).is_dir():
        raise WriteError(existing, "no folder", "give a folder that can be written to")
    if needed and not os.access(existing, os.W_OK | os.X_OK):
        raise WriteError(existing, "cannot be written to", "give a folder that can be written to")
    if needed > (free := free_bytes(folder)):
        raise WriteError(folder, f"{size(needed)} needed for {purpose}, {size(free)} free", advice)
