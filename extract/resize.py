"""Resizing and normalising on the device, from uint8 crops to an encoder's input.

Antialiased as Pillow does it (support scaled by the reduction), so that features agree with those of the usual
`Resize` on PIL images. On a CPU torch has a uint8 kernel that is seven times faster than the float one; elsewhere
the float kernel is rounded to uint8, the same values to within two grey levels.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Interpolation = Literal["bilinear", "bicubic"]


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


def normalize(images: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 3, S, S) uint8 -> (x / 255 - mean) / std in `dtype`; mean and std (3,), of values in 0..1."""
    b, _, size, _ = images.shape
    # Whole rows of interleaved RGB: broadcasting over a last axis of 3 is ten times slower on a CPU.
    rows = images.permute(0, 2, 3, 1).reshape(-1, 3 * size).float()
    rows.mul_((1 / (255 * std)).repeat(size)).sub_((mean / std).repeat(size))
    return rows.to(dtype).view(b, size, size, 3).permute(0, 3, 1, 2)
