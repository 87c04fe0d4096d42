"""Whether many gigabytes fit on the device, in memory, or only on the disk."""

from __future__ import annotations

import os
from typing import Literal

import torch

from hist_cache.memory import free_memory

Place = Literal["device", "memory", "disk"]
SHARE = 0.5  # of what is free that inputs may take: the rest is for the encoder and its activations


def free_gpu_memory(device: torch.device) -> int:
    """Bytes that this process may still take there: what the GPU has free, and what torch keeps of freed tensors."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def choose_place(n_bytes: int, device: torch.device, share: float = SHARE) -> Place:
    """Where many bytes are kept: as near the device as they fit.

    On a CPU its memory is that of the device: "memory". Processes that torchrun started on this machine share it.

    Args:
        n_bytes: How many.
        device: Where they are used.
        share: The share of what is free that they may take.
    """
    if device.type == "cuda" and n_bytes <= share * free_gpu_memory(device):
        return "device"
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return "memory" if n_bytes <= share / processes * free_memory() else "disk"
