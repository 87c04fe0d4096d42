"""The exponential map of scaled tangent vectors, with its gradient written out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from train.models.lorentz import MAX_RADIUS, MIN_SCALED_NORM
from train.models.numerics import to_widest_float


class _ScaledExpMap0(torch.autograd.Function):
    """See `scaled_exp_map0`."""

    @staticmethod
    def forward(ctx: Any, tangents: Tensor, log_scales: Tensor, c: Tensor) -> Tensor:
        c, scales = to_widest_float(c), to_widest_float(log_scales).exp().unsqueeze(-1)
        norms = to_widest_float(torch.linalg.vector_norm(tangents, dim=-1))
        r = norms.mul_(c.sqrt() * scales).clamp_min_(MIN_SCALED_NORM)  # as in `lorentz.exp_map0`
        ratio = r.clamp_max(MAX_RADIUS).sinh_().div_(r)
        factor = (ratio * scales).to(tangents.dtype).unsqueeze(-1)
        ctx.save_for_backward(tangents, c, scales, r, ratio, factor)
        return tangents * factor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tangents, c, scales, r, ratio, factor = ctx.saved_tensors
        along = to_widest_float((tangents * grad).sum(dim=-1)).mul_(scales)
        # r d(sinh(r)/r)/dr = cosh(r) - sinh(r)/r, 0 for cosh where r is held; r grows as |v|, as scale and as sqrt(c).
        slope = (
            r.cosh().masked_fill_(r > MAX_RADIUS, 0.0).sub_(ratio).masked_fill_(r <= MIN_SCALED_NORM, 0.0).mul_(along)
        )
        by_tangent = (c * (scales / r).square_() * slope).to(grad.dtype).unsqueeze(-1)
        by_scale = (ratio * along).add_(slope).sum(dim=-1)
        return (grad * factor).addcmul_(tangents, by_tangent), by_scale, slope.sum() / (2 * c)


def scaled_exp_map0(tangents: Tensor, log_scales: Tensor, c: Tensor) -> Tensor:
    """`lorentz.exp_map0` of K sets of tangent vectors, each set times the exponential of its own logarithmic scale.

    Args:
        tangents: `(K, B, D)`, float32 or float64.
        log_scales: `(K,)`.
        c: curvature magnitude.

    Returns:
        Points on the hyperboloid, `(K, B, D)`. They have no second derivatives.
    """
    with torch.autocast(tangents.device.type, enabled=False):
        points: Tensor = _ScaledExpMap0.apply(tangents, log_scales, c)
    return points
