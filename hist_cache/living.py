"""Whether the process still lives that left a file or holds a lock."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil

CLOCKS_S = 24 * 3600  # how far the clock of a file server may be from that of this machine


def began(pid: int) -> int | None:
    """When a process of this machine began, in seconds; None where it does not live.

    With the number alone, another process that got the same number later would pass for it.
    """
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            since: int = round(process.create_time())
            return since
    return None


def may_be_at_work(pid: int, file: Path) -> bool:
    """Whether the process of this number may be the one that writes a file or folder.

    It is another one that got the same number if it began long after the last writing.
    """
    since = began(pid)
    try:
        return since is not None and since <= file.stat().st_mtime + CLOCKS_S
    except FileNotFoundError:  # its writer has finished it or removed it by now
        return False
