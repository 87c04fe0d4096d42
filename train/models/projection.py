"""The learned geometry in two dimensions: PCA of tangent vectors at the origin, and distances from the origin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from train.models import lorentz
from train.models.alignment import EMBEDDING_NAMES, Embeddings, Geometry


@dataclass(frozen=True)
class TangentProjection:
    """The four embeddings of N spots, by name, on the two principal axes of all of them.

    Lengths are distances from the origin, in units of the curvature radius 1/sqrt(c) in the Lorentz geometry.
    """

    points: dict[str, np.ndarray]
    """(N, 2) tangent vectors at the origin, in coordinates of the two axes."""
    radii: dict[str, np.ndarray]
    """(N,) distances from the origin in all dimensions, in the same unit."""
    explained: float
    """Share of the squared distances from the origin that the two axes hold, in [0, 1]."""
    geometry: Geometry


@torch.no_grad()
def tangent_projection(embeddings: Embeddings, geometry: Geometry) -> TangentProjection:
    """Project the tangent vectors of all embeddings on the first two axes of their uncentred second moment.

    Nothing is centred, so that the origin stays where it is. It computes in float64.

    Args:
        embeddings: N spots.
        geometry: "lorentz" takes points to the tangent space at the origin; "euclidean" vectors stay as they are.

    Returns:
        Points, radii and the explained share.
    """
    vectors = {name: _tangent(getattr(embeddings, name), embeddings.c, geometry) for name in EMBEDDING_NAMES}
    stacked = torch.cat(list(vectors.values()))
    moments, axes = torch.linalg.eigh(stacked.T @ stacked)
    axes = axes[:, -2:].flip(1)
    # The sign of an eigenvector is arbitrary; its largest component is made positive.
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    return TangentProjection(
        points={name: (v @ axes).float().cpu().numpy() for name, v in vectors.items()},
        radii={name: v.norm(dim=1).float().cpu().numpy() for name, v in vectors.items()},
        explained=float(moments[-2:].sum() / moments.sum().clamp_min(1e-300)),
        geometry=geometry,
    )


def _tangent(x: Tensor, c: Tensor, geometry: Geometry) -> Tensor:
    """Tangent vectors at the origin in float64, in units of the curvature radius."""
    x = x.double()
    return lorentz.log_map0(x, c.double()) * c.double().sqrt() if geometry == "lorentz" else x


def to_disk(points: np.ndarray) -> np.ndarray:
    """Map tangent vectors at the origin to the Poincare disk of radius 1: length r goes to tanh(r / 2).

    Args:
        points: tangent vectors in units of the curvature radius, `(N, 2)`.

    Returns:
        Points in the disk, `(N, 2)`; directions and hyperbolic distances from the origin are kept.
    """
    r = np.linalg.norm(points, axis=1, keepdims=True)
    scaled: np.ndarray = points * np.divide(np.tanh(r / 2), r, out=np.full_like(r, 0.5), where=r > 0)
    return scaled
