"""Whether a disk has room for what will be written."""

from __future__ import annotations

import shutil
from pathlib import Path

from hist_cache.console import size
from hist_cache.errors import WriteError


def free_bytes(folder: Path) -> int:
    """Return the free bytes on the disk of a folder, which need not exist yet."""
    existing = next(f for f in (folder, *folder.absolute().parents) if f.exists())
    return shutil.disk_usage(existing).free


def check_room(folder: Path, needed: int, purpose: str, advice: str = "make room") -> None:
    """Check that a disk has room, before anything is computed.

    Args:
        folder: Where files will be written; it need not exist yet.
        needed: Bytes that will be written at least.
        purpose: What for.
        advice: What the user can do.

    Raises:
        WriteError: There is less room.
    """
    if needed > (free := free_bytes(folder)):
        raise WriteError(folder, f"{size(needed)} needed for {purpose}, {size(free)} free", advice)
