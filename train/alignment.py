"""What aligns images with genes: contrast (HCA, Eq. 8 and 9) and entailment (HEA, Eq. 10), by coefficients.

An ablation is a choice of `Terms`; all share one code path, and a term of weight 0 costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from train import lorentz

Geometry = Literal["lorentz", "euclidean"]
Four = tuple[float, float, float, float]
FourFlags = tuple[bool, bool, bool, bool]

CONTRASTS = (
    ("image_spot", "gene_spot"),
    ("gene_spot", "image_spot"),
    ("gene_niche", "image_spot"),
    ("image_niche", "gene_spot"),
)
"""(anchor, candidates). Niches look for spots and not the reverse: a spot may belong to several niches."""

ENTAILMENTS = (
    ("image_spot", "image_niche"),
    ("gene_spot", "gene_niche"),
    ("image_spot", "gene_spot"),
    ("image_niche", "gene_niche"),
)
"""(parent, child): the general concept entails the specific one."""


@dataclass(frozen=True)
class Terms:
    """Absolute weights of the eight terms (the paper's are all 1/4), and how they are measured."""

    contrast: Four
    """In the order of `CONTRASTS`: Is->Gs, Gs->Is, Gn->Is, In->Gs."""
    entail: Four
    """In the order of `ENTAILMENTS`: Is>In, Gs>Gn, Is>Gs, In>Gn."""
    etas: Four = (1.0, 1.0, 1.0, 1.0)
    """Multipliers of the half-aperture, in the order of `entail`."""
    reverse: FourFlags = (False, False, False, False)
    """Entailments turned round (the child becomes the parent), in the order of `entail`."""
    geometry: Geometry = "lorentz"


@dataclass
class Embedded:
    """One batch in the latent space: four `(B, d)` tensors, row i of each belonging to the same spot.

    Space components of hyperbolic points in the Lorentz geometry, plain vectors in the Euclidean one.
    """

    image_spot: Tensor
    image_niche: Tensor
    gene_spot: Tensor
    gene_niche: Tensor
    c: Tensor
    """Curvature magnitude, a scalar; the Euclidean geometry does not use it."""
    tau: Tensor
    """Temperature, a scalar."""


def similarity(a: Tensor, b: Tensor, c: Tensor, geometry: Geometry) -> Tensor:
    """How alike every row of a `(B1, d)` is to every row of b `(B2, d)`, `(B1, B2)`: -d_L, or the cosine."""
    if geometry == "lorentz":
        return -lorentz.pairwise_distance(a, b, c)
    return lorentz.pairwise_cosine(a, b)


def contrast(logits: Tensor) -> Tensor:
    """Mean cross-entropy of each row of `(B, B)` logits against its own column (Eq. 8), a scalar.

    Eq. 8 as printed rewards distant pairs and leaves the pair itself out of the sum, so that it has no lower
    bound; here logits grow with similarity, and j = i is one of the candidates.
    """
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def contrast_loss(e: Embedded, terms: Terms) -> Tensor:
    """Weighted sum of the contrasts (HCA, Eq. 9), a scalar; 0 without a graph if every weight is 0."""
    total = _zero(e)
    computed: dict[tuple[str, str], Tensor] = {}
    with torch.autocast(device_type=e.image_spot.device.type, enabled=False):
        for (anchor, candidates), weight in zip(CONTRASTS, terms.contrast, strict=True):
            if weight == 0:
                continue
            if (candidates, anchor) in computed:  # the same pairs seen from the other side
                logits = computed[candidates, anchor].T
            else:
                alike = similarity(getattr(e, anchor), getattr(e, candidates), e.c, terms.geometry)
                logits = computed[anchor, candidates] = alike / e.tau.to(alike.dtype)
            total = total + weight * contrast(logits)
    return total


def entailment_loss(e: Embedded, terms: Terms) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of mean(max(0, ext - eta aper)) over the entailments (HEA, Eq. 7 and 10), a scalar in rad.

    Beside it two detached scalars over the terms in use: `violated`, the share of children outside their
    parent's cone, and `aperture`, the mean half-aperture in rad (before eta). NaN when no term is in use.
    """
    total = _zero(e)
    violated, apertures = [], []
    with torch.autocast(device_type=e.image_spot.device.type, enabled=False):
        rows = zip(ENTAILMENTS, terms.entail, terms.etas, terms.reverse, strict=True)
        for (general, specific), weight, eta, turned in rows:
            if weight == 0:
                continue
            parent, child = getattr(e, general), getattr(e, specific)
            if turned:
                parent, child = child, parent
            if terms.geometry == "lorentz":
                angle = lorentz.exterior_angle(parent, child, e.c)
                aperture = lorentz.half_aperture(parent, e.c)
            else:
                angle = lorentz.euclidean_exterior_angle(parent, child)
                aperture = lorentz.euclidean_half_aperture(parent)
            excess = angle - eta * aperture
            total = total + weight * excess.clamp_min(0).mean()
            violated.append((excess.detach() > 0).to(excess.dtype).mean())
            apertures.append(aperture.detach().mean())
    return total, {"violated": _mean(violated, total), "aperture": _mean(apertures, total)}


@torch.no_grad()
def geometry_summary(e: Embedded, geometry: Geometry = "lorentz") -> dict[str, Tensor]:
    """Detached scalars to log: `c`, `tau`, the mean distance of each embedding from the origin: `radius_*`.

    They stay on the device; reading one as a number is what waits for it. The Euclidean radius is the norm.
    """
    summary = {"c": e.c.detach(), "tau": e.tau.detach()}
    for name in ("image_spot", "image_niche", "gene_spot", "gene_niche"):
        x = getattr(e, name)
        r = lorentz.radius(x, e.c) if geometry == "lorentz" else x.float().norm(dim=-1)
        summary[f"radius_{name}"] = r.mean()
    return summary


def _zero(e: Embedded) -> Tensor:
    dtype = torch.float64 if e.image_spot.dtype == torch.float64 else torch.float32
    return torch.zeros((), dtype=dtype, device=e.image_spot.device)


def _mean(values: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(values).mean() if values else like.new_full((), float("nan"))
