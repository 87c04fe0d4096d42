"""Hyperbolic geometry in the Lorentz model of curvature -c (HiST, Eq. 1-7).

A point on the hyperboloid is stored as its space component x, shape `(..., D)`; Eq. 1 gives its time component.
The curvature magnitude c is a positive number or a scalar tensor, and gradients reach it. Distances are in units in
which the curvature is -c. Angles are in rad.

Every function takes float16, bfloat16, float32 or float64 points and returns float32 (float64 for float64 points),
under any autocast. Inner products of two points are taken in float64, because in float32 the distance of points that
nearly coincide is lost at norms up to 1e3. Every function is written so that no root, quotient or arc function is
evaluated where its derivative is infinite. All gradients are therefore finite, for coincident points and zero too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from train.models.numerics import (
    all_products,
    arccosh1p,
    difference_products,
    full_precision,
    safe_sqrt,
    squared_norm,
    to_widest_float,
)

Curvature = Tensor | float

MAX_RADIUS = 10.0
"""`exp_map0` clamps sqrt(c)|v| to this value. Then |x| <= sinh(10)/sqrt(c), which is 34,826 at c = 0.1. Such a point
fits even into float16, and float64 inner products (of size 1e8) still resolve distances of 1e-4."""

CONE_CONSTANT = 0.1
"""The constant of a cone's width that the paper calls K."""

MIN_DISTANCE = 1e-3
"""Parent and child that are closer than this (over sqrt(c)) have an angle but no gradient of it, because the gradient
grows as 1/distance. For the same reason a parent whose norm is below it counts as the origin."""

APERTURE_MARGIN = 1e-3
"""The argument of arcsin stays this far below 1. An aperture is then at most 87.4 degrees, and its slope is at most
112 sqrt(c) for q = 0.1 (1e4 with a margin of 1e-7)."""


MIN_SCALED_NORM = 1e-6
"""sqrt(c)|x| counts as at least this: sinh(r)/r and asinh(r)/r are 1 to within 1e-12 there."""


def _scaled_norm(x: Tensor, c: Curvature) -> Tensor:
    """sqrt(c)|x| of `(..., D)` points, at least `MIN_SCALED_NORM`."""
    return (c**0.5 * to_widest_float(torch.linalg.vector_norm(x, dim=-1))).clamp_min(MIN_SCALED_NORM)


@full_precision
def time_component(x: Tensor, c: Curvature) -> Tensor:
    """Time component sqrt(1/c + |x|^2) of points on the hyperboloid (Eq. 1).

    Args:
        x: points, `(..., D)`.
        c: curvature magnitude.

    Returns:
        Time components, `(...)`, at least 1/sqrt(c).
    """
    return torch.sqrt(1 / c + to_widest_float(squared_norm(x)))


@full_precision
def exp_map0(v: Tensor, c: Curvature) -> Tensor:
    """Exponential map at the origin, sinh(r)/r v with r = sqrt(c)|v| (Eq. 5).

    r is clamped to `MAX_RADIUS`: a longer v keeps its direction and has no gradient along it.

    Args:
        v: tangent vectors at the origin, `(..., D)`.
        c: curvature magnitude.

    Returns:
        Points on the hyperboloid, `(..., D)`.
    """
    r = _scaled_norm(v, c)
    return v * (torch.sinh(r.clamp_max(MAX_RADIUS)) / r).to(v.dtype).unsqueeze(-1)


@full_precision
def log_map0(x: Tensor, c: Curvature) -> Tensor:
    """Logarithmic map at the origin, asinh(r)/r x with r = sqrt(c)|x|, the inverse of `exp_map0`.

    Args:
        x: points, `(..., D)`.
        c: curvature magnitude.

    Returns:
        Tangent vectors at the origin, `(..., D)`. Their norms are the distances from the origin.
    """
    r = _scaled_norm(x, c)
    return x * (torch.asinh(r) / r).to(x.dtype).unsqueeze(-1)


@full_precision
def radius(x: Tensor, c: Curvature) -> Tensor:
    """Distance of points from the origin, asinh(sqrt(c)|x|) / sqrt(c).

    Args:
        x: points, `(..., D)`.
        c: curvature magnitude.

    Returns:
        Distances, `(...)`.
    """
    return torch.asinh(c**0.5 * to_widest_float(torch.linalg.vector_norm(x, dim=-1))) / c**0.5


def _time_difference(yy: Tensor, wy: Tensor, ww: Tensor, c: Curvature) -> Tensor:
    """Time component of x minus that of y, as (|x|^2 - |y|^2) / (their sum), which does not cancel.

    The arguments are `difference_products(y, x)`. With the result, -c <x,y>_L - 1 = c/2 (|x - y|^2 - difference^2),
    which has no term of size 1 or |x|^2 that must cancel.
    """
    norm_difference = 2 * wy + ww
    time_sum = torch.sqrt(1 / c + (yy + norm_difference).clamp_min(0)) + torch.sqrt(1 / c + yy)
    return norm_difference / time_sum


@full_precision
def dist(x: Tensor, y: Tensor, c: Curvature) -> Tensor:
    """Distance of each row of x from the same row of y, arccosh(-c <x,y>_L) / sqrt(c) (Eq. 2).

    The relative error is below 1e-6 for norms up to 1e3 at c = 10, however close the points are.

    Args:
        x: points, `(..., D)`.
        y: points, `(..., D)`.
        c: curvature magnitude.

    Returns:
        Distances, `(...)`; 0 where the points coincide.
    """
    yy, wy, ww = difference_products(y, x)
    return arccosh1p(c / 2 * (ww - _time_difference(yy, wy, ww, c) ** 2)) / c**0.5


@full_precision
def pairwise_dist(x: Tensor, y: Tensor, c: Curvature) -> Tensor:
    """Distance of every row of x from every row of y, arccosh(-c <x,y>_L) / sqrt(c) (Eq. 2).

    All inner products come from one matrix product, so the rounding error is relative to the norms. With
    n = max(|x|, |y|, 1/sqrt(c)), the relative error is below 1e-4 for distances above 2e-6 n, and the absolute error
    is never above 1e-7 n.

    Args:
        x: points, `(..., N, D)`.
        y: points, `(..., M, D)`.
        c: curvature magnitude.

    Returns:
        Distances, `(..., N, M)`.
    """
    xx, xy, yy = all_products(x, y)
    # Time components minus that of the origin. The formula then subtracts no 1, which would hide short distances.
    time_origin = c**-0.5
    excess_x = (xx / (torch.sqrt(1 / c + xx) + time_origin)).unsqueeze(-1)
    excess_y = (yy / (torch.sqrt(1 / c + yy) + time_origin)).unsqueeze(-2)
    return arccosh1p(c * (excess_x * (excess_y + time_origin) + time_origin * excess_y - xy)) / c**0.5


@full_precision
def pairwise_cosine(x: Tensor, y: Tensor) -> Tensor:
    """Cosine of every row of x with every row of y, the Euclidean counterpart of `pairwise_dist`.

    Norms below `MIN_DISTANCE` count as `MIN_DISTANCE`, which bounds the gradient.

    Args:
        x: vectors, `(..., N, D)`.
        y: vectors, `(..., M, D)`.

    Returns:
        Cosines in [-1, 1], `(..., N, M)`; 0 where a vector is zero.
    """
    xx, xy, yy = all_products(x, y)
    return xy / (xx.clamp_min(MIN_DISTANCE**2).unsqueeze(-1) * yy.clamp_min(MIN_DISTANCE**2).unsqueeze(-2)).sqrt()


def _aperture(sine: Tensor) -> Tensor:
    """Angle whose sine is given; the sine is kept `APERTURE_MARGIN` below 1."""
    return torch.asin(sine.clamp_max(1 - APERTURE_MARGIN))


@full_precision
def half_aperture(x: Tensor, c: Curvature, q: float = CONE_CONSTANT) -> Tensor:
    """Half-aperture arcsin(2q / (sqrt(c)|x|)) of the entailment cone at each point (Eq. 6).

    For |x| below about 2q/sqrt(c) the cone has its greatest width, with gradient 0.

    Args:
        x: points, `(..., D)`.
        c: curvature magnitude.
        q: the constant that the paper calls K.

    Returns:
        Half-apertures in (0, 1.526] rad, `(...)`.
    """
    return _aperture(2 * q / _scaled_norm(x, c))


@full_precision
def euclidean_half_aperture(x: Tensor, q: float = CONE_CONSTANT) -> Tensor:
    """Half-aperture arcsin(q / |x|) of a Euclidean cone at each point.

    Args:
        x: vectors, `(..., D)`.
        q: the constant that the paper calls K.

    Returns:
        Half-apertures in (0, 1.526] rad, `(...)`.
    """
    return _aperture(q / _scaled_norm(x, 1.0))


def _decompose(yy: Tensor, wy: Tensor, ww: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lengths of w along and across y, and |y|, from `difference_products(y, x)`.

    Where |y| < `MIN_DISTANCE`, y has no direction; the results are 0, |w| and 0.
    """
    at_origin = yy < MIN_DISTANCE**2
    norm = torch.where(at_origin, 1.0, yy).sqrt()
    along = torch.where(at_origin, 0.0, wy / norm)
    return along, safe_sqrt(ww - along**2), torch.where(at_origin, 0.0, norm)


def _angle(sideways: Tensor, outwards: Tensor) -> Tensor:
    """atan2 of two `(...)` legs; the gradient is 0 where both legs are so short that only noise is left of them."""
    too_close = sideways**2 + outwards**2 < MIN_DISTANCE**2
    angle = torch.atan2(torch.where(too_close, 0.0, sideways), torch.where(too_close, 1.0, outwards))
    return torch.where(too_close, torch.atan2(sideways.detach(), outwards.detach()), angle)


@full_precision
def exterior_angle(parent: Tensor, child: Tensor, c: Curvature) -> Tensor:
    """Angle at the parent between the ray away from the origin and the geodesic to the child (ext in Eq. 7).

    The child lies in the cone of the parent where this angle is at most the `half_aperture` of the parent. The
    error is at most 1e-7 times the smaller of the two time components (in units of 1/sqrt(c)).

    Args:
        parent: points, `(..., D)`.
        child: points, `(..., D)`.
        c: curvature magnitude.

    Returns:
        Angles in [0, pi] rad, `(...)`: 0 straight outwards, pi towards the origin. Where Eq. 7 is undefined: 0 if the
        points coincide (a point lies in its own cone), pi/2 if the parent is at the origin.
    """
    yy, wy, ww = difference_products(parent, child)
    along, across, parent_norm = _decompose(yy, wy, ww)
    # Eq. 7 is an arccos, which has no derivative at 0 and pi. The same angle is the atan2 of two legs, sideways and
    # outwards (both times sinh of the distance), which has a derivative wherever the points differ.
    outwards = torch.sqrt(1 / c + yy) * along - parent_norm * _time_difference(yy, wy, ww, c)
    return _angle(c**0.5 * across, c * outwards)


@full_precision
def euclidean_exterior_angle(parent: Tensor, child: Tensor) -> Tensor:
    """Angle between the parent y and x - y for the child x, the limit of `exterior_angle` for c -> 0.

    It is arccos(y.(x - y) / (|y||x - y|)).

    Args:
        parent: vectors, `(..., D)`.
        child: vectors, `(..., D)`.

    Returns:
        Angles in [0, pi] rad, `(...)`; where the formula is undefined, the same values as `exterior_angle`.
    """
    yy, wy, ww = difference_products(parent, child)
    along, across, _ = _decompose(yy, wy, ww)
    return _angle(across, along)
