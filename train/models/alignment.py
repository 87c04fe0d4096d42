"""The losses that align images with genes: contrast (HCA, Eq. 8 and 9) and entailment (HEA, Eq. 7 and 10).

An ablation is a choice of `Terms`. All ablations run the same code, and a term of weight 0 is not computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from train.models import lorentz
from train.models.lorentz_losses import Cone, Contrast, UnitPoints, contrast, entailment, mean_radii, scale, unit_points

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


@dataclass(frozen=True)
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

    @classmethod
    def of_points(cls, points: Tensor, c: Tensor, tau: Tensor) -> Embeddings:
        """From one `(4, B, D)` stack, in the order of `EMBEDDING_NAMES`, which need not be stacked again."""
        image_spot, image_niche, gene_spot, gene_niche = points.unbind()
        embeddings = cls(image_spot, image_niche, gene_spot, gene_niche, c, tau)
        embeddings.__dict__["points"] = points
        return embeddings

    @cached_property
    def points(self) -> Tensor:
        """The four, stacked in the order of `EMBEDDING_NAMES`."""
        return torch.stack([getattr(self, name) for name in EMBEDDING_NAMES])

    @cached_property
    def unit(self) -> UnitPoints:
        """The four in units of the curvature radius; all terms in the Lorentz geometry share them."""
        return unit_points(self.points, self.c)


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
    # Two terms that only swap anchor and candidates share a matrix of similarities.
    contrasts: dict[tuple[int, int], Contrast] = {}
    for pair, weight in weights.items():
        a, b = map(EMBEDDING_NAMES.index, pair)
        if (b, a) in contrasts:
            contrasts[b, a] = contrasts[b, a]._replace(columns=weight)
        else:
            contrasts[a, b] = Contrast(a, b, weight, 0.0)
    if terms.geometry == "lorentz":
        return contrast(embeddings.points, embeddings.c, embeddings.tau, embeddings.unit, [*contrasts.values()])
    with torch.autocast(embeddings.c.device.type, enabled=False):
        sets = embeddings.points.unbind()
        anchors = torch.stack([sets[pair.anchor] for pair in contrasts.values()])
        candidates = torch.stack([sets[pair.candidates] for pair in contrasts.values()])
        logits = lorentz.pairwise_cosine(anchors, candidates)
        logits = logits / embeddings.tau.to(logits.dtype)
        losses = []
        for (_, _, rows, columns), matrix in zip(contrasts.values(), logits.unbind(), strict=True):
            losses.append(rows * info_nce(matrix))
            if columns:
                losses.append(columns * info_nce(matrix.T))
        return torch.stack(losses).sum()


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
    index = EMBEDDING_NAMES.index
    rows = zip(ENTAILMENTS, terms.reverse, terms.entail, terms.etas, strict=True)
    active = [(pair[::-1] if reverse else pair, weight, eta) for pair, reverse, weight, eta in rows if weight]
    cones = [Cone(index(parent), index(child), weight, eta) for (parent, child), weight, eta in active]
    if not cones:
        zero = _zero(embeddings)
        return zero, {"violated": zero / 0, "aperture": zero / 0}
    if terms.geometry == "lorentz":
        loss, violated, aperture = entailment(embeddings.points, embeddings.c, embeddings.unit, cones)
        return loss, {"violated": violated, "aperture": aperture}
    with torch.autocast(embeddings.c.device.type, enabled=False):
        sets = embeddings.points.unbind()
        parents = torch.stack([sets[cone.parent] for cone in cones])
        children = torch.stack([sets[cone.child] for cone in cones])
        apertures = lorentz.euclidean_half_aperture(parents)
        excess = lorentz.euclidean_exterior_angle(parents, children) - scale([cone.eta for cone in cones], apertures)
        loss = scale([cone.weight for cone in cones], excess.clamp_min(0).mean(dim=-1)).sum()
        share = (excess.detach() > 0).to(excess.dtype).mean()
    return loss, {"violated": share, "aperture": apertures.detach().mean()}


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
    if geometry == "lorentz":
        radii = mean_radii(embeddings.points, embeddings.c, embeddings.unit)
    else:
        radii = embeddings.points.float().norm(dim=-1).mean(dim=-1)
    means = {f"radius_{name}": mean for name, mean in zip(EMBEDDING_NAMES, radii.unbind(), strict=True)}
    return {"c": embeddings.c.detach(), "tau": embeddings.tau.detach()} | means


def _zero(embeddings: Embeddings) -> Tensor:
    dtype = torch.float64 if embeddings.image_spot.dtype == torch.float64 else torch.float32
    return torch.zeros((), dtype=dtype, device=embeddings.image_spot.device)
