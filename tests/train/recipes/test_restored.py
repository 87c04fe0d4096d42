"""A recipe restored from its tensors gives what it gave where it was fitted, without any expression."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.train.recipes.slides import TEST, make_data
from tests.train.recipes.test_fitted import fit
from train.data import SpotData
from train.fit.batches import encode_rows
from train.fit.loop import add_offset
from train.recipes.config import RecipeConfig
from train.recipes.restored import needs_whole_slides, restore_recipe

STANDARDIZE, RIDGE, SMOOTH = ("none", "slide", "train"), ("none", "skip", "mean"), (0.0, 0.3)
RECIPES = [
    RecipeConfig(standardize, rings, targets, level, ridge, smooth)  # type: ignore[arg-type]
    for standardize in STANDARDIZE
    for rings, targets, level in ((0, "raw", "train_mean"), (2, "centered", "train_mean"), (0, "centered", "ridge"))
    for ridge in RIDGE
    for smooth in SMOOTH
]


def without_expression(data: SpotData) -> SpotData:
    unknown = torch.full((1, 1), torch.nan).expand(data.expression.shape)
    return replace(data, expression=unknown, niche_expression=unknown)


@pytest.mark.parametrize("config", RECIPES, ids=str)
def test_a_restored_recipe_gives_the_same_inputs_and_expression(config: RecipeConfig) -> None:
    data = make_data()
    fitted = fit(config, data, with_ridge=False)
    new = without_expression(data.only(["C"]))
    restored = restore_recipe(config, fitted.tensors, new)
    rows = torch.arange(len(TEST))
    for one, other in zip(encode_rows(fitted.data, TEST), encode_rows(restored.data, rows), strict=True):
        torch.testing.assert_close(one, other)
    output = torch.randn(len(TEST), 5, generator=torch.Generator().manual_seed(1))
    expected = fitted.complete(add_offset(fitted.data, TEST, output), TEST)
    found = restored.complete(add_offset(restored.data, rows, output), rows)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("config", [c for c in RECIPES if not needs_whole_slides(c)], ids=str)
def test_a_recipe_that_needs_no_whole_slides_gives_the_same_of_a_part(config: RecipeConfig) -> None:
    data = make_data()
    tensors = fit(config, data, with_ridge=False).tensors
    whole = without_expression(data.only(["C"]))
    part = replace(
        whole, **{f: getattr(whole, f)[5:9] for f in ("spot", "niche", "slide", "row", "complete")}, rings=()
    )
    part = replace(part, expression=whole.expression[5:9], niche_expression=whole.expression[5:9])
    output = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    results = []
    for seen, rows in ((whole, torch.arange(5, 9)), (part, torch.arange(4))):
        restored = restore_recipe(config, tensors, seen)
        results.append((encode_rows(restored.data, rows), add_offset(restored.data, rows, output)))
    for one, other in zip(results[0][0], results[1][0], strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(results[0][1], results[1][1])


def test_what_was_not_fitted_is_missed() -> None:
    with pytest.raises(KeyError):
        restore_recipe(RecipeConfig(ridge="skip"), {}, without_expression(make_data()))
