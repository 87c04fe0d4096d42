"""Resizing and normalising on the device, from uint8 crops to an encoder's input.

Antialiased as Pillow does it (support scaled by the reduction), so that features agree with those of the usual
`Resize` on PIL images. On a CPU torch has a uint8 kernel that is seven times faster than the float one; elsewhere
the float kernel is rounded to uint8, the same values to within two grey levels.
"""

from __future__ import annotations

import threading

import torch
import torch.nn.functional as F
from torch import Tensor

from extract.encoders import Interpolation


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
