"""The figures of a fold, for HiST and for models that have or log less."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.train.report.fake_runs import fake_predictions
from train.experiments.fold_figures import plot_geometry, plot_training
from train.experiments.quick_axes import TITLE_ROOM
from train.figures import EMBEDDING_STYLES
from train.models.projection import EMBEDDING_NAMES

HIST_COLUMNS = [
    *("mse", "val_mse", "hca", "hea", *(f"radius_{name}" for name in EMBEDDING_STYLES)),
    *("violated", "aperture", "c", "tau"),
]


def history(columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame({"epoch": range(4)} | {column: np.linspace(1, 0.5, 4) for column in columns})


def size(file: Path) -> tuple[int, int]:
    with Image.open(file) as image:
        return image.size


@pytest.mark.parametrize(
    ("columns", "across", "down"),
    [(HIST_COLUMNS, 3, 2), (["mse", "val_mse"], 1, 1), (["val_mse", "c", "violated", "hca"], 3, 2)],
)
def test_training_has_a_panel_for_each_quantity_that_was_logged(
    tmp_path: Path, columns: list[str], across: int, down: int
) -> None:
    plot_training(tmp_path / "training.png", history(columns), 2)
    expected = across * 4.2 * 110, (down * 2.9 + TITLE_ROOM) * 110
    assert size(tmp_path / "training.png") == pytest.approx(expected, abs=1)


def test_no_figure_of_a_history_without_known_quantities(tmp_path: Path) -> None:
    plot_training(tmp_path / "training.png", history(["seconds"]), 2)
    assert not (tmp_path / "training.png").exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38, 0.0])
def test_training_that_diverged_is_drawn(tmp_path: Path, value: float) -> None:
    table = history(HIST_COLUMNS)
    table.loc[2:, ["mse", "hca", "violated"]] = value
    table["c"] = value
    plot_training(tmp_path / "training.png", table, 2)
    assert (tmp_path / "training.png").stat().st_size > 1000


@pytest.mark.parametrize("geometry", ["lorentz", "euclidean"])
def test_geometry_of_the_four_embeddings(tmp_path: Path, geometry: str) -> None:
    assert tuple(EMBEDDING_STYLES) == tuple(EMBEDDING_NAMES)
    table = fake_predictions(["S0"], 0.7, 0)
    table.uns["plane"] = {"geometry": geometry, "explained": 0.8}
    for name in EMBEDDING_STYLES:
        table.obsm[f"plane_{name}"] = np.random.default_rng(0).normal(size=(len(table), 2))
    plot_geometry(tmp_path / "geometry.png", table)
    assert size(tmp_path / "geometry.png") == (1100, 506)
