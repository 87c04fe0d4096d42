"""From crops to a batch of encoder inputs on the device. Only this file treats CPU and GPU differently.

On a CPU, the threads that cut crops also resize them, directly into the batch. A GPU gets raw uint8 pixels from pinned
memory and resizes them itself.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from extract.encoders.encoder import Encoder, Interpolation

_T = TypeVar("_T")
Cut = Callable[[np.ndarray], None]  # fills (n, side, side, 3) uint8

MAX_QUEUED_BATCHES = 2


class CropTransform:
    """Turns crops into the input of one encoder on one device: resized and normalised.

    Args:
        encoder: Its input size, interpolation, mean and standard deviation are used.
        device: Where the inputs are to be.
        dtype: Type of the inputs.
    """

    def __init__(self, encoder: Encoder, device: torch.device, dtype: torch.dtype) -> None:
        self.encoder, self.device, self.dtype = encoder, device, dtype
        self._normalize = Normalizer(encoder.mean, encoder.std, encoder.input_size, device)

    def fill(self, crops: Tensor, out: Tensor) -> None:
        """Resize and normalise crops.

        Args:
            crops: (n, side, side, 3) uint8 on the device.
            out: (n, 3, S, S), filled; channels last in memory.
        """
        self._normalize(resize(crops, self.encoder.input_size, self.encoder.interpolation), out)

    def new_batch(self, n: int) -> CropBatch:
        """Return an empty batch of n inputs, to be filled."""
        return CpuBatch(self, n) if self.device.type == "cpu" else GpuBatch(self, n)

    def empty(self, n: int) -> Tensor:
        """Return memory for n inputs: (n, 3, S, S) on the device, channels last in memory."""
        size = self.encoder.input_size
        return torch.empty((n, 3, size, size), dtype=self.dtype, device=self.device, memory_format=torch.channels_last)


class CropBatch(Protocol):
    """A batch of n inputs while it is being filled."""

    def put(self, start: int, shape: tuple[int, ...], cut: Cut) -> None:
        """Cut some crops into the batch; several threads may do so at once.

        Args:
            start: Number of the first crop within the batch.
            shape: (k, side, side, 3): number and size of the crops.
            cut: Fills an array of that shape with pixels.
        """

    def take(self) -> Tensor:
        """Return the filled batch: (n, 3, S, S) on the device."""


class CpuBatch:
    """A batch that is resized and normalised by the threads that cut its crops."""

    _scratch = threading.local()  # new memory for every crop takes longer (page faults) than cutting it

    def __init__(self, transform: CropTransform, n: int) -> None:
        self._transform, self._out = transform, transform.empty(n)

    def put(self, start: int, shape: tuple[int, ...], cut: Cut) -> None:
        """Cut crops into the thread's own buffer, then resize and normalise them into the batch."""
        size = int(np.prod(shape))
        scratch = getattr(self._scratch, "pixels", None)
        if scratch is None or scratch.size < size:
            scratch = self._scratch.pixels = np.empty(size, dtype=np.uint8)
        pixels = scratch[:size].reshape(shape)
        cut(pixels)
        self._transform.fill(torch.from_numpy(pixels), self._out[start : start + shape[0]])

    def take(self) -> Tensor:
        """Return the batch, which is complete already."""
        return self._out


class GpuBatch:
    """A batch of raw pixels that the GPU resizes and normalises."""

    def __init__(self, transform: CropTransform, n: int) -> None:
        self._transform, self._n = transform, n
        self._chunks: list[tuple[int, Tensor]] = []

    def put(self, start: int, shape: tuple[int, ...], cut: Cut) -> None:
        """Cut crops into pinned memory, from which they can be copied while the GPU computes."""
        pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        cut(pixels.numpy())
        self._chunks.append((start, pixels))

    def take(self) -> Tensor:
        """Copy the pixels to the GPU, resize and normalise them there."""
        out = self._transform.empty(self._n)
        for start, pixels in self._chunks:
            crops = pixels.to(self._transform.device, non_blocking=True)
            self._transform.fill(crops, out[start : start + len(crops)])
        return out


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Values of the CPU on the device; a GPU copies them when it comes to it, and the CPU does not wait for that."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()  # which torch hands out again only after the copy
    return values.to(device, non_blocking=True)


def in_background(batches: Iterator[_T]) -> Iterator[_T]:
    """Prepare batches ahead in a thread, which ends together with this iterator.

    Args:
        batches: Prepares one batch at each step.

    Yields:
        The same batches. An error of the thread is raised here.
    """
    ready: queue.Queue[_T | BaseException | None] = queue.Queue(MAX_QUEUED_BATCHES)
    stop = threading.Event()

    def offer(entry: _T | BaseException | None) -> None:
        while not stop.is_set():
            try:
                return ready.put(entry, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for batch in batches:
                offer(batch)
                if stop.is_set():
                    return
            offer(None)
        except BaseException as error:
            offer(error)

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        while (entry := ready.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            yield entry
    finally:
        stop.set()
        thread.join()


def resize(crops: Tensor, size: int, interpolation: Interpolation) -> Tensor:
    """Resize crops with antialiasing, on the device where they are.

    Args:
        crops: (B, H, W, 3) uint8.
        size: New height and width, px.
        interpolation: Kind of the filter.

    Returns:
        (B, 3, size, size) uint8, channels last in memory.
    """
    images = crops.permute(0, 3, 1, 2)
    if images.shape[-2:] == (size, size):
        return images
    if images.device.type == "cpu":
        return F.interpolate(images, (size, size), mode=interpolation, antialias=True, align_corners=False)
    return resize_float(images, size, interpolation)


def resize_float(images: Tensor, size: int, interpolation: Interpolation) -> Tensor:
    """Resize (B, 3, H, W) uint8 images with torch's float kernel, the only one that GPUs have.

    It resizes along x, then along y, and rounds to 0..255 after each, as Pillow does.

    Returns:
        (B, 3, size, size) uint8.
    """
    for shape in ((images.shape[2], size), (size, size)):
        scaled = F.interpolate(images.float(), shape, mode=interpolation, antialias=True, align_corners=False)
        images = scaled.round_().clamp_(0, 255)
    return images.to(torch.uint8)


class Normalizer:
    """Computes (x / 255 - mean) / std.

    It works on whole rows of interleaved RGB, because broadcasting over a last axis of 3 is ten times slower on a CPU.
    Each thread keeps a buffer, because new memory takes longer than the arithmetic.

    Args:
        mean: (3,) in 0..1.
        std: (3,) in 0..1.
        size: Height and width of the images, px.
        device: Where the images are.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], size: int, device: torch.device) -> None:
        m, s = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        self._scale = (1 / (255 * s)).float().repeat(size).to(device)
        self._shift = (-m / s).float().repeat(size).to(device)
        self._buffers = threading.local()

    def __call__(self, images: Tensor, out: Tensor) -> None:
        """Normalise images.

        Args:
            images: (n, 3, S, S) uint8, channels last in memory.
            out: (n, 3, S, S) of any float type, channels last in memory, filled.
        """
        width = len(self._scale)
        rows, out_rows = (
            images.permute(0, 2, 3, 1).reshape(-1, width),
            out.permute(0, 2, 3, 1).view(-1, width),
        )
        # A CPU works image by image, so that the buffer stays in its cache.
        block = images.shape[2] if images.device.type == "cpu" else len(rows)
        buffer = getattr(self._buffers, "rows", None)
        if buffer is None or len(buffer) < block:
            buffer = self._buffers.rows = torch.empty((block, width), dtype=torch.float32, device=images.device)
        for part, target in zip(torch.split(rows, block), torch.split(out_rows, block), strict=True):
            values = buffer[: len(part)].copy_(part)
            target.copy_(torch.addcmul(self._shift, values, self._scale, out=values))
