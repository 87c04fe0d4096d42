"""What a model reads: embeddings standardised per slide or over the train slides, and means over rings beside them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from train.data import SpotData, SpotNiche
from train.recipes.config import RecipeConfig

LARGEST_HALF = torch.finfo(torch.float16).max
MIN_STD = 1e-6
"""A feature with a lower standard deviation is constant: it is centred and not divided."""


@dataclass(frozen=True)
class Scaling:
    """Means and standard deviations `(D,)` float32 over the train spots."""

    mean: Tensor
    std: Tensor

    def of(self, values: Tensor) -> Tensor:
        """Standardised values `(n, D)`."""
        return (values - self.mean) / self.std

    @classmethod
    def over(cls, values: Tensor) -> Scaling:
        """That of the spots `(n, D)` themselves; computed in float64."""
        std, mean = torch.std_mean(values.double(), dim=0, correction=0)
        return cls(mean.float(), torch.where(std > MIN_STD, std, 1.0).float())


def recipe_inputs(config: RecipeConfig, data: SpotData, scaling: SpotNiche | None) -> SpotNiche:
    """What a model reads of all spots, `(N, (1 + rings) D)` float16 each.

    No expression is read. A spot's own embedding comes first, then the mean over the spots of each ring; a ring that
    the tissue lacks gives zeros, which are the mean where embeddings are standardised. A value that float16 does not
    hold (of a feature that is almost constant on the train slides and not on others) becomes the largest that it does.

    Args:
        config: The recipe.
        data: All spots, with as many rings as the recipe reads.
        scaling: What `train_scaling` gave, for `standardize` "train".
    """
    levels = []
    for i, cached in enumerate((data.spot, data.niche)):
        values = cached.float()
        if config.standardize == "slide":
            values = per_slide(values, data.slide, len(data.slides))
        elif config.standardize == "train":
            assert scaling is not None
            values = Scaling(*scaling[i]).of(values)
        values = torch.cat([values, *(ring_mean(values, ring) for ring in data.rings[: config.neighbor_rings])], dim=1)
        levels.append(values.clamp(-LARGEST_HALF, LARGEST_HALF).half())
    return SpotNiche(*levels)


def train_scaling(data: SpotData, train: Tensor) -> SpotNiche:
    """Means and standard deviations of the embeddings of spot and of niche over the train rows, `(2, D)` each."""
    scalings = [Scaling.over(cached[train]) for cached in (data.spot, data.niche)]
    return SpotNiche(*(torch.stack([scaling.mean, scaling.std]) for scaling in scalings))


def per_slide(values: Tensor, slide: Tensor, n_slides: int) -> Tensor:
    """Values `(N, D)`, each slide standardised by the mean and the standard deviation of its own spots.

    Args:
        values: Of all spots.
        slide: `(N,)` index of each spot's slide.
        n_slides: How many there are; one without spots is left out.
    """
    standardized = values.clone()
    for i in range(n_slides):
        rows = slide == i
        if rows.any():
            standardized[rows] = Scaling.over(values[rows]).of(values[rows])
    return standardized


def ring_mean(values: Tensor, ring: Tensor) -> Tensor:
    """Mean of values `(N, D)` over the spots of a ring around each spot; 0 where there are none.

    Args:
        values: Of all spots.
        ring: `(N, K)` rows of the spots in the ring, -1 where there is none.
    """
    there = ring >= 0
    total = torch.zeros_like(values)
    for column in range(ring.shape[1]):  # column by column: all at once would need K times the memory
        rows = there[:, column].nonzero().squeeze(1)
        total[rows] += values[ring[rows, column]]
    return total / there.sum(dim=1, keepdim=True).clamp(min=1)
