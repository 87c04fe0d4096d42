"""Maps of a fold: what is drawn where, and names that must not be read as formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.train.report.fake_runs import fake_predictions
from train.experiments.fold_maps import SCALE_BAR, TissueMap, plot_maps
from train.experiments.quick_axes import fixed_figure


def tissue() -> TissueMap:
    picture = {
        "images": {"lowres": np.full((40, 60, 3), (200, 0, 0), np.uint8)},
        "scalefactors": {"tissue_lowres_scalef": 1.0, "spot_diameter_fullres": 4.0},
    }
    return TissueMap(picture, np.array([[10.0, 10.0], [40.0, 30.0], [20.0, 38.0]]))


def test_maps_need_no_embeddings(tmp_path: Path) -> None:
    table = fake_predictions(["S0", "S1", "S2"], 0.7, 0, radii=False)
    plot_maps(tmp_path / "maps.png", table, ["GENE3"])
    with Image.open(tmp_path / "maps.png") as image:
        width, height = image.size
    assert width == 2 * 3 * 110
    assert height > 4 * 110  # two slides, each with two rows


@pytest.mark.parametrize(("low", "high"), [(0.0, 9.7), (2.0, 2.0), (-3.0, 1e-3), (1e5, 1.1e5)])
def test_a_scale_names_values_where_their_colors_are(low: float, high: float) -> None:
    figure, ((ax,),) = fixed_figure(1, 1, (3.0, 3.0), (0.06, 0.46, 0.36, 0.06))
    drawn = tissue()
    drawn.draw(ax)
    drawn.draw_spots(ax, np.array([low, high, (low + high) / 2]))
    figure.canvas.draw()
    labels = {float(text.get_text()): text.get_position()[1] for text in ax.texts}
    assert len(labels) >= (1 if low == high else 3)
    _, _, bottom, top = SCALE_BAR
    for value, at in labels.items():
        share = (value - low) / (high - low) if high > low else 0.5
        expected = ax.box.y0 + ax.box.height * (bottom + share * (top - bottom))
        assert at == pytest.approx(expected, abs=1)  # px


def test_spots_lie_on_the_tissue_where_they_were_measured() -> None:
    figure, ((ax,),) = fixed_figure(1, 1, (3.0, 3.0), (0.06, 0.46, 0.36, 0.06))
    drawn = tissue()
    drawn.draw(ax)
    drawn.draw_spots(ax, np.array([0.0, 0.0, 0.0]))
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].astype(int)

    def color(x: float, y: float) -> np.ndarray:
        across, up = ax.to_px.transform((x, y))
        return pixels[len(pixels) - round(up), round(across)]

    for x, y in drawn.spots:
        assert color(x, y).max() < 50, "the lowest color, nearly black"
        assert color(x + (4 if x < 30 else -4), y) == pytest.approx((200, 0, 0), abs=2), "the tissue beside it"
    assert color(30, 40.2) == pytest.approx((255, 255, 255)), "below the thumbnail there is nothing"


@pytest.mark.parametrize("name", ["A$x_$B", "$", "[red]", "$\\\\frac{$", "GENE \u4e2d"])
def test_names_are_drawn_as_they_are(tmp_path: Path, name: str) -> None:
    table = fake_predictions(["S0"], 0.7, 0, radii=False)
    table.var_names = [name, *table.var_names[1:]]
    plot_maps(tmp_path / "maps.png", table, [name])
    assert (tmp_path / "maps.png").stat().st_size > 1000
