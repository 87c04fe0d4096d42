"""What aligns images with genes: contrast (HCA, Eq. 8 and 9) and entailment (HEA, Eq. 10), by coefficients.

An ablation is a choice of `Terms`; all share one code path, and a term of weight 0 costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from train.models import lorentz

Geometry = Literal["lorentz", "euclidean"]
Level = Literal["spot", "niche"]
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
    main: Level = "spot"
    """The level whose images and genes are contrasted both ways; "niche" swaps the levels in `CONTRASTS`."""


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
    """How alike every row of a is to every row of b, `(..., B, d)` to `(..., B, B)`: -d_L, or the cosine."""
    if geometry == "lorentz":
        return -lorentz.pairwise_dist(a, b, c)
    return lorentz.pairwise_cosine(a, b)


def contrast(logits: Tensor) -> Tensor:
    """Mean cross-entropy of each row of `(..., B, B)` logits against its own column (Eq. 8), `(...)`.

    Eq. 8 as printed rewards distant pairs and leaves the pair itself out of the sum, so that it has no lower
    bound; here logits grow with similarity, and j = i is one of the candidates.
    """
    return -logits.log_softmax(dim=-1).diagonal(dim1=-2, dim2=-1).mean(dim=-1)


def contrasts(main: Level) -> list[tuple[str, str]]:
    """`CONTRASTS` with `main` as the level of the mutual pair."""
    if main == "spot":
        return list(CONTRASTS)
    other = {"image_spot": "image_niche", "gene_spot": "gene_niche"}
    other |= {niche: spot for spot, niche in other.items()}
    return [(other[anchor], other[candidates]) for anchor, candidates in CONTRASTS]


def contrast_loss(e: Embedded, terms: Terms) -> Tensor:
    """Weighted sum of the contrasts (HCA, Eq. 9), a scalar; 0 without a graph if every weight is 0."""
    used = [(pair, weight) for pair, weight in zip(contrasts(terms.main), terms.contrast, strict=True) if weight]
    if not used:
        return _zero(e)
    # All matrices in one product. Two terms that differ only in who looks for whom share a matrix.
    pairs: list[tuple[str, str]] = []
    for pair, _ in used:
        if pair[::-1] not in pairs:
            pairs.append(pair)
    with torch.autocast(e.image_spot.device.type, enabled=False):
        anchors, candidates = (_stack(e, [pair[k] for pair in pairs]) for k in range(2))
        logits = similarity(anchors, candidates, e.c, terms.geometry)
        matrix = dict(zip(pairs, logits / e.tau.to(logits.dtype), strict=True))
        losses = [contrast(matrix[pair] if pair in matrix else matrix[pair[::-1]].T) for pair, _ in used]
        return _times([weight for _, weight in used], torch.stack(losses)).sum()


def entailment_loss(e: Embedded, terms: Terms) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of mean(max(0, ext - eta aper)) over the entailments (HEA, Eq. 7 and 10), a scalar in rad.

    Beside it two detached scalars over the terms in use: `violated`, the share of children outside their
    parent's cone, and `aperture`, the mean half-aperture in rad (before eta). NaN when no term is in use.
    """
    rows = zip(ENTAILMENTS, terms.reverse, terms.entail, terms.etas, strict=True)
    used = [(pair[::-1] if turned else pair, weight, eta) for pair, turned, weight, eta in rows if weight]
    if not used:
        nothing = _zero(e)
        return nothing, {"violated": nothing / 0, "aperture": nothing / 0}
    with torch.autocast(e.image_spot.device.type, enabled=False):
        parents, children = (_stack(e, [pair[k] for pair, _, _ in used]) for k in range(2))
        if terms.geometry == "lorentz":
            angle = lorentz.exterior_angle(parents, children, e.c)
            aperture = lorentz.half_aperture(parents, e.c)
        else:
            angle = lorentz.euclidean_exterior_angle(parents, children)
            aperture = lorentz.euclidean_half_aperture(parents)
        excess = angle - _times([eta for _, _, eta in used], aperture)
        loss = _times([weight for _, weight, _ in used], excess.clamp_min(0).mean(dim=-1)).sum()
        violated = (excess.detach() > 0).to(excess.dtype).mean()
    return loss, {"violated": violated, "aperture": aperture.detach().mean()}


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


def _stack(e: Embedded, names: list[str]) -> Tensor:
    return torch.stack([getattr(e, name) for name in names])


def _times(factors: Iterable[float], values: Tensor) -> Tensor:
    """Each of `(k, ...)` values times its factor; no tensor of factors, as copying one to a GPU waits for it."""
    return torch.stack([factor * value for factor, value in zip(factors, values.unbind(), strict=True)])
