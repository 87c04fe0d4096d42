"""Contrast and entailment in the Lorentz geometry for stacked points, with their gradients written out.

The functions of `lorentz.py` compose to the same numbers, but in hundreds of operations on small tensors, which take
a third of the step of a small model. Both losses are scalars: the gradient is computed beside the value, on buffers
that are at hand, and the backward pass only multiplies it.

All is in units of the curvature radius: X = sqrt(c) x, with time component T = sqrt(1 + |X|^2). c occurs nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from train.models.lorentz import APERTURE_MARGIN, CONE_CONSTANT, MIN_DISTANCE
from train.models.numerics import TINY, at_least_float32, to_widest_float


class UnitPoints(NamedTuple):
    """K sets of B points in units of the curvature radius, in float64 and without a graph."""

    points: Tensor
    """X, `(K, B, D)`."""
    rows: Tensor
    """|X|^2 and T, `(2, K, B)`."""


@torch.no_grad()
def unit_points(points: Tensor, c: Tensor) -> UnitPoints:
    """Points `(K, B, D)` of curvature -c in units of the curvature radius."""
    x = to_widest_float(points) * to_widest_float(c).sqrt()
    squares = torch.linalg.vector_norm(x, dim=-1).square_()
    return UnitPoints(x, torch.stack([squares, (1 + squares).sqrt_()]))


def mean_radii(points: Tensor, c: Tensor, unit: UnitPoints) -> Tensor:
    """Mean distance of each set from the origin, `(K,)`, from points and `unit_points` of them."""
    radii = unit.rows[0].sqrt().asinh_().mean(dim=-1) / c.to(unit.rows.dtype).sqrt()
    return radii.to(at_least_float32(points).dtype)


class Contrast(NamedTuple):
    """Weights of the mean cross-entropies of one matrix of logits, by rows and by columns."""

    anchor: int
    """Which of the K sets the rows are."""
    candidates: int
    """Which of the K sets the columns are."""
    rows: float
    columns: float


class Cone(NamedTuple):
    """One entailment."""

    parent: int
    child: int
    weight: float
    eta: float
    """Multiplier of the half-aperture."""


def scale(factors: Sequence[float], values: Tensor) -> Tensor:
    """Multiply `(k, ...)` values by k numbers, without a tensor of them: copying one to a GPU would wait for it."""
    if len(set(factors)) == 1:
        return factors[0] * values
    return torch.stack([factor * value for factor, value in zip(factors, values.unbind(), strict=True)])


def _excess_products(unit: UnitPoints, contrasts: Sequence[Contrast]) -> Tensor:
    """T_i T_j - X_i.X_j - 1 of every contrast, `(P, B, B)`, from E = T - 1, as the sum with 1 would lose digits."""
    points, excess = unit.points.unbind(), (unit.rows[0] / (unit.rows[1] + 1)).unbind()
    anchors = torch.stack([excess[pair.anchor] for pair in contrasts])
    candidates = torch.stack([excess[pair.candidates] for pair in contrasts])
    z = torch.addcmul(candidates.unsqueeze(-2), anchors.unsqueeze(-1), (candidates + 1).unsqueeze(-2))
    for matrix, pair in zip(z.unbind(), contrasts, strict=True):
        matrix.addmm_(points[pair.anchor], points[pair.candidates].T, alpha=-1)
    return z


class _Contrast(torch.autograd.Function):
    """See `contrast`."""

    @staticmethod
    def forward(
        ctx: Any,
        points: Tensor,
        c: Tensor,
        tau: Tensor,
        unit: UnitPoints,
        contrasts: Sequence[Contrast],
        has_gradient: bool,
    ) -> Tensor:
        n, c, tau = points.shape[1], to_widest_float(c), to_widest_float(tau)
        z = _excess_products(unit, contrasts).to(points.dtype).clamp_min_(0)
        sinh = (z + 2).mul_(z).sqrt_()
        logits = (z + sinh).log1p_().mul_((-1 / (c.sqrt() * tau)).to(z.dtype))  # -distance / tau
        log_shares = logits.log_softmax(dim=-1)
        means = log_shares.diagonal(dim1=-2, dim2=-1).mean(dim=-1)
        loss = -scale([pair.rows for pair in contrasts], means).sum()
        # The derivative by a logit is its share in the softmax, less 1 on the diagonal.
        slopes = log_shares.exp_()
        for slope, matrix, pair in zip(slopes.unbind(), logits.unbind(), contrasts, strict=True):
            slope.mul_(pair.rows / n)
            if pair.columns:
                log_share = matrix.log_softmax(dim=0)
                loss -= pair.columns * log_share.diagonal().mean()
                slope.add_(log_share.exp_(), alpha=pair.columns / n)
            slope.diagonal().sub_((pair.rows + pair.columns) / n)
        if has_gradient:
            along_logits = torch.dot(slopes.view(-1), logits.view(-1))
            # c times the derivative by z, as d arccosh(1 + z) = dz / sinh.
            slopes.div_(F.threshold(sinh, TINY, math.inf, inplace=True)).mul_((-c.sqrt() / tau).to(z.dtype))
            times = unit.rows[1].to(z.dtype)
            by_c = _sum_by_curvature(slopes, z, times, contrasts) / c**2
            gradient = _gradient_of_products(slopes, points, times, contrasts)
            ctx.save_for_backward(gradient, by_c - along_logits / (2 * c), -along_logits / tau)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *(grad * gradient for gradient in ctx.saved_tensors), None, None, None


def _sum_by_curvature(slopes: Tensor, z: Tensor, times: Tensor, contrasts: Sequence[Contrast]) -> Tensor:
    """The sum of slopes_ij c dz_ij/dc, where c dz_ij/dc = z_ij - (T_i - T_j)^2 / (2 T_i T_j), a scalar.

    That is because c dX/dc = X / 2 and c dT/dc = (T - 1/T) / 2.
    """
    sets = times.unbind()
    anchors = torch.stack([sets[pair.anchor] for pair in contrasts]).unsqueeze(-1)
    candidates = torch.stack([sets[pair.candidates] for pair in contrasts]).unsqueeze(-2)
    relative = torch.sub(anchors, candidates).square_().div_(2 * anchors).div_(candidates)
    return torch.dot(slopes.view(-1), relative.neg_().add_(z).view(-1))


def _gradient_of_products(slopes: Tensor, points: Tensor, times: Tensor, contrasts: Sequence[Contrast]) -> Tensor:
    """The sum of slopes_ij dz_ij/dx / c, where dz_ij/dx_i = c (T_j/T_i x_i - x_j), `(K, B, D)`."""
    own, x, t, s = torch.zeros_like(times), points.unbind(), times.unbind(), slopes.unbind()
    for factor, (a, b, *_) in zip(s, contrasts, strict=True):
        own[a].addmv_(factor, t[b])
        own[b].addmv_(factor.T, t[a])
    gradient = points * own.div_(times).unsqueeze(-1)
    for factor, (a, b, *_) in zip(s, contrasts, strict=True):
        gradient[a].addmm_(factor, x[b], alpha=-1)
        gradient[b].addmm_(factor.T, x[a], alpha=-1)
    return gradient


def contrast(points: Tensor, c: Tensor, tau: Tensor, unit: UnitPoints, contrasts: Sequence[Contrast]) -> Tensor:
    """Weighted mean cross-entropies of `-pairwise_dist / tau`, each row (or column) against its own place in it.

    Products of points are in float64, as terms cancel in them; what follows is in the points' own type.

    Args:
        points: `(K, B, D)`.
        c: curvature magnitude.
        tau: temperature.
        unit: the same points, of `unit_points`.
        contrasts: at least one, of the K sets.

    Returns:
        A scalar of the points' type, float32 at least. It has no second derivatives.
    """
    points, has_gradient = at_least_float32(points), _has_gradient(points, c, tau)
    with torch.autocast(points.device.type, enabled=False):
        loss: Tensor = _Contrast.apply(points, c, tau, unit, contrasts, has_gradient)
    return loss


class _Entailment(torch.autograd.Function):
    """See `entailment`."""

    @staticmethod
    def forward(
        ctx: Any, points: Tensor, c: Tensor, unit: UnitPoints, cones: Sequence[Cone], has_gradient: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        c, sets, rows = to_widest_float(c), unit.points.unbind(), unit.rows.unbind(1)
        differences = [sets[cone.child] - sets[cone.parent] for cone in cones]  # so that close points keep digits
        ww = torch.stack([torch.linalg.vector_norm(w, dim=-1) for w in differences]).square_()
        wy = torch.stack([w.mul_(sets[cone.parent]).sum(dim=-1) for cone, w in zip(cones, differences, strict=True)])
        yy, t_y = torch.stack([rows[cone.parent] for cone in cones], dim=1).unbind()
        t_x = torch.stack([rows[cone.child][1] for cone in cones])

        # As in `lorentz.exterior_angle`; a parent at the origin has no direction, norm and 1/norm are then 0.
        at_origin = yy < MIN_DISTANCE**2 * c
        norm = yy.sqrt().masked_fill_(at_origin, 0.0)
        inverse = norm.reciprocal().masked_fill_(at_origin, 0.0)
        along = wy * inverse
        rise = (2 * wy + ww) / (t_x + t_y)  # T of the child minus T of the parent
        outwards = t_y * along - norm * rise
        across = ww - along.square()
        flat = across <= TINY
        across.masked_fill_(flat, 0.0).sqrt_()
        squared_legs = across.square() + outwards.square()
        sine = 2 * CONE_CONSTANT * yy.rsqrt()
        aperture = sine.clamp_max(1 - APERTURE_MARGIN).asin_()
        etas = [cone.eta for cone in cones]
        excess = torch.atan2(across, outwards) - scale(etas, aperture)
        violated = (excess > 0).to(excess.dtype)
        weights = scale([cone.weight / points.shape[1] for cone in cones], violated)

        if has_gradient:
            # By the legs of the angle: d atan2(a, o) = (o da - a do) / (a^2 + o^2), 0 where only noise is left of them.
            pull = weights / squared_legs.masked_fill_(squared_legs < MIN_DISTANCE**2, math.inf)
            by_outwards = -pull * across
            half = pull * outwards / (2 * across.masked_fill_(flat, math.inf))  # by across^2 = ww - wy^2 / yy
            # By the three products. outwards = T_y wy / |y| - |y| (T_x - T_y) with T_x^2 = 1 + yy + 2 wy + ww.
            slant, turn = norm / t_x, along * inverse
            by_ww = half - by_outwards * slant / 2
            by_wy = by_outwards * (t_y * inverse - slant) - 2 * half * turn
            by_yy = (along + norm) / t_y - (t_y * turn + rise) * inverse - slant
            by_yy = half * turn.square() + by_outwards * by_yy / 2
            # The half-aperture arcsin(2q / |y|): its cosine is infinite where it has its greatest width.
            cosine = (1 - sine.square()).sqrt_().masked_fill_(sine > 1 - APERTURE_MARGIN, math.inf)
            by_yy += scale(etas, weights) * sine.clamp_max_(1) / (2 * yy.clamp_min(TINY) * cosine)
            # All products are c times those of x, which are what the loss depends on.
            by_c = (yy * by_yy + wy * by_wy + ww * by_ww).sum() / c
            gradient = _gradient_of_rows(by_yy, by_wy, by_ww, unit.points, cones, c.sqrt())
            ctx.save_for_backward(gradient.to(points.dtype), by_c)

        results = (weights * excess).sum(), violated.mean(), aperture.mean()
        loss, share, mean = torch.stack(results).to(points.dtype).unbind()
        ctx.mark_non_differentiable(share, mean)
        ctx.set_materialize_grads(False)
        return loss, share, mean

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 5
        return *(grad * gradient for gradient in ctx.saved_tensors), None, None, None


def _gradient_of_rows(
    by_yy: Tensor, by_wy: Tensor, by_ww: Tensor, points: Tensor, cones: Sequence[Cone], factor: Tensor
) -> Tensor:
    """Gradient by the points, `(K, B, D)`, from those by |y|^2, w.y and |w|^2 with w = x - y, times a factor."""
    by_xy = (by_wy - 2 * by_ww) * factor
    by_wy, by_x = by_wy * factor, (2 * factor) * by_ww
    by_y = (2 * factor) * by_yy - by_wy - by_xy
    own = torch.zeros_like(points[..., 0])
    for cone, y, x in zip(cones, by_y.unbind(), by_x.unbind(), strict=True):
        own[cone.parent].add_(y)
        own[cone.child].add_(x)
    gradient, sets = points * own.unsqueeze(-1), points.unbind()
    for cone, xy in zip(cones, by_xy.unsqueeze(-1).unbind(), strict=True):
        gradient[cone.parent].addcmul_(xy, sets[cone.child])
        gradient[cone.child].addcmul_(xy, sets[cone.parent])
    return gradient


def entailment(points: Tensor, c: Tensor, unit: UnitPoints, cones: Sequence[Cone]) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted sum of mean(max(0, exterior angle - eta half-aperture)).

    Args:
        points: `(K, B, D)`.
        c: curvature magnitude.
        unit: the same points, of `unit_points`.
        cones: at least one, of the K sets.

    Returns:
        The loss in rad, and without a graph the share of children outside of their parents' cones and the mean
        half-aperture in rad; scalars of the points' type, float32 at least. The loss has no second derivatives.
    """
    points, has_gradient = at_least_float32(points), _has_gradient(points, c)
    with torch.autocast(points.device.type, enabled=False):
        loss, violated, aperture = _Entailment.apply(points, c, unit, cones, has_gradient)
    return loss, violated, aperture


def _has_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
