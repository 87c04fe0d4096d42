"""Whether the process still lives that left a file or holds a lock."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil

CLOCKS_S = 24 * 3600  # how far the clock of a file server may be from that of this machine


@cache
def this_machine() -> str:
    """Return what the numbers of processes belong to: this boot of this machine, and this container.

    Two machines may have the same name, and a container sees other numbers than its machine.
    """
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}-{os.stat('/proc/self/ns/pid').st_ino}"
    return socket.gethostname()  # where there is no Linux


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
