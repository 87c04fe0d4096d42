"""A recipe that was fitted on train slides, applied to slides that no fold has seen and that may have no expression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from train.data import SpotData, SpotNiche, Targets
from train.models.ridge import LinearMap
from train.recipes.config import RecipeConfig
from train.recipes.fitted import FittedRecipe, predicted_in_parts
from train.recipes.inputs import recipe_inputs
from train.recipes.targets import ridge_level


def needs_whole_slides(config: RecipeConfig) -> bool:
    """Whether a spot's prediction depends on the other spots of its slide, by the recipe."""
    return config.standardize == "slide" or config.n_rings > 0 or config.level == "ridge"


def fitted_names(config: RecipeConfig) -> set[str]:
    """Names of the tensors that a recipe has fitted."""
    names = set()
    if config.standardize == "train":
        names |= {f"scaling_{level}" for level in SpotNiche._fields}
    if config.targets == "centered":
        names |= {"level_weight", "level_bias"} if config.level == "ridge" else {"level_bias"}
    if config.ridge != "none":
        names |= {"ridge_weight", "ridge_bias"}
    return names


def restore_recipe(config: RecipeConfig, tensors: Mapping[str, Tensor], data: SpotData) -> FittedRecipe:
    """Apply a recipe as `fit_recipe` does for test slides; only images and places are read.

    Args:
        config: The recipe.
        tensors: What it has fitted, as `recipe.safetensors` holds it.
        data: All spots of some slides, with as many rings as the recipe reads.

    Raises:
        KeyError: Something that the recipe needs was not fitted.
    """
    seen = data
    if config.changes_inputs:
        scaling = None
        if config.standardize == "train":
            scaling = SpotNiche(*(tensors[f"scaling_{level}"].to(data.spot.device) for level in SpotNiche._fields))
        seen = replace(data, **recipe_inputs(config, data, scaling)._asdict())
    offset = torch.zeros(len(data.slide), len(data.panel), device=data.spot.device)
    if config.targets == "centered":
        if config.level == "ridge":
            level = ridge_level(data, _map("level", tensors).to(data.spot.device))[data.slide]
        else:
            level = tensors["level_bias"].to(data.spot.device).expand(len(data.slide), -1)
        offset = offset + level.float()
    ridge = None
    if config.ridge != "none":
        output = predicted_in_parts(
            _map("ridge", tensors).to(data.spot.device), seen, torch.arange(len(data.slide), device=data.spot.device)
        )
        ridge = output + offset
        if config.ridge == "skip":
            offset = ridge
    if config.changes_targets:
        seen = replace(seen, targets=Targets(data.expression, data.niche_expression, data.expression, offset))
    return FittedRecipe(config, seen, ridge, dict(tensors))


def _map(name: str, tensors: Mapping[str, Tensor]) -> LinearMap:
    return LinearMap(tensors[f"{name}_weight"], tensors[f"{name}_bias"])
