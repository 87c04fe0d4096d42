"""The figures of a fold, for HiST and for models that have or log less."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.train.report.fake_runs import fake_predictions
from train.experiments.fold_figures import TITLE_ROOM, TRAINING_PANELS, plot_geometry, plot_maps, plot_training
from train.figures import EMBEDDING_STYLES, SCALE_BAR, draw_scale, draw_spots, draw_tissue, fixed_figure
from train.models.projection import EMBEDDING_NAMES

HIST_COLUMNS = [column for lines in TRAINING_PANELS.values() for column in lines]


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


def test_maps_need_no_embeddings(tmp_path: Path) -> None:
    table = fake_predictions(["S0", "S1", "S2"], 0.7, 0, radii=False)
    plot_maps(tmp_path / "maps.png", table, ["GENE3"])
    width, height = size(tmp_path / "maps.png")
    assert width == 2 * 3 * 110
    assert height > 4 * 110  # two slides, each with two rows


@pytest.mark.parametrize(("low", "high"), [(0.0, 9.7), (2.0, 2.0), (-3.0, 1e-3), (1e5, 1.1e5)])
def test_a_scale_names_values_where_their_colors_are(low: float, high: float) -> None:
    figure, axes = fixed_figure(1, 1, (3.0, 3.0), (0.06, 0.46, 0.36, 0.06))
    ax = axes[0, 0]
    picture = {
        "images": {"lowres": np.zeros((40, 60, 3), np.uint8)},
        "scalefactors": {"tissue_lowres_scalef": 1.0, "spot_diameter_fullres": 4.0},
    }
    coords = np.array([[10.0, 10.0], [40.0, 30.0], [20.0, 25.0]])
    draw_tissue(ax, picture, coords)
    limits = ax.get_xlim(), ax.get_ylim()
    draw_scale(ax, draw_spots(ax, picture, coords, np.array([low, high, (low + high) / 2])))
    assert (ax.get_xlim(), ax.get_ylim()) == limits, "the bar does not move the map"
    figure.canvas.draw()
    labels = {float(text.get_text()): text.get_position()[1] for text in ax.texts}
    assert len(labels) >= (1 if low == high else 3)
    _, _, bottom, top = SCALE_BAR
    for value, at in labels.items():
        share = (value - low) / (high - low) if high > low else 0.5
        assert at == pytest.approx(bottom + share * (top - bottom), abs=1e-3)


@pytest.mark.parametrize("name", ["A$x_$B", "$", "[red]", "$\\\\frac{$", "GENE \u4e2d"])
def test_names_are_drawn_as_they_are(tmp_path: Path, name: str) -> None:
    table = fake_predictions(["S0"], 0.7, 0, radii=False)
    table.var_names = [name, *table.var_names[1:]]
    plot_maps(tmp_path / "maps.png", table, [name])
    assert (tmp_path / "maps.png").stat().st_size > 1000


@pytest.mark.parametrize("geometry", ["lorentz", "euclidean"])
def test_geometry_of_the_four_embeddings(tmp_path: Path, geometry: str) -> None:
    assert tuple(EMBEDDING_STYLES) == tuple(EMBEDDING_NAMES)
    table = fake_predictions(["S0"], 0.7, 0)
    table.uns["plane"] = {"geometry": geometry, "explained": 0.8}
    for name in EMBEDDING_STYLES:
        table.obsm[f"plane_{name}"] = np.random.default_rng(0).normal(size=(len(table), 2))
    plot_geometry(tmp_path / "geometry.png", table)
    assert size(tmp_path / "geometry.png") == (1100, 506)
