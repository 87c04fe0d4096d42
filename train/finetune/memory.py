"""Whether many gigabytes fit on the device, in memory, or only on the disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import psutil
import torch

Place = Literal["device", "memory", "disk"]
SHARE = 0.5  # of what is free that inputs may take: the rest is for the encoder and its activations
CONTAINER = Path("/sys/fs/cgroup")  # limits of a container (cgroup v2), which psutil does not look at


def choose_place(n_bytes: int, device: torch.device, share: float = SHARE) -> Place:
    """Where many bytes are kept: as near the device as they fit.

    On a CPU its memory is that of the device: "memory". Processes that torchrun started on this machine share it.

    Args:
        n_bytes: How many.
        device: Where they are used.
        share: The share of what is free that they may take.
    """
    if device.type == "cuda" and n_bytes <= share * torch.cuda.mem_get_info(device)[0]:
        return "device"
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return "memory" if n_bytes <= share / processes * free_memory() else "disk"


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
