"""Gaussians with diagonal covariance: products of experts, and the divergence from the unit prior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Gaussian(NamedTuple):
    """A Gaussian for each of B spots in a space of d dimensions.

    Attributes:
        mean: `(B, d)` float32.
        precision: `(B, d)` float32, one over the variance; 0 says nothing about this dimension.
    """

    mean: Tensor
    precision: Tensor

    def draw(self) -> Tensor:
        """A sample `(B, d)` with gradients to mean and precision."""
        return self.mean + self.precision.rsqrt() * torch.randn_like(self.mean)


def product_with_prior(experts: Sequence[Gaussian]) -> Gaussian:
    """The normalised product of the experts' densities and that of the unit Gaussian."""
    precision: Tensor = 1 + sum((e.precision for e in experts[1:]), experts[0].precision)
    weighted = sum((e.precision * e.mean for e in experts[1:]), experts[0].precision * experts[0].mean)
    return Gaussian(weighted / precision, precision)


def divergence_from_prior(posterior: Gaussian) -> Tensor:
    """KL(posterior || N(0, I)), the mean over spots and dimensions, a scalar."""
    mean, precision = posterior
    return 0.5 * (mean.square() + 1 / precision - 1 + precision.log()).mean()
