"""The losses that align images with genes: contrast (HCA, Eq. 8 and 9) and entailment (HEA, Eq. 7 and 10).

An ablation is a choice of `Terms`. All ablations run the same code, and a term of weight 0 is not computed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from train.models import lorentz

Geometry = Literal["lorentz", "euclidean"]
Level = Literal["spot", "niche"]
FourWeights = tuple[float, float, float, float]
FourFlags = tuple[bool, bool, bool, bool]

CONTRASTS = (
    ("image_spot", "gene_spot"),
    ("gene_spot", "image_spot"),
    ("gene_niche", "image_spot"),
    ("image_niche", "gene_spot"),
)
"""(anchor, candidates). A niche is contrasted with spots, but a spot not with niches: it may belong to several."""

ENTAILMENTS = (
    ("image_spot", "image_niche"),
    ("gene_spot", "gene_niche"),
    ("image_spot", "gene_spot"),
    ("image_niche", "gene_niche"),
)
"""(parent, child): the general concept entails the specific one."""

EMBEDDING_NAMES = ("image_spot", "image_niche", "gene_spot", "gene_niche")
"""The tensors of `Embeddings` that hold points."""


@dataclass(frozen=True)
class Terms:
    """Absolute weights of the eight terms (the paper's are all 1/4), and how the terms are measured."""

    contrast: FourWeights
    """In the order of `CONTRASTS`: Is->Gs, Gs->Is, Gn->Is, In->Gs."""
    entail: FourWeights
    """In the order of `ENTAILMENTS`: Is>In, Gs>Gn, Is>Gs, In>Gn."""
    etas: FourWeights = (1.0, 1.0, 1.0, 1.0)
    """Multipliers of the half-aperture, in the order of `entail`."""
    reverse: FourFlags = (False, False, False, False)
    """Which entailments are reversed (the child becomes the parent), in the order of `entail`."""
    geometry: Geometry = "lorentz"
    """Hyperbolic distances and cones, or cosines and Euclidean cones."""
    main: Level = "spot"
    """The level whose images and genes are contrasted in both directions; "niche" swaps the levels in `CONTRASTS`."""


@dataclass
class Embeddings:
    """One batch in the latent space: four `(B, D)` tensors; row i of each belongs to the same spot.

    They are space components of hyperbolic points in the Lorentz geometry, plain vectors in the Euclidean one.
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
    """Similarity of every row of a to every row of b: minus the hyperbolic distance, or the cosine.

    Args:
        a: embeddings, `(..., B, D)`.
        b: embeddings, `(..., B, D)`.
        c: curvature magnitude.
        geometry: "lorentz" for the distance, "euclidean" for the cosine.

    Returns:
        Similarities, `(..., B, B)`.
    """
    if geometry == "lorentz":
        return -lorentz.pairwise_dist(a, b, c)
    return lorentz.pairwise_cosine(a, b)


def info_nce(logits: Tensor) -> Tensor:
    """Mean cross-entropy of each row of logits against its own column (Eq. 8).

    Eq. 8 as printed rewards distant pairs and leaves the pair itself out of the sum, so that it has no lower bound.
    Here logits grow with similarity, and j = i is one of the candidates.

    Args:
        logits: similarities over the temperature, `(..., B, B)`; row i is the anchor, column i its own candidate.

    Returns:
        Losses, `(...)`, at least 0.
    """
    return -logits.log_softmax(dim=-1).diagonal(dim1=-2, dim2=-1).mean(dim=-1)


def contrast_pairs(main: Level) -> list[tuple[str, str]]:
    """The (anchor, candidates) of `CONTRASTS`, with `main` as the level that is contrasted in both directions."""
    if main == "spot":
        return list(CONTRASTS)
    other = {"image_spot": "image_niche", "gene_spot": "gene_niche"}
    other |= {niche: spot for spot, niche in other.items()}
    return [(other[anchor], other[candidates]) for anchor, candidates in CONTRASTS]


def contrast_loss(embeddings: Embeddings, terms: Terms) -> Tensor:
    """Weighted sum of the four contrasts (HCA, Eq. 9).

    Args:
        embeddings: one batch.
        terms: the weights, the geometry and the main level.

    Returns:
        A scalar; 0 without a graph if every weight is 0.
    """
    weights = {pair: w for pair, w in zip(contrast_pairs(terms.main), terms.contrast, strict=True) if w}
    if not weights:
        return _zero(embeddings)
    # All similarities come from one product. Two terms that only swap anchor and candidates share a matrix.
    pairs: list[tuple[str, str]] = []
    for pair in weights:
        if pair[::-1] not in pairs:
            pairs.append(pair)
    with torch.autocast(embeddings.image_spot.device.type, enabled=False):
        anchors, candidates = (_stack(embeddings, [pair[k] for pair in pairs]) for k in range(2))
        logits = similarity(anchors, candidates, embeddings.c, terms.geometry)
        logits_of = dict(zip(pairs, logits / embeddings.tau.to(logits.dtype), strict=True))
        losses = [info_nce(logits_of[pair] if pair in logits_of else logits_of[pair[::-1]].T) for pair in weights]
        return _scale(weights.values(), torch.stack(losses)).sum()


def entailment_loss(embeddings: Embeddings, terms: Terms) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of mean(max(0, ext - eta aper)) over the four entailments (HEA, Eq. 7 and 10).

    Args:
        embeddings: one batch.
        terms: the weights, the multipliers eta, the directions and the geometry.

    Returns:
        The loss, a scalar in rad (0 without a graph if every weight is 0), and two detached scalars over the terms
        in use: `violated`, the share of children outside the cone of their parent, and `aperture`, the mean
        half-aperture in rad before eta. Both are NaN if no term is in use.
    """
    rows = zip(ENTAILMENTS, terms.reverse, terms.entail, terms.etas, strict=True)
    active = [(pair[::-1] if reverse else pair, weight, eta) for pair, reverse, weight, eta in rows if weight]
    if not active:
        zero = _zero(embeddings)
        return zero, {"violated": zero / 0, "aperture": zero / 0}
    with torch.autocast(embeddings.image_spot.device.type, enabled=False):
        parents, children = (_stack(embeddings, [pair[k] for pair, _, _ in active]) for k in range(2))
        if terms.geometry == "lorentz":
            angle = lorentz.exterior_angle(parents, children, embeddings.c)
            aperture = lorentz.half_aperture(parents, embeddings.c)
        else:
            angle = lorentz.euclidean_exterior_angle(parents, children)
            aperture = lorentz.euclidean_half_aperture(parents)
        excess = angle - _scale([eta for _, _, eta in active], aperture)
        loss = _scale([weight for _, weight, _ in active], excess.clamp_min(0).mean(dim=-1)).sum()
        violated = (excess.detach() > 0).to(excess.dtype).mean()
    return loss, {"violated": violated, "aperture": aperture.detach().mean()}


@torch.no_grad()
def geometry_summary(embeddings: Embeddings, geometry: Geometry = "lorentz") -> dict[str, Tensor]:
    """Scalars of a batch to log: curvature, temperature and the mean distance of each embedding from the origin.

    Args:
        embeddings: one batch.
        geometry: the distance from the origin is hyperbolic for "lorentz", the norm for "euclidean".

    Returns:
        Detached scalars `c`, `tau` and `radius_image_spot` to `radius_gene_niche`. They stay on the device, since
        only converting one to a number has to wait for a GPU.
    """
    points = _stack(embeddings, list(EMBEDDING_NAMES))
    radii = lorentz.radius(points, embeddings.c) if geometry == "lorentz" else points.float().norm(dim=-1)
    means = {f"radius_{name}": mean for name, mean in zip(EMBEDDING_NAMES, radii.mean(dim=-1), strict=True)}
    return {"c": embeddings.c.detach(), "tau": embeddings.tau.detach()} | means


def _zero(embeddings: Embeddings) -> Tensor:
    dtype = torch.float64 if embeddings.image_spot.dtype == torch.float64 else torch.float32
    return torch.zeros((), dtype=dtype, device=embeddings.image_spot.device)


def _stack(embeddings: Embeddings, names: list[str]) -> Tensor:
    return torch.stack([getattr(embeddings, name) for name in names])


def _scale(factors: Collection[float], values: Tensor) -> Tensor:
    """Multiply `(k, ...)` values by k numbers, without a tensor of them: copying one to a GPU would wait for it."""
    if len(set(factors)) == 1:
        return next(iter(factors)) * values
    return torch.stack([factor * value for factor, value in zip(factors, values.unbind(), strict=True)])
