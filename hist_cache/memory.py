"""How much memory this process may still take."""

from __future__ import annotations

from pathlib import Path

import psutil

CONTAINER = Path("/sys/fs/cgroup")  # limits of a container (cgroup v2), which psutil does not look at


def free_memory() -> float:
    """Bytes of memory that this process may still take, by the machine and by its container's limit."""
    return min(float(psutil.virtual_memory().available), _free_of_container())


def _free_of_container() -> float:
    """Infinite where there is no limit; cached files count as free, the system drops them on demand."""
    try:
        limit = (CONTAINER / "memory.max").read_text().strip()
        used = int((CONTAINER / "memory.current").read_text())
        statistics = dict(line.split() for line in (CONTAINER / "memory.stat").read_text().splitlines())
    except OSError:
        return float("inf")
    if limit == "max":
        return float("inf")
    return max(0, int(limit) - used + int(statistics.get("inactive_file", 0)))
