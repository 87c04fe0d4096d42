"""How options, recipes and protocols become a setting."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hist_cache.errors import InputError
from hist_cache.options import parse
from tests.train.report.fake_runs import SETTING
from train.experiments.grid import points
from train.experiments.jobs import make_setting
from train.experiments.protocols import get_protocol
from train.experiments.setting import Setting
from train.models.configs import HistConfig, KnnConfig
from train.options import TrainOptions

WORKSPACE: Any = SimpleNamespace(
    dataset="tiny",
    test_dataset=None,
    common=SETTING.cache,
    slides=dict.fromkeys("ABC", SimpleNamespace(embeddings=np.zeros((2, 7)))),
    all_slides={},
    patients={},
)


def settings(*argv: object) -> list[Setting]:
    """The settings of a command, in the order of its grid."""
    options = parse(TrainOptions, "hist-train", "", [str(a) for a in argv])
    return [make_setting(p, get_protocol(p.protocol), options, WORKSPACE, ["G0", "G1"]) for p in points(options)]


def test_a_model_keeps_the_defaults_of_what_it_does_not_use() -> None:
    argv = ("--recipe", "strong", "--protocol", "reviewer", "--model", "hist,ridge,ridge_tuned,knn")
    hist, ridge, tuned, knn = settings(*argv)
    assert (hist.fit.select_by, hist.recipe.ensemble, hist.recipe.ridge) == ("centered_mse", 3, "skip")
    assert (tuned.fit.select_by, tuned.recipe.ensemble, tuned.recipe.ridge) == ("centered_mse", 1, "none")
    assert (knn.fit.select_by, knn.recipe.ensemble, knn.recipe.ridge) == ("mse", 1, "skip")
    assert tuned.recipe.smooth == knn.recipe.smooth == 0.5
    assert ridge.recipe == SETTING.recipe
    for setting in (ridge, tuned, knn):
        assert setting.fit.epochs == 200, "not those of the recipe, which mean nothing here"


def test_neighbours_may_be_those_of_what_ridge_leaves_or_be_averaged_with_it() -> None:
    for ridge, method in (("none", "knn"), ("skip", "knn"), ("mean", "knn+ridge")):
        (setting,) = settings("--model", "knn", "--ridge", ridge)
        assert (setting.recipe.ridge, setting.method) == (ridge, method)


def test_targets_that_are_given_take_the_place_of_those_of_a_recipe_and_of_their_level() -> None:
    (raw,) = settings("--recipe", "strong", "--targets", "raw")
    assert (raw.recipe.targets, raw.recipe.level, raw.recipe.ridge) == ("raw", "train_mean", "skip")
    (same,) = settings("--recipe", "strong", "--targets", "raw", "--level", "train_mean")
    assert same.name == raw.name
    with pytest.raises(InputError, match="--level ridge: raw targets have their level"):
        settings("--recipe", "strong", "--targets", "raw", "--level", "ridge")


def test_a_recipe_sets_options_of_every_model(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[mine.options]\nnearest = 10\nwidth = 64\n[seeded.options]\nseed = 3\n")
    hist, knn = settings("--model", "hist,knn", "--recipe", "mine", "--recipe-file", file)
    assert (hist.model, knn.model) == (HistConfig(7, 2, width=64), KnnConfig(7, 2, nearest=10))
    (knn,) = settings("--model", "knn", "--recipe", "mine", "--recipe-file", file, "--nearest", 20)
    assert knn.model == KnnConfig(7, 2, nearest=20), "what is given comes first"
    with pytest.raises(InputError, match="--recipe seeded: seed is no option that a recipe sets"):
        settings("--recipe", "seeded", "--recipe-file", file)


@pytest.mark.parametrize(("model", "runs"), [("ridge", 1), ("ridge_tuned", 2), ("knn", 2), ("hist", 2)])
def test_a_model_that_takes_no_recipe_has_one_name(model: str, runs: int) -> None:
    found = settings("--model", model, "--recipe", "paper,strong")
    assert len({setting.name for setting in found}) == runs
