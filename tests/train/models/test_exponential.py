"""The scaled exponential map against `lorentz.exp_map0` and torch's own gradients of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from train.models import lorentz
from train.models.exponential import scaled_exp_map0


def leaves(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Zero, tiny, ordinary and long vectors, the last of which are held at the greatest radius."""
    v = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    v *= torch.tensor([0.0, 1e-9, 1e-3, 0.1, 1.0, 2.0, 30.0, 1e3], dtype=torch.float64).unsqueeze(-1)
    log_scales, c = torch.tensor([-1.0, 0.0, 0.5]), torch.tensor(1.7)
    return tuple(t.to(dtype).requires_grad_() for t in (v, log_scales, c))  # type: ignore[return-value]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)], ids=str)
def test_points_and_gradients_are_those_of_the_map(dtype: torch.dtype, tolerance: float) -> None:
    tangents, log_scales, c = inputs = leaves(dtype)
    expected = lorentz.exp_map0(tangents * log_scales.exp().view(3, 1, 1), c)
    found = scaled_exp_map0(tangents, log_scales, c)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    weights = weights / expected.detach().norm(dim=-1, keepdim=True).clamp_min(1)
    close = {"rtol": 10 * tolerance, "atol": tolerance}
    torch.testing.assert_close(found, expected, **close)
    for own, gradient in zip(
        torch.autograd.grad((found * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(own, gradient, **close)


def test_gradients_are_those_of_the_values() -> None:
    tangents, log_scales, c = leaves(torch.float64)
    ordinary = tangents[:, 3:6].detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(scaled_exp_map0, (ordinary, log_scales, c))
