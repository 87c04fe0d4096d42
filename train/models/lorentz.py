"""Hyperbolic geometry in the Lorentz model of curvature -c, on space components alone (HiST, Eq. 1-7).

A point is its space component x, shape `(..., D)`; its time component follows from Eq. 1. Every function
takes float16, bfloat16, float32 or float64 points and returns float32 (float64 for float64 points), whatever
autocast surrounds it. Inner products of two points are taken in float64, which buys what float32 cannot: pairs
that nearly coincide, at norms up to 1e3. No root, quotient or arc function is met where its derivative is
infinite, so all gradients are finite, at coincident points and at zero too.

`c` is a positive number or scalar tensor (gradients reach it). Angles are in rad.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Curvature = Tensor | float

MAX_RADIUS = 10.0
"""exp_map0 holds sqrt(c)|v| here: |x| <= sinh(10)/sqrt(c), which is 34,826 at c = 0.1, so that a point fits even
float16, and float64 inner products (of size 1e8) still resolve distances of 1e-4."""

NEAR = 1e-3
"""Closer than this (over sqrt(c)), parent and child have an angle but no gradient of it, which would grow as
1/distance; a parent with a norm below it counts as the origin, for the same reason."""

BORDER = 1e-3
"""arcsin's argument stays this far below 1: an aperture is at most 87.4 degrees, and its slope at most
112 sqrt(c) for Q = 0.1 (at a margin of 1e-7 it is 1e4)."""

TINY = 1e-30
"""What is below it counts as zero."""

P = ParamSpec("P")


def _wide(x: Tensor) -> Tensor:
    """float64, or float32 on Apple's MPS, which has nothing wider."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def _precise(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Run `function` without autocast, on points of at least float32 and c in float64; its result as float32,
    or as float64 if a point was."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        points = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and a.ndim > 0]
        dtype = torch.float64 if any(a.dtype == torch.float64 for a in points) else torch.float32

        def lift(a: Any) -> Any:
            if isinstance(a, Tensor):
                return a.to(dtype) if a.ndim > 0 else _wide(a)
            return a

        with torch.autocast(points[0].device.type, enabled=False):
            return function(*map(lift, args), **{k: lift(a) for k, a in kwargs.items()}).to(dtype)

    return wrapped


# Inner products. Their tensors are large beside all that follows, so their gradients are written out (autograd's
# own take three times as long, most of it on fresh memory). There are no second derivatives.


def _square(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1) ** 2


class _AllProducts(torch.autograd.Function):
    """|x_i|^2, x_i.y_j and |y_j|^2 of `(..., B1, D)` and `(..., B2, D)`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return _square(x), x @ y.mT, _square(y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_xx: Tensor, g_xy: Tensor, g_yy: Tensor) -> tuple[Tensor, Tensor]:
        x, y = ctx.saved_tensors
        g_x = torch.addcmul(g_xy @ y, x, g_xx.unsqueeze(-1), value=2)
        return g_x, torch.addcmul(g_xy.mT @ x, y, g_yy.unsqueeze(-1), value=2)


class _Gram(torch.autograd.Function):
    """Inner products of y and w = x - y, row by row: `(..., D)` twice to `(..., 2, 2)` in float64."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        rows = _wide(torch.stack([y, x], dim=-2))
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
    def backward(ctx: Any, g: Tensor | None, _: Any) -> tuple[Tensor | None, Tensor | None]:
        if g is None:
            return None, None
        (rows,) = ctx.saved_tensors
        of_y, of_w = (g + g.mT).unbind(-2)
        grads = torch.stack([of_y - of_w, of_w], dim=-2) @ rows
        return grads[..., 0, :].to(ctx.dtype), grads[..., 1, :].to(ctx.dtype)


def _products(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """|y|^2, w.y and |w|^2 of `(B, D)` rows, w = x - y; each `(B,)`."""
    yy, wy, _, ww = _Gram.apply(y, x)[0].flatten(-2).unbind(-1)
    return yy, wy, ww


def _sqrt(u: Tensor) -> Tensor:
    """sqrt(u) for u > 0, else 0 with gradient 0."""
    positive = u > TINY
    return torch.where(positive, torch.where(positive, u, 1.0).sqrt(), 0.0)


class _Arccosh1p(torch.autograd.Function):
    """arccosh(1 + z) without forming 1 + z, which loses small z; 0 with gradient 0 for z <= 0."""

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
    def backward(ctx: Any, g: Tensor | None, _: Any) -> Tensor | None:
        (sinh,) = ctx.saved_tensors
        return None if g is None else torch.where(sinh > TINY, g / sinh, 0.0)


def _scaled_norm(x: Tensor, c: Curvature) -> Tensor:
    """sqrt(c)|x|, shape `(...)`, floored at 1e-6: sinh(r)/r and asinh(r)/r are 1 to 1e-12 there."""
    return (c**0.5 * _wide(torch.linalg.vector_norm(x, dim=-1))).clamp_min(1e-6)


@_precise
def time(x: Tensor, c: Curvature) -> Tensor:
    """Time component sqrt(1/c + |x|^2) of `(B, D)` points, shape `(B,)` (Eq. 1)."""
    return torch.sqrt(1 / c + _wide(_square(x)))


@_precise
def exp_map0(v: Tensor, c: Curvature) -> Tensor:
    """Exponential map at the origin, sinh(r)/r v with r = sqrt(c)|v|, `(B, D)` to `(B, D)` (Eq. 5).

    r is held at `MAX_RADIUS`: a longer v keeps its direction and has no gradient along it.
    """
    r = _scaled_norm(v, c)
    return v * (torch.sinh(r.clamp_max(MAX_RADIUS)) / r).to(v.dtype).unsqueeze(-1)


@_precise
def log_map0(x: Tensor, c: Curvature) -> Tensor:
    """Logarithm at the origin, asinh(r)/r x with r = sqrt(c)|x|, `(B, D)` to `(B, D)`; inverse of Eq. 5."""
    r = _scaled_norm(x, c)
    return x * (torch.asinh(r) / r).to(x.dtype).unsqueeze(-1)


@_precise
def radius(x: Tensor, c: Curvature) -> Tensor:
    """Distance from the origin, asinh(sqrt(c)|x|) / sqrt(c), of `(B, D)` points, shape `(B,)`."""
    return torch.asinh(c**0.5 * _wide(torch.linalg.vector_norm(x, dim=-1))) / c**0.5


@_precise
def distance(x: Tensor, y: Tensor, c: Curvature) -> Tensor:
    """Distance of each row of x to the same row of y, both `(B, D)`, shape `(B,)` (Eq. 2).

    Relative error below 1e-6 up to norms of 1e3 at c = 10, however close the points; 0 where they coincide.
    """
    yy, wy, ww = _products(y, x)
    return _Arccosh1p.apply(c / 2 * (ww - _lag(yy, wy, ww, c) ** 2))[0] / c**0.5


@_precise
def pairwise_dist(x: Tensor, y: Tensor, c: Curvature) -> Tensor:
    """Distance of every row of x `(B1, D)` to every row of y `(B2, D)`, shape `(B1, B2)` (Eq. 2).

    One matrix product, so rounding is relative to the norms: with n = max(|x|, |y|, 1/sqrt(c)) distances are
    right to 1e-4 of themselves down to 2e-6 n, and never off by more than 1e-7 n.
    """
    xx, xy, yy = _AllProducts.apply(_wide(x), _wide(y))
    # Times as they rise above the origin's: no 1 is left to subtract, in which short distances would drown.
    t_0 = c**-0.5
    rise_x = (xx / (torch.sqrt(1 / c + xx) + t_0)).unsqueeze(-1)
    rise_y = (yy / (torch.sqrt(1 / c + yy) + t_0)).unsqueeze(-2)
    return _Arccosh1p.apply(c * (rise_x * (rise_y + t_0) + t_0 * rise_y - xy))[0] / c**0.5


def _lag(yy: Tensor, wy: Tensor, ww: Tensor, c: Curvature) -> Tensor:
    """time(x) - time(y) without cancellation, as (|x|^2 - |y|^2) over their sum.

    With it, -c <x,y>_L - 1 = c/2 (|x - y|^2 - lag^2): nothing of size 1 or |x|^2 is left to cancel against.
    """
    gain = 2 * wy + ww
    return gain / (torch.sqrt(1 / c + (yy + gain).clamp_min(0)) + torch.sqrt(1 / c + yy))


@_precise
def pairwise_cosine(x: Tensor, y: Tensor) -> Tensor:
    """Cosine of every row of x `(B1, D)` with every row of y `(B2, D)`, `(B1, B2)`: the Euclidean counterpart.

    0 with a vector of zeros; below a norm of NEAR it shrinks towards that, which bounds the gradient.
    """
    xx, xy, yy = _AllProducts.apply(_wide(x), _wide(y))
    return xy / (xx.clamp_min(NEAR**2).unsqueeze(-1) * yy.clamp_min(NEAR**2).unsqueeze(-2)).sqrt()


@_precise
def half_aperture(y: Tensor, c: Curvature, q: float = 0.1) -> Tensor:
    """Half-aperture arcsin(2q / (sqrt(c)|y|)) of the cone at each `(B, D)` point, `(B,)` (Eq. 6).

    In (0, 1.526] rad. q is the paper's K. Nearer to the origin than 2q/sqrt(c) a cone is as wide as it gets,
    with gradient 0.
    """
    return _aperture(2 * q / _scaled_norm(y, c))


@_precise
def euclidean_half_aperture(y: Tensor, q: float = 0.1) -> Tensor:
    """Half-aperture arcsin(q / |y|) of a Euclidean cone at each `(B, D)` point, `(B,)` in (0, 1.526] rad."""
    return _aperture(q / _scaled_norm(y, 1.0))


def _aperture(sine: Tensor) -> Tensor:
    return torch.asin(sine.clamp_max(1 - BORDER))


@_precise
def exterior_angle(y: Tensor, x: Tensor, c: Curvature) -> Tensor:
    """Angle at the parent y between the ray away from the origin and the way to the child x (Eq. 7's ext).

    Both `(B, D)`, shape `(B,)` in [0, pi] rad: 0 straight outwards, pi towards the origin; 0 where the points
    coincide (a point lies in its own cone) and pi/2 for a parent at the origin. Right to 1e-7 times the smaller
    of the two times (in units of 1/sqrt(c)).
    """
    yy, wy, ww = _products(y, x)
    along, across, y_norm = _split(yy, wy, ww)
    # Eq. 7's arccos as the angle between two legs, sideways and outwards, both times sinh of the distance:
    # arccos has no derivative at 0 and pi, atan2 has one wherever the points differ.
    outwards = torch.sqrt(1 / c + yy) * along - y_norm * _lag(yy, wy, ww, c)
    return _angle(c**0.5 * across, c * outwards)


@_precise
def euclidean_exterior_angle(y: Tensor, x: Tensor) -> Tensor:
    """Angle between y and x - y, arccos(y.(x - y) / (|y||x - y|)), the limit of `exterior_angle` for c -> 0.

    Both `(B, D)`, y the parent, shape `(B,)` in [0, pi] rad; the same conventions where it is undefined.
    """
    yy, wy, ww = _products(y, x)
    along, across, _ = _split(yy, wy, ww)
    return _angle(across, along)


def _split(yy: Tensor, wy: Tensor, ww: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """w's lengths along and across y, and |y|; for |y| < NEAR (no direction) 0, |w| and 0."""
    origin = yy < NEAR**2
    norm = torch.where(origin, 1.0, yy).sqrt()
    along = torch.where(origin, 0.0, wy / norm)
    return along, _sqrt(ww - along**2), torch.where(origin, 0.0, norm)


def _angle(sideways: Tensor, outwards: Tensor) -> Tensor:
    """atan2 of two `(B,)` legs, with gradient 0 where both are so short that only noise is left."""
    near = sideways**2 + outwards**2 < NEAR**2
    angle = torch.atan2(torch.where(near, 0.0, sideways), torch.where(near, 1.0, outwards))
    return torch.where(near, torch.atan2(sideways.detach(), outwards.detach()), angle)
