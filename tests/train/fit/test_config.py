"""How an epoch is selected, and when training stops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

from hist_cache.errors import InputError
from tests.train.models.toy import ToyConfig, ToyModel
from tests.train.recipes.slides import GENES, TRAIN, VAL, make_data
from train.data import SpotData
from train.fit.config import FitConfig
from train.fit.loop import fit, predict, validation_scores
from train.models.base import Model
from train.recipes.config import RecipeConfig
from train.recipes.fitted import fit_recipe


def make_model(data: SpotData) -> Model:
    torch.manual_seed(0)
    return ToyModel(ToyConfig(data.spot.shape[1], GENES))


@pytest.mark.parametrize("targets", ["raw", "centered"])
@pytest.mark.parametrize("rule", ["mse", "centered_mse", "pcc"])
def test_the_best_epoch_is_that_of_the_rule(rule: str, targets: str) -> None:
    data = fit_recipe(RecipeConfig(targets=targets), make_data(), TRAIN, VAL, "mse", None, None).data  # type: ignore[arg-type]
    model = make_model(data)
    torch.manual_seed(1)
    config = FitConfig(epochs=12, batch_size=8, lr=0.03, patience=50, select_by=rule)  # type: ignore[arg-type]
    progress = fit(model, data, TRAIN, VAL, config, None)
    scores = [row[f"val_{rule}"] for row in progress.history]
    assert progress.best_epoch == int(np.argmax(scores) if rule == "pcc" else np.argmin(scores))
    expected = {"val_mse", "val_pcc"} if rule == "pcc" else {"val_mse", f"val_{rule}"}
    assert {name for name in progress.history[0] if name.startswith("val_")} == expected

    p, y = predict(model, data, VAL).double().numpy(), data.expression[VAL].double().numpy()
    error = p - y
    again = {
        "mse": (error**2).mean(),
        "centered_mse": ((error - error.mean(0)) ** 2).mean(),  # VAL is one slide
        "pcc": np.mean([pearsonr(p[:, gene], y[:, gene]).statistic for gene in range(GENES)]),
    }
    assert again[rule] == pytest.approx(scores[progress.best_epoch], rel=1e-5)
    assert validation_scores(model, data, VAL, config.select_by)[f"val_{rule}"] == pytest.approx(again[rule], rel=1e-5)


def test_the_error_of_all_slides_is_that_of_expression_with_its_offset() -> None:
    data = make_data()
    config = RecipeConfig(targets="centered")
    centered = fit_recipe(config, data, TRAIN, VAL, "mse", None, None).data  # type: ignore[arg-type]
    model = make_model(data)
    assert centered.targets is not None
    output = predict(model, data, VAL)
    torch.testing.assert_close(predict(model, centered, VAL), output + data.expression[TRAIN].mean(0))


def test_what_is_watched_is_lower_where_it_is_better() -> None:
    row = {"val_mse": 2.0, "val_centered_mse": 0.5, "val_pcc": 0.3, "val_loss": 7.0}
    watched = {rule: FitConfig(select_by=rule).watched(row) for rule in ("mse", "centered_mse", "pcc", "loss")}  # type: ignore[arg-type]
    assert watched == {"mse": 2.0, "centered_mse": 0.5, "pcc": -0.3, "loss": 7.0}


@pytest.mark.parametrize(
    ("patience", "patience_steps", "steps", "epochs"),
    [(10, 0, 3, 10), (10, 100, 3, 34), (10, 99, 3, 33), (10, 100, 100, 10), (40, 100, 3, 40), (1, 1, 1000, 1)],
)
def test_patience_counts_epochs_or_steps_whichever_are_more(
    patience: int, patience_steps: int, steps: int, epochs: int
) -> None:
    assert FitConfig(patience=patience, patience_steps=patience_steps).patience_in_epochs(steps) == epochs


@pytest.mark.parametrize(("patience_steps", "epochs"), [(0, 3), (31, 8)])
def test_training_stops_after_so_many_steps_without_a_better_epoch(patience_steps: int, epochs: int) -> None:
    """A learning rate of almost zero: no epoch is better than the first by more than rounding, or all are worse."""
    data = make_data()
    model = make_model(data)
    config = FitConfig(epochs=50, batch_size=8, lr=1e-30, patience=2, patience_steps=patience_steps, weight_decay=0)
    progress = fit(model, data, TRAIN, VAL, config, None)
    steps = len(TRAIN) // 8
    assert steps == 5
    assert progress.best_epoch == 0
    assert progress.epoch == epochs == 1 + max(2, -(-patience_steps // steps))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"ema": 1.0}, "--ema 1.0: must be 0 or more and below 1"),
        ({"pearson": -0.1}, "--pearson -0.1: must be 0 or more"),
        ({"patience_steps": -1}, "--patience-steps -1: must be from 0 to 10000000"),
    ],
)
def test_what_no_training_may_be(values: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        FitConfig(**values)
    assert str(caught.value) == says
