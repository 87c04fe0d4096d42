"""Coordinates of spots as the input of a network: on one scale a slide, turned at random, as Fourier features."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from train.models.numerics import to_widest_float

LONGEST_SHIFT = 0.1
"""The longest shift of `turned_at_random` along an axis, where a slide reaches from -1 to 1."""


def unit_coordinates(position: Tensor, slide: Tensor) -> Tensor:
    """Coordinates in [-1, 1] on each slide: less the centre of its spots, over half of its longer side.

    Both axes of a slide have the same scale, so that its aspect ratio stays. Unit and origin of the positions do not
    matter. A slide of one spot has it at 0.

    Args:
        position: `(N, 2)` centres of the spots.
        slide: `(N,)` int64 number of each spot's slide.

    Returns:
        `(N, 2)` float32.
    """
    if not len(slide):
        return position.float()
    position = to_widest_float(position)
    index, shape = slide.unsqueeze(1).expand(-1, 2), (int(slide.max()) + 1, 2)
    low = position.new_full(shape, math.inf).scatter_reduce(0, index, position, "amin")
    high = position.new_full(shape, -math.inf).scatter_reduce(0, index, position, "amax")
    half = (high - low).amax(1, keepdim=True) / 2
    half = torch.where(half > 0, half, 1.0)
    return ((position - ((low + high) / 2)[slide]) / half[slide]).clamp(-1, 1).float()


def turned_at_random(coordinates: Tensor) -> Tensor:
    """All coordinates `(B, 2)` turned by one angle, mirrored or not, and shifted, drawn from torch's random state."""
    angle, side, *shift = torch.rand(4, device=coordinates.device).unbind()
    cosine, sine = (2 * math.pi * angle).cos(), (2 * math.pi * angle).sin()
    x, y = coordinates.unbind(1)
    mirrored = torch.where(side < 0.5, -1.0, 1.0) * (sine * x + cosine * y)
    return torch.stack([cosine * x - sine * y, mirrored], dim=1) + LONGEST_SHIFT * (2 * torch.stack(shift) - 1)


def fourier_features(coordinates: Tensor, bands: int) -> Tensor:
    """Coordinates with sine and cosine of their multiples by pi, 2 pi, 4 pi, ...

    Args:
        coordinates: `(B, 2)`.
        bands: Number of multiples.

    Returns:
        `(B, 2 + 4 bands)`.
    """
    multiples = math.pi * 2.0 ** torch.arange(bands, device=coordinates.device, dtype=coordinates.dtype)
    angles = (coordinates.unsqueeze(2) * multiples).flatten(1)
    return torch.cat([coordinates, angles.sin(), angles.cos()], dim=1)
