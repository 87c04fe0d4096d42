"""A trial is judged by the predictions that hist-train would test."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from hist_cache.splits import Split
from sweeps.objective import TrialFold
from tests.train.recipes.slides import GENES, WIDTH, make_data
from tests.train.report.fake_runs import SETTING
from train.experiments.jobs import Job
from train.fit.config import FitConfig
from train.models.configs import HistConfig
from train.recipes.config import RecipeConfig
from train.workspace import DataKey

FIT = FitConfig(epochs=3, batch_size=16, lr=1e-2)


def make_fold(objective: str, fit: FitConfig = FIT, recipe: RecipeConfig = SETTING.recipe) -> TrialFold:
    data = make_data().only(["A", "B"])
    setting = replace(SETTING, model=HistConfig(WIDTH, GENES, width=8, depth=1), fit=fit, recipe=recipe)
    key = DataKey(6, tuple(data.panel), "log2", drop_edges=False)
    job = Job(setting, 0, Path("none"), Split(("A",), ("B",), ("C",), "one"), key)
    plan: Any = SimpleNamespace(objective=objective)
    trial: Any = optuna.trial.FixedTrial({})
    return TrialFold(trial, job, plan, data, [])


@pytest.mark.parametrize("objective", ["mse", "mae"])
@pytest.mark.parametrize(
    ("fit", "recipe"),
    [
        ({}, RecipeConfig()),
        ({"ema": 0.9}, RecipeConfig()),
        ({}, RecipeConfig(smooth=0.6)),
        ({}, RecipeConfig(ridge="mean")),
        ({"ema": 0.5}, RecipeConfig(smooth=0.3, ridge="skip", targets="centered")),
    ],
)
def test_the_score_is_that_of_the_weights_and_predictions_that_are_tested(
    objective: str, fit: dict[str, Any], recipe: RecipeConfig
) -> None:
    fold = make_fold(objective, replace(FIT, **fit), recipe)
    score = fold.fit([0], lambda: None)
    assert score == pytest.approx(fold.validation_score(), rel=1e-5), "the model is left with what is tested"


def test_an_error_that_is_known_already_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fold = make_fold("mse")
    monkeypatch.setattr(fold, "validation_score", lambda: pytest.fail("computed again"))
    assert fold.fit([0], lambda: None) > 0
