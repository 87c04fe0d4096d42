"""Inner products, roots and arccosh with the precision and the finite gradients that `lorentz.py` needs.

Near a singular point the textbook formulas lose digits in float32, or their derivative is infinite. The functions
here avoid both. None of them has second derivatives where the gradient is written out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_P = ParamSpec("_P")

TINY = 1e-30
"""Values up to this one count as zero."""


def to_widest_float(x: Tensor) -> Tensor:
    """Convert to float64, or to float32 on Apple's MPS devices, which have no float64."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor, in float32 where it has fewer bits."""
    return x.float() if x.itemsize < 4 else x


def full_precision(function: Callable[_P, Tensor]) -> Callable[_P, Tensor]:
    """Make a function of points compute in at least float32, whatever autocast surrounds the call.

    Args:
        function: takes points (tensors with at least one dimension, the first argument among them) and scalars.

    Returns:
        A function with the same arguments. It converts points to float32, or all of them to float64 if one is
        float64, and scalar tensors to float64. Its result has the dtype of the converted points.
    """

    @functools.wraps(function)
    def wrapper(*args: _P.args, **kwargs: _P.kwargs) -> Tensor:
        points = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.ndim > 0]
        dtype = torch.float64 if any(p.dtype == torch.float64 for p in points) else torch.float32

        def convert(a: Any) -> Any:
            if isinstance(a, Tensor):
                return a.to(dtype) if a.ndim > 0 else to_widest_float(a)
            return a

        with torch.autocast(points[0].device.type, enabled=False):
            return function(*map(convert, args), **{k: convert(a) for k, a in kwargs.items()}).to(dtype)

    return wrapper


def squared_norm(x: Tensor) -> Tensor:
    """Squared Euclidean norm of `(..., D)` vectors, shape `(...)`."""
    squares: Tensor = torch.linalg.vector_norm(x, dim=-1) ** 2
    return squares


# The tensors of the inner products are much larger than those of all later steps. Their gradients are therefore
# written out: autograd's own take three times as long, most of it to allocate memory.


class _AllProducts(torch.autograd.Function):
    """Squared norms and all inner products of two sets of vectors."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, y = to_widest_float(x), to_widest_float(y)
        return squared_norm(x), x @ y.mT, squared_norm(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_xx: Tensor, grad_xy: Tensor, grad_yy: Tensor) -> tuple[Tensor, Tensor]:
        x, y = ctx.saved_tensors  # as they came: gradients of float32 points are float32 products
        grad_xx, grad_xy, grad_yy = (grad.to(x.dtype) for grad in (grad_xx, grad_xy, grad_yy))
        with torch.autocast(x.device.type, enabled=False):  # where the caller's surrounds the backward pass too
            grad_x = torch.addcmul(grad_xy @ y, x, grad_xx.unsqueeze(-1), value=2)
            return grad_x, torch.addcmul(grad_xy.mT @ x, y, grad_yy.unsqueeze(-1), value=2)


def all_products(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Squared norms and inner products of every row of x with every row of y, in float64.

    Args:
        x: vectors, `(..., N, D)`.
        y: vectors, `(..., M, D)`.

    Returns:
        `|x_i|^2` of shape `(..., N)`, `x_i.y_j` of shape `(..., N, M)` and `|y_j|^2` of shape `(..., M)`.
    """
    xx, xy, yy = _AllProducts.apply(x, y)
    return xx, xy, yy


class _DifferenceProducts(torch.autograd.Function):
    """Gram matrix of y and w = x - y for every row: `(..., D)` twice to `(..., 2, 2)` in float64."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        rows = to_widest_float(torch.stack([y, x], dim=-2))
        rows[..., 1, :].sub_(rows[..., 0, :])
        return rows @ rows.mT, rows

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1])
        ctx.dtype = inputs[0].dtype

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Tensor | None, Tensor | None]:
        if grad is None:
            return None, None
        (rows,) = ctx.saved_tensors
        factors_y, factors_w = (grad + grad.mT).unbind(-2)
        grads = torch.stack([factors_y - factors_w, factors_w], dim=-2) @ rows
        return grads[..., 0, :].to(ctx.dtype), grads[..., 1, :].to(ctx.dtype)


def difference_products(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Inner products of y and w = x - y, row by row, in float64.

    The difference is taken first, so that close points keep all digits of their distance.

    Args:
        y: vectors, `(..., D)`.
        x: vectors, `(..., D)`; row i belongs to row i of y.

    Returns:
        `|y|^2`, `w.y` and `|w|^2`, each of shape `(...)`.
    """
    yy, wy, _, ww = _DifferenceProducts.apply(y, x)[0].flatten(-2).unbind(-1)
    return yy, wy, ww


def safe_sqrt(u: Tensor) -> Tensor:
    """Square root of u where u > `TINY`; elsewhere 0 with gradient 0."""
    positive = u > TINY
    return torch.where(positive, torch.where(positive, u, 1.0).sqrt(), 0.0)


class _Arccosh1p(torch.autograd.Function):
    """arccosh(1 + z) and its sinh."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.clamp_min(0)
        sinh = torch.sqrt(z * (z + 2))
        return torch.log1p(z + sinh), sinh

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, _: Any) -> Tensor | None:
        (sinh,) = ctx.saved_tensors
        return None if grad is None else torch.where(sinh > TINY, grad / sinh, 0.0)


def arccosh1p(z: Tensor) -> Tensor:
    """arccosh(1 + z) for z > 0 without the sum 1 + z, which would lose a small z; elsewhere 0 with gradient 0."""
    angle: Tensor = _Arccosh1p.apply(z)[0]
    return angle
