"""Masks of dropout for a CPU, where torch's own take several times as long: 16 random bits an element."""

from __future__ import annotations

import torch
from torch import Tensor

STEPS = 1 << 16
"""Probabilities are multiples of 1 / STEPS."""


def dropped_steps(p: float) -> int:
    """A probability below 1 in units of 1 / `STEPS`, rounded; below `STEPS` too."""
    return min(round(p * STEPS), STEPS - 1)


def keep_mask(like: Tensor, dropped: int) -> Tensor:
    """1 or 0 for each element of a tensor on the CPU, independently 0 with probability `dropped` / `STEPS`; bool."""
    words = torch.empty(-(-like.numel() // 4), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
    bits = words.view(torch.int16)[: like.numel()].view(like.shape)
    return bits >= torch.iinfo(torch.int16).min + dropped
