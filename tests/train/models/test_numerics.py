"""Roots, arccosh and inner products against exact values, also where the textbook formulas fail."""

import math

import mpmath as mp  # type: ignore[import-untyped]
import pytest
import torch

from train.models import numerics


def test_safe_sqrt_has_no_gradient_at_zero() -> None:
    u = torch.tensor([-1.0, 0.0, 4.0], requires_grad=True)
    root = numerics.safe_sqrt(u)
    assert root.tolist() == [0, 0, 2]
    (gradient,) = torch.autograd.grad(root.sum(), u)
    assert gradient.tolist() == [0, 0, 0.25]


@pytest.mark.parametrize("z", [1e-14, 1e-6, 0.5, 1e8])
def test_arccosh1p_keeps_small_arguments(z: float) -> None:
    argument = torch.tensor(z, dtype=torch.float64, requires_grad=True)
    angle = numerics.arccosh1p(argument)
    (gradient,) = torch.autograd.grad(angle, argument)
    with mp.workdps(50):
        expected, slope = mp.acosh(1 + mp.mpf(z)), 1 / mp.sqrt(mp.mpf(z) * (mp.mpf(z) + 2))
    assert angle.item() == pytest.approx(float(expected), rel=1e-14)
    assert gradient.item() == pytest.approx(float(slope), rel=1e-14)


def test_arccosh1p_is_zero_below_one() -> None:
    z = torch.tensor([-1e-9, 0.0], requires_grad=True)
    angle = numerics.arccosh1p(z)
    (gradient,) = torch.autograd.grad(angle.sum(), z)
    assert angle.tolist() == gradient.tolist() == [0, 0]


def test_inner_products_and_their_gradients() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, 3, 5, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    w = x - y
    expected = ((y * y).sum(-1), (w * y).sum(-1), (w * w).sum(-1))
    for product, value in zip(numerics.difference_products(y, x), expected, strict=True):
        torch.testing.assert_close(product, value)
    expected = ((x * x).sum(-1), x @ y.mT, (y * y).sum(-1))
    for product, value in zip(numerics.all_products(x, y), expected, strict=True):
        torch.testing.assert_close(product, value)
    assert torch.autograd.gradcheck(numerics.difference_products, (y, x))
    assert torch.autograd.gradcheck(numerics.all_products, (x, y))


def test_the_difference_of_close_points_keeps_its_digits() -> None:
    y = torch.full((1, 4), 1000.0)
    x = torch.nextafter(y, torch.tensor(math.inf))
    *_, ww = numerics.difference_products(y, x)
    assert ww.item() == pytest.approx(4 * 2.0**-28, rel=1e-12)  # float32 numbers near 1000 are 2^-14 apart


def test_full_precision_decides_the_dtype_by_the_points() -> None:
    @numerics.full_precision
    def shifted(x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        assert c.dtype == torch.float64
        return x + c.to(x.dtype)

    c = torch.tensor(1.0)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert shifted(torch.ones(2, dtype=dtype), c).dtype == torch.float32
    assert shifted(torch.ones(2, dtype=torch.float64), c=c).dtype == torch.float64
