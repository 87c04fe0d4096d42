"""A fold of hist-train with a recipe: its predictions are made again from its files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from hist_cache import open_cache
from tests.small import TRAIN
from train.assembly import assemble
from train.cli import main
from train.data import SpotData, SpotNiche
from train.experiments.fold_files import read_metrics
from train.experiments.outputs import load_model
from train.fit.loop import predict_embedded
from train.recipes.config import RecipeConfig
from train.recipes.fitted import smoothed
from train.recipes.inputs import recipe_inputs
from train.report.reading import read_results

Run = Callable[..., tuple[int, str]]


def test_the_predictions_of_a_fold_follow_from_its_files(cache: Path, run_command: Run, tmp_path: Path) -> None:
    """From model.safetensors, recipe.safetensors and the embeddings of the test slide, without any expression of it."""
    argv = ("--cache", cache, "--runs", tmp_path / "runs", *TRAIN, "--fold", 1, "--recipe", "strong")
    code, text = run_command(main, *argv, "--ensemble", 2, "--ridge", "skip", "--smooth", 0.3)
    assert code == 0, text
    [run] = read_results([tmp_path / "runs"]).runs
    recipe = run.setting.recipe
    assert recipe == RecipeConfig("slide", 0, "centered", "ridge", "skip", 0.3, 2, "strong")
    fold = run.folds[0].fold
    table = anndata.read_h5ad(fold.folder / "predictions.h5ad")
    (slide,) = table.obs["slide"].unique()
    opened = open_cache(cache, "tiny")
    data = assemble({slide: opened.read(slide, [6])}, 6, fold.panel, torch.device("cpu"), n_rings=recipe.n_rings)
    inputs = recipe_inputs(recipe, data, None)
    t = {name: torch.from_numpy(value) for name, value in load_file(fold.folder / "recipe.safetensors").items()}
    level = mean_embeddings(data) @ t["level_weight"] + t["level_bias"]
    ridge = torch.cat([inputs.spot, inputs.niche], dim=1).double() @ t["ridge_weight"] + t["ridge_bias"]
    rows = torch.arange(len(data.slide))
    images = SpotNiche(inputs.spot.float(), inputs.niche.float())
    output = predict_embedded(load_model(fold.folder), images, rows)
    expected = smoothed(output + ridge + level, data, rows, 0.3)
    np.testing.assert_allclose(table.X, expected, rtol=1e-4, atol=1e-4)

    metrics = read_metrics(fold.folder)
    assert {"permuted", "train_mean", "ridge", "ridge_tuned"} <= metrics["controls"].keys()
    truth = np.asarray(table.layers["truth"], dtype=np.float64)
    tuned = smoothed(ridge + level, data, rows, 0.3).numpy()
    assert metrics["controls"]["ridge_tuned"]["mse"] == pytest.approx(((tuned - truth) ** 2).mean(), rel=1e-5)
    assert set(metrics["controls_centered"]) == {"train_mean", "ridge", "ridge_tuned"}
    error = tuned - truth  # of one slide
    found = metrics["controls_centered"]["ridge_tuned"]["mse"]
    assert found == pytest.approx(((error - error.mean(0)) ** 2).mean(), rel=1e-5)
    assert not list(fold.folder.glob("checkpoint*"))
    assert sorted(fold.history["member"].unique()) == [0, 1]


def mean_embeddings(data: SpotData) -> torch.Tensor:
    return torch.cat([data.spot, data.niche], dim=1).double().mean(0)


def test_a_model_without_recipe_is_the_same_under_each(cache: Path, run_command: Run, tmp_path: Path) -> None:
    """Ridge is a fixed point of comparison and runs once; tuned ridge and neighbours follow the recipe."""
    argv = ("--cache", cache, "--runs", tmp_path / "runs", "--split", "loso", "--fold", 1, "--n-genes", 20)
    code, text = run_command(main, *argv, "--model", "ridge,ridge_tuned,knn", "--recipe", "paper,strong")
    assert code == 0, text
    runs = read_results([tmp_path / "runs"]).runs
    found: dict[str, list[dict[str, float]]] = {}
    for run in runs:
        found.setdefault(run.model, []).append(read_metrics(run.folds[0].fold.folder)["pooled"])
    assert len(found["ridge"]) == 1
    assert len(found["ridge_tuned"]) == len(found["knn"]) == 2
    assert found["ridge_tuned"][0] != found["ridge_tuned"][1]
    assert found["knn"][0] != found["knn"][1]
