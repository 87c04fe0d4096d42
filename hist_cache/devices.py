"""What a command computes on: a GPU where there is one, or the device that `--device` names."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from hist_cache.errors import InputError

if TYPE_CHECKING:  # `--help` does without torch
    import torch

AUTO = "auto"
DEVICE_HELP = "auto (a GPU where there is one), cpu, cuda, or cuda:N for one of several GPUs"


def choose_device(asked: str = AUTO) -> torch.device:
    """Return the device to compute on, which torch then uses for all that names none.

    Args:
        asked: The value of `--device`.

    Raises:
        InputError: There is no such device here. The CPU is never taken in its place.
    """
    import torch

    if asked == AUTO:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,4})?", asked):
        raise InputError(f"--device {asked}: one of auto, cpu, cuda, cuda:0, cuda:1, ...")
    device = torch.device(asked)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            why = "torch finds none here" if torch.version.cuda else f"torch {torch.__version__} is built without CUDA"
            raise InputError(f"--device {asked}: no GPU ({why}); give --device cpu, or leave it out")
        if device.index is not None and device.index >= torch.cuda.device_count():
            names = ", ".join(f"cuda:{i}" for i in range(torch.cuda.device_count()))
            raise InputError(f"--device {asked}: no such GPU; there are {names}")
    use_device(device)
    return device


def use_device(device: torch.device) -> None:
    """Have a new thread or process use this GPU, also for pinned memory: each begins with the first one."""
    import torch

    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def visible_gpus(device: torch.device) -> list[str]:
    """Names, as CUDA_VISIBLE_DEVICES has them, of the GPUs that workers share out among them.

    Args:
        device: That `choose_device` returned. None are shared out where it is the CPU, or one GPU that was asked for.
    """
    import torch

    if device.type != "cuda" or device.index is not None:
        return []
    count = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return names.split(",")[:count]  # CUDA ignores those from the first wrong one on


def device_name(device: torch.device) -> str:
    """Name a device for messages: the GPU's name, or the CPU and whether there was no choice."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "the CPU" if torch.cuda.is_available() else "the CPU (no GPU found)"
