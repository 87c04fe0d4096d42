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
import torch.nn.functional as F
from torch import Tensor

from extract.encoders.encoder import Encoder, Interpolation

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


def resize(crops: Tensor, size: int, interpolation: Interpolation) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, size, size) uint8, channels last in memory."""
    images = crops.permute(0, 3, 1, 2)
    if images.shape[-2:] == (size, size):
        return images
    if images.device.type == "cpu":
        return F.interpolate(images, (size, size), mode=interpolation, antialias=True, align_corners=False)
    return resize_float(images, size, interpolation)


def resize_float(images: Tensor, size: int, interpolation: Interpolation) -> Tensor:
    """The same, by the float kernel: along x, then along y, each pass rounded to 0..255 as Pillow's are."""
    for shape in ((images.shape[2], size), (size, size)):
        scaled = F.interpolate(images.float(), shape, mode=interpolation, antialias=True, align_corners=False)
        images = scaled.round_().clamp_(0, 255)
    return images.to(torch.uint8)


class Normalizer:
    """(x / 255 - mean) / std, written into a batch; mean and std (3,), of values in 0..1.

    Works on whole rows of interleaved RGB (broadcasting over a last axis of 3 is ten times slower on a CPU), in a
    buffer that each thread keeps (fresh memory costs more than the arithmetic).
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], size: int, device: torch.device) -> None:
        m, s = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        self._scale = (1 / (255 * s)).float().repeat(size).to(device)
        self._shift = (-m / s).float().repeat(size).to(device)
        self._kept = threading.local()

    def __call__(self, images: Tensor, out: Tensor) -> None:
        """images (n, 3, S, S) uint8 -> out (n, 3, S, S) of any float type; both channels last in memory."""
        width = len(self._scale)
        rows, out_rows = (
            images.permute(0, 2, 3, 1).reshape(-1, width),
            out.permute(0, 2, 3, 1).view(-1, width),
        )
        # A CPU goes image by image, so that the buffer stays in the cache.
        block = images.shape[2] if images.device.type == "cpu" else len(rows)
        buffer = getattr(self._kept, "rows", None)
        if buffer is None or len(buffer) < block:
            buffer = self._kept.rows = torch.empty((block, width), dtype=torch.float32, device=images.device)
        for part, target in zip(rows.split(block), out_rows.split(block), strict=True):
            values = buffer[: len(part)].copy_(part)
            target.copy_(torch.addcmul(self._shift, values, self._scale, out=values))
