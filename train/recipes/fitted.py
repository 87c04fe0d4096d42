"""A recipe fitted on a fold's train slides: it prepares the data for a model, and completes the model's predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hist_cache.values import SelectBy
from train.data import SpotData
from train.models.baselines import validation_error
from train.models.components import ROWS_AT_ONCE, Components
from train.models.ridge import ALPHAS, TUNED_ALPHAS, LinearMap, fit_ridge
from train.recipes.config import RecipeConfig
from train.recipes.inputs import recipe_inputs, ring_mean, train_scaling
from train.recipes.targets import centered_targets, mean_level, raw_targets, ridge_level, what_ridge_leaves

ComponentsOf = Callable[[SpotData], Components]
"""Principal components of the embeddings of the train rows."""


@dataclass(frozen=True)
class FittedRecipe:
    """What was fitted.

    Attributes:
        config: The recipe.
        data: All spots as a model sees them: its inputs and targets in place of the cached ones.
        ridge: `(N, G)` expression that ridge on the same inputs and targets predicts, NaN in rows that are not needed;
            None where it is not fitted.
        tensors: What another slide would need, by name: scaling of embeddings, level, ridge.
    """

    config: RecipeConfig
    data: SpotData
    ridge: Tensor | None
    tensors: dict[str, Tensor]

    def complete(self, predicted: Tensor, rows: Tensor) -> Tensor:
        """Predictions `(n, G)` of whole slides as they are tested: averaged with ridge's and smoothed, if asked for.

        Args:
            predicted: Expression that the model predicts.
            rows: `(n,)` of the spots, all of each slide.
        """
        if self.config.ridge == "mean" and self.ridge is not None:
            predicted = (predicted + self.ridge[rows].to(predicted.dtype)) / 2
        return smoothed(predicted, self.data, rows, self.config.smooth) if self.config.smooth else predicted


def fit_recipe(
    config: RecipeConfig,
    data: SpotData,
    train: Tensor,
    val: Tensor,
    rule: SelectBy,
    cached_components: ComponentsOf,
    own_components: ComponentsOf,
    compared: Tensor | None = None,
) -> FittedRecipe:
    """Fit a recipe on the train rows; where every switch is off, a model sees the data as they are.

    Args:
        config: The recipe.
        data: All spots, with as many rings as the recipe reads.
        train: `(n,)`.
        val: `(m,)`, which choose penalties of ridge.
        rule: How they choose.
        cached_components: Of the cached embeddings.
        own_components: Of the embeddings that the model reads.
        compared: `(k,)`, for which ridge on the same inputs and targets predicts even if it is no part of the recipe.
    """
    tensors: dict[str, Tensor] = {}
    seen = data
    if config.changes_inputs:
        scaling = train_scaling(data, train) if config.standardize == "train" else None
        seen = replace(data, **recipe_inputs(config, data, scaling)._asdict())
        if scaling is not None:
            tensors |= {f"scaling_{name}": value for name, value in scaling._asdict().items()}
    targets = raw_targets(data)
    if config.targets == "centered":
        if config.level == "ridge":
            error = validation_error("mse", data, val)
            of_level = fit_ridge(cached_components(data), data, data.expression, train, val, ALPHAS, error)
            level = ridge_level(data, of_level.to(data.spot.device))
            tensors |= named("level", of_level)
        else:
            level = mean_level(data, train)
            tensors["level_bias"] = level[0].cpu()
        targets = centered_targets(data, level)
    ridge = None
    needed = compared if config.ridge == "none" else torch.arange(len(data.slide), device=data.slide.device)
    if needed is not None:
        learnt = replace(seen, targets=targets)
        error = validation_error(rule, learnt, val)
        fitted = fit_ridge(own_components(seen), seen, targets.target, train, val, TUNED_ALPHAS, error)
        output = predicted_in_parts(fitted.to(data.spot.device), seen, needed)
        tensors |= named("ridge", fitted)
        ridge = torch.full_like(targets.offset, torch.nan)
        ridge[needed] = output + targets.offset[needed]
        if config.ridge == "skip":
            targets = what_ridge_leaves(targets, output)
    if config.changes_targets:
        seen = replace(seen, targets=targets)
    return FittedRecipe(config, seen, ridge, tensors)


def predicted_in_parts(fitted: LinearMap, data: SpotData, rows: Tensor) -> Tensor:
    """What a map predicts of rows `(n,)`, `(n, G)` float32; of some at a time, because embeddings become float64."""
    parts = rows.split(ROWS_AT_ONCE)
    return torch.cat([fitted.of(data.spot[part], data.niche[part]).float() for part in parts])


def named(name: str, fitted: LinearMap) -> dict[str, Tensor]:
    """The tensors of a map under names of their own."""
    return {f"{name}_weight": fitted.weight, f"{name}_bias": fitted.bias}


def smoothed(predicted: Tensor, data: SpotData, rows: Tensor, weight: float) -> Tensor:
    """Each prediction moved towards the mean of those of ring 1; a spot without neighbours keeps its own.

    Args:
        predicted: `(n, G)`.
        data: All spots, with ring 1.
        rows: `(n,)` of the spots that are predicted; neighbours that are not among them do not count.
        weight: Of the neighbours' mean, 0 to 1.
    """
    places = torch.full((len(data.slide) + 1,), -1, device=rows.device)
    places[rows] = torch.arange(len(rows), device=rows.device)
    ring = places[data.rings[0][rows]]
    has_neighbors = (ring >= 0).any(dim=1, keepdim=True)
    return torch.where(has_neighbors, (1 - weight) * predicted + weight * ring_mean(predicted, ring), predicted)
