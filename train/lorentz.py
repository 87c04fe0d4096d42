"""Hyperbolic geometry in the Lorentz model of curvature -c, on space components alone (HiST, Eq. 1-7).

A point is its space component x, shape `(B, D)`; its time component follows from Eq. 1. Every function
takes float16, bfloat16, float32 or float64 points, computes in float64 whatever autocast surrounds it, and
returns float32 (float64 for float64 points). float64 costs a fraction of a millisecond at B = 128, D = 1024,
and it buys what float32 cannot: points of norm 1e3 that nearly coincide. No root, quotient or arc function is
met where its derivative is infinite, so all gradients are finite, at coincident points and at zero too.

`c` is a positive number or scalar tensor (gradients reach it). Angles are in rad.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec

import torch
from torch import Tensor

Curvature = Tensor | float

MAX_RADIUS = 10.0
"""exp0 holds sqrt(c)|v| here: |x| <= sinh(10)/sqrt(c), which is 34,826 at c = 0.1, so that a point fits even
float16, and float64 inner products (of size 1e8) still resolve distances of 1e-4."""

NEAR = 1e-3
"""Closer than this (over sqrt(c)), parent and child have an angle but no gradient of it, which would grow as
1/distance; a parent of smaller norm has its direction scaled down, for the same reason."""

BORDER = 1e-3
"""arcsin's argument stays this far below 1: an aperture is at most 87.4 degrees, and its slope at most
112 sqrt(c) for Q = 0.1 (at a margin of 1e-7 it is 1e4)."""

TINY = 1e-30
"""Squares below it count as zero."""

P = ParamSpec("P")


def in_float64(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Run `function` on float64 copies of its tensors, without autocast, and give the result back as float32.

    float64 points give float64 results. (Apple's MPS has no float64: there it is float32 throughout.)
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        points = [a for a in tensors if a.ndim > 0]
        device = points[0].device.type
        wide = torch.float32 if device == "mps" else torch.float64
        narrow = torch.float64 if any(a.dtype == torch.float64 for a in points) else torch.float32

        def widen(a: object) -> object:
            return a.to(wide) if isinstance(a, Tensor) else a

        with torch.autocast(device_type=device, enabled=False):
            wide_args = [widen(a) for a in args]
            wide_kwargs = {k: widen(a) for k, a in kwargs.items()}
            return function(*wide_args, **wide_kwargs).to(narrow)  # type: ignore[arg-type]

    return wrapped


def _dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(-1)


def _sqrt(u: Tensor) -> Tensor:
    """sqrt(u) for u > 0, else 0 with gradient 0."""
    positive = u > TINY
    return torch.where(positive, torch.where(positive, u, 1.0).sqrt(), 0.0)


def _arccosh1p(z: Tensor) -> Tensor:
    """arccosh(1 + z) without forming 1 + z, which loses small z; 0 with gradient 0 for z <= 0."""
    positive = z > TINY
    z = torch.where(positive, z, 1.0)
    return torch.where(positive, torch.log1p(z + torch.sqrt(z * (z + 2))), 0.0)


def _times(xx: Tensor, c: Curvature) -> Tensor:
    return torch.sqrt(1 / c + xx)


def _scaled_norm(x: Tensor, c: Curvature) -> Tensor:
    """sqrt(c)|x|, shape `(..., 1)`, floored at 1e-6: sinh(r)/r and asinh(r)/r are 1 to 1e-12 there."""
    return torch.sqrt((c * _dot(x, x)).clamp_min(1e-12)).unsqueeze(-1)


@in_float64
def time(x: Tensor, c: Curvature) -> Tensor:
    """Time component sqrt(1/c + |x|^2) of `(B, D)` points, shape `(B,)` (Eq. 1)."""
    return _times(_dot(x, x), c)


@in_float64
def exp0(v: Tensor, c: Curvature) -> Tensor:
    """Exponential map at the origin, sinh(r)/r v with r = sqrt(c)|v|, `(B, D)` to `(B, D)` (Eq. 5).

    r is held at `MAX_RADIUS`: a longer v keeps its direction and has no gradient along it.
    """
    r = _scaled_norm(v, c)
    return v * (torch.sinh(r.clamp_max(MAX_RADIUS)) / r)


@in_float64
def log0(x: Tensor, c: Curvature) -> Tensor:
    """Logarithm at the origin, asinh(r)/r x with r = sqrt(c)|x|, `(B, D)` to `(B, D)`; inverse of Eq. 5."""
    r = _scaled_norm(x, c)
    return x * (torch.asinh(r) / r)


@in_float64
def radius(x: Tensor, c: Curvature) -> Tensor:
    """Distance from the origin, asinh(sqrt(c)|x|) / sqrt(c), of `(B, D)` points, shape `(B,)`."""
    return torch.asinh(c**0.5 * _sqrt(_dot(x, x))) / c**0.5


@in_float64
def distance(x: Tensor, y: Tensor, c: Curvature) -> Tensor:
    """Distance of each row of x to the same row of y, both `(B, D)`, shape `(B,)` (Eq. 2).

    Relative error below 1e-6 up to norms of 1e3 at c = 10, however close the points; 0 where they coincide.
    """
    w = x - y
    # -c <x,y>_L - 1 as a difference of squares: nothing of size 1 or |x|^2 is left to cancel against.
    lag = _dot(w, x + y) / (_times(_dot(x, x), c) + _times(_dot(y, y), c))
    return _arccosh1p(c / 2 * (_dot(w, w) - lag**2)) / c**0.5


@in_float64
def pairwise_distance(x: Tensor, y: Tensor, c: Curvature) -> Tensor:
    """Distance of every row of x `(B1, D)` to every row of y `(B2, D)`, shape `(B1, B2)` (Eq. 2).

    One matrix product, so rounding is relative to the norms: with n = max(|x|, |y|, 1/sqrt(c)) distances are
    right to 1e-4 of themselves down to 2e-6 n, and never off by more than 1e-7 n.
    """
    xx, yy = _dot(x, x).unsqueeze(1), _dot(y, y).unsqueeze(0)
    lag = (xx - yy) / (_times(xx, c) + _times(yy, c))
    return _arccosh1p(c / 2 * (xx + yy - 2 * (x @ y.mT) - lag**2)) / c**0.5


@in_float64
def half_aperture(y: Tensor, c: Curvature, q: float = 0.1) -> Tensor:
    """Half-aperture arcsin(2q / (sqrt(c)|y|)) of the cone at each `(B, D)` point, `(B,)` (Eq. 6).

    In (0, 1.526] rad. q is the paper's K. Nearer to the origin than 2q/sqrt(c) a cone is as wide as it gets,
    with gradient 0.
    """
    return _aperture(2 * q / _scaled_norm(y, c).squeeze(-1))


@in_float64
def euclidean_half_aperture(y: Tensor, q: float = 0.1) -> Tensor:
    """Half-aperture arcsin(q / |y|) of a Euclidean cone at each `(B, D)` point, `(B,)` in (0, 1.526] rad."""
    return _aperture(q / _scaled_norm(y, 1.0).squeeze(-1))


def _aperture(sine: Tensor) -> Tensor:
    return torch.asin(sine.clamp_max(1 - BORDER))


@in_float64
def exterior_angle(y: Tensor, x: Tensor, c: Curvature) -> Tensor:
    """Angle at the parent y between the ray away from the origin and the way to the child x (Eq. 7's ext).

    Both `(B, D)`, shape `(B,)` in [0, pi] rad: 0 straight outwards, pi towards the origin; 0 where the points
    coincide (a point lies in its own cone) and pi/2 for a parent at the origin.
    """
    w, u, along, h = _split(y, x)
    t_y = _times(_dot(y, y), c)
    # Eq. 7's arccos as the angle between two legs, sideways and outwards, both times sinh of the distance:
    # arccos has no derivative at 0 and pi, atan2 has one wherever the points differ.
    lag = (2 * _dot(w, y) + _dot(w, w)) / (_times(_dot(x, x), c) + t_y)  # time(x) - time(y)
    return _angle(c**0.5 * h, c * (t_y * along - _dot(y, u) * lag))


@in_float64
def euclidean_exterior_angle(y: Tensor, x: Tensor) -> Tensor:
    """Angle between y and x - y, arccos(y.(x - y) / (|y||x - y|)), the limit of `exterior_angle` for c -> 0.

    Both `(B, D)`, y the parent, shape `(B,)` in [0, pi] rad; the same conventions where it is undefined.
    """
    _, _, along, h = _split(y, x)
    return _angle(h, along)


def _split(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """w = x - y; y's direction, scaled down where |y| < NEAR; the lengths of w along and across it."""
    w = x - y
    u = y / torch.sqrt(_dot(y, y).clamp_min(NEAR**2)).unsqueeze(-1)
    along = _dot(w, u)
    across = w - along.unsqueeze(-1) * u
    return w, u, along, _sqrt(_dot(across, across))


def _angle(sideways: Tensor, outwards: Tensor) -> Tensor:
    """atan2 of two `(B,)` legs, with gradient 0 where both are so short that only noise is left."""
    near = sideways**2 + outwards**2 < NEAR**2
    angle = torch.atan2(torch.where(near, 0.0, sideways), torch.where(near, 1.0, outwards))
    return torch.where(near, torch.atan2(sideways.detach(), outwards.detach()), angle)
