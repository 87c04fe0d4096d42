"""What a model learns: expression, expression less its slide's mean, or what ridge leaves of either."""

from __future__ import annotations

import torch
from torch import Tensor

from train.data import SpotData, Targets
from train.models.ridge import LinearMap


def slide_means(values: Tensor, slide: Tensor, n_slides: int) -> Tensor:
    """Mean of values `(N, G)` over the spots of each slide, `(S, G)` float64; 0 for a slide without spots."""
    sums = torch.zeros(n_slides, values.shape[1], dtype=torch.float64, device=values.device)
    sums.index_add_(0, slide, values.double())
    count = torch.bincount(slide, minlength=n_slides).clamp(min=1)
    return sums / count.unsqueeze(1)


def centered(data: SpotData, values: Tensor) -> Tensor:
    """Values `(N, G)`, each gene less its mean over the slide, float32."""
    means = slide_means(values, data.slide, len(data.slides))
    return (values.double() - means[data.slide]).float()


def mean_level(data: SpotData, train: Tensor) -> Tensor:
    """The same level for every slide: the mean over the train spots, `(S, G)` float64."""
    return data.expression[train].double().mean(0).expand(len(data.slides), -1)


def ridge_level(data: SpotData, ridge: LinearMap) -> Tensor:
    """The level of each slide, `(S, G)` float64: what ridge predicts from the slide's mean embeddings.

    Args:
        data: All spots, with the embeddings that ridge was fitted on.
        ridge: Fitted on the expression of the train spots.
    """
    means = (slide_means(level, data.slide, len(data.slides)) for level in (data.spot, data.niche))
    return ridge.of(*means)


def centered_targets(data: SpotData, level: Tensor) -> Targets:
    """Targets without the slides' means; a model's output gets the level of its slide back.

    Args:
        data: All spots.
        level: `(S, G)`, computed without the expression of validation and test slides.
    """
    own = centered(data, data.expression)
    return Targets(own, centered(data, data.niche_expression), own, level[data.slide].float())


def raw_targets(data: SpotData) -> Targets:
    """Targets that are the expression."""
    expression = data.expression
    return Targets(expression, data.niche_expression, expression, torch.zeros_like(expression))


def what_ridge_leaves(targets: Targets, ridge: Tensor) -> Targets:
    """Targets less the predictions of ridge `(N, G)`, which a model's output gets back."""
    return Targets(targets.expression, targets.niche_expression, targets.target - ridge, targets.offset + ridge)
