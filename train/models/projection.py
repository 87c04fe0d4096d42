"""The learned geometry in two dimensions: tangent PCA through the origin, and how far each embedding is from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from train.models import lorentz
from train.models.alignment import Embedded, Geometry

EMBEDDINGS = ("image_spot", "image_niche", "gene_spot", "gene_niche")


@dataclass(frozen=True)
class TangentProjection:
    """The four embeddings of n spots, by name."""

    points: dict[str, np.ndarray]
    """(n, 2) tangent vectors at the origin on the first two principal axes of all four; lengths are distances
    from the origin, in units of the curvature radius where there is one."""
    radii: dict[str, np.ndarray]
    """(n,) distance from the origin in all dimensions, in the same unit."""
    explained: float
    """Share of the squared distance that the two axes hold."""
    geometry: Geometry


@torch.no_grad()
def tangent_projection(e: Embedded, geometry: Geometry) -> TangentProjection:
    """The origin stays where it is: axes are those of the uncentred second moment."""
    vectors = {name: _tangent(getattr(e, name), e.c, geometry) for name in EMBEDDINGS}
    every = torch.cat(list(vectors.values()))
    moment, axes = torch.linalg.eigh(every.T @ every)
    axes = axes[:, -2:].flip(1)
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()  # an eigenvector's sign is free
    return TangentProjection(
        points={name: (v @ axes).float().cpu().numpy() for name, v in vectors.items()},
        radii={name: v.norm(dim=1).float().cpu().numpy() for name, v in vectors.items()},
        explained=float(moment[-2:].sum() / moment.sum().clamp_min(1e-300)),
        geometry=geometry,
    )


def _tangent(x: Tensor, c: Tensor, geometry: Geometry) -> Tensor:
    x = x.double()
    return lorentz.log_map0(x, c.double()) * c.double().sqrt() if geometry == "lorentz" else x


def to_disk(points: np.ndarray) -> np.ndarray:
    """(n, 2) tangent vectors to the Poincare disk of radius 1: length r goes to tanh(r / 2)."""
    r = np.linalg.norm(points, axis=1, keepdims=True)
    return points * np.divide(np.tanh(r / 2), r, out=np.full_like(r, 0.5), where=r > 0)
