"""From crops to a batch of encoder inputs on the device: the one place that knows CPU from GPU.

A CPU resizes where the pixels are, in the threads that cut them, straight into the batch. A GPU gets raw uint8
pixels from pinned memory and resizes there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from extract.encoders import Encoder
from extract.resize import Normalizer, resize

Cut = Callable[[np.ndarray], None]  # fills (n, side, side, 3)


@dataclass
class Inputs:
    """How crops become input for one encoder on one device."""

    encoder: Encoder
    device: torch.device
    dtype: torch.dtype
    _normalize: Normalizer = field(init=False)

    def __post_init__(self) -> None:
        e = self.encoder
        self._normalize = Normalizer(e.mean, e.std, e.input_size, self.device)

    def fill(self, crops: Tensor, out: Tensor) -> None:
        """(n, side, side, 3) uint8 on the device -> out (n, 3, S, S), resized and normalised."""
        self._normalize(resize(crops, self.encoder.input_size, self.encoder.interpolation), out)

    def new_batch(self, n: int) -> Batch:
        return CpuBatch(self, n) if self.device.type == "cpu" else GpuBatch(self, n)

    def empty(self, n: int) -> Tensor:
        size = self.encoder.input_size
        return torch.empty((n, 3, size, size), dtype=self.dtype, device=self.device, memory_format=torch.channels_last)


class Batch(Protocol):
    """n inputs in the making."""

    def put(self, start: int, shape: tuple[int, ...], cut: Cut) -> None:
        """Have `cut` fill pixels of `shape` (k, side, side, 3) and keep them as inputs start..start+k; thread-safe."""

    def take(self) -> Tensor:
        """(n, 3, S, S) on the device."""


class CpuBatch:
    _scratch = threading.local()  # fresh memory for every crop costs more (page faults) than cutting it

    def __init__(self, inputs: Inputs, n: int) -> None:
        self._inputs, self._out = inputs, inputs.empty(n)

    def put(self, start: int, shape: tuple[int, ...], cut: Cut) -> None:
        size = int(np.prod(shape))
        scratch = getattr(self._scratch, "pixels", None)
        if scratch is None or scratch.size < size:
            scratch = self._scratch.pixels = np.empty(size, dtype=np.uint8)
        pixels = scratch[:size].reshape(shape)
        cut(pixels)
        self._inputs.fill(torch.from_numpy(pixels), self._out[start : start + shape[0]])

    def take(self) -> Tensor:
        return self._out


class GpuBatch:
    def __init__(self, inputs: Inputs, n: int) -> None:
        self._inputs, self._n = inputs, n
        self._chunks: list[tuple[int, Tensor]] = []

    def put(self, start: int, shape: tuple[int, ...], cut: Cut) -> None:
        pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        cut(pixels.numpy())
        self._chunks.append((start, pixels))

    def take(self) -> Tensor:
        out = self._inputs.empty(self._n)
        for start, pixels in self._chunks:
            crops = pixels.to(self._inputs.device, non_blocking=True)
            self._inputs.fill(crops, out[start : start + len(crops)])
        return out
