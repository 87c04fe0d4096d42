"""What is drawn: one colour scale a gene, colours that stay apart from the tissue, and no text over other text."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure

from hist_cache.errors import InputError
from train.report.paper_figures.comparison import Compared, draw_comparison
from train.report.paper_figures.gene_spread import draw_gene_spread
from train.report.paper_figures.map_grid import MapGrid, SlideMaps, fitting_parts
from train.report.paper_figures.scatter import draw_scatter
from train.report.paper_figures.style import PAGE_HEIGHT, figure_formats, paper_style, size_mm
from train.report.paper_figures.tissue_maps import draw_maps, grey_tissue, spot_colors
from train.report.resampling import corrected_effect

LONG_UNIT = "ln(1 + count per 10,000)"
RUNS = ("full, 18 neighbours, strong recipe, seed 43", "no_hea", "ridge_tuned")
# Dichromats' colours: Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
VISION = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    with paper_style():
        yield


def some_maps(genes: tuple[str, ...], runs: tuple[str, ...], unit: str = "log2(1 + count)", side: int = 6) -> SlideMaps:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:side, 0:side]
    n = side * side
    return SlideMaps(
        slide="A slide with a long name 0815",
        thumbnail=rng.integers(0, 255, (120, 100, 3), dtype=np.uint8),
        spots=np.stack([15.0 + 12 * x.ravel(), 15.0 + 14 * y.ravel()], axis=1),
        diameter=5.0,
        um_per_px=8.0,
        unit=unit,
        genes=genes,
        runs=runs,
        measured=rng.gamma(2, 1 + np.arange(len(genes)), (n, len(genes))),
        predicted=rng.normal(2, 1, (len(runs), n, len(genes))),
        pcc=np.full((len(runs), len(genes)), -0.25),
    )


def lab(rgb: np.ndarray, vision: str) -> np.ndarray:
    """CIELAB of sRGB colours (N, 3) as seen with a kind of colour vision."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(VISION[vision]).T, 0, 1)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    xyz = seen @ np.array(to_xyz).T / [0.95047, 1, 1.08883]
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


@pytest.mark.parametrize("vision", VISION)
def test_spots_differ_from_any_tissue_and_from_each_other(vision: str) -> None:
    colors = spot_colors()(np.linspace(0, 1, 64))[:, :3]
    rng = np.random.default_rng(0)
    thumbnail = rng.integers(0, 255, (50, 50, 3), dtype=np.uint8)
    thumbnail[:25] = np.arange(0, 250, 5, dtype=np.uint8)[:, None]  # all greys
    greys = np.unique(grey_tissue(thumbnail).reshape(-1, 3), axis=0) / 255
    assert greys.min() < 0.8
    assert greys.max() == 1
    spots, tissue = lab(colors, vision), lab(greys, vision)
    assert np.linalg.norm(spots[:, None] - tissue, axis=2).min() > 20
    assert (np.diff(spots[:, 0]) > 0).all()  # lightness rises with expression
    assert np.linalg.norm(spots[0] - spots[-1]) > 60


def test_all_maps_of_a_gene_share_a_scale() -> None:
    maps = some_maps(("ERBB2", "KRT81"), RUNS)
    figure = draw_maps(maps, 183, 6, 100)
    discs = [c for ax in figure.axes for c in ax.collections if isinstance(c, EllipseCollection)]
    limits = [c.get_clim() for c in discs]
    assert len(limits) == 2 * (1 + len(RUNS))
    for gene, own in enumerate((limits[:4], limits[4:])):
        every = np.concatenate([maps.measured[None], maps.predicted])[:, :, gene]
        low = min(np.quantile(values, 0.01) for values in every)
        high = max(np.quantile(values, 0.99) for values in every)
        assert set(own) == {own[0]}
        assert own[0] == pytest.approx((low, high))
    np.testing.assert_array_equal(discs[0].get_array(), maps.measured[:, 0])
    np.testing.assert_array_equal(discs[6].get_array(), maps.predicted[1, :, 1])


def test_many_genes_take_several_pages() -> None:
    maps = some_maps(tuple(f"GENE{i}" for i in range(25)), RUNS)
    parts = fitting_parts(maps, 183, 6)
    assert len(parts) > 1
    assert sum((part.genes for part in parts), ()) == maps.genes
    assert all(MapGrid(part, 183, 6).total_height <= PAGE_HEIGHT for part in parts)
    np.testing.assert_array_equal(np.concatenate([part.predicted for part in parts], axis=2), maps.predicted)


def compared(labels: tuple[str, ...]) -> list[Compared]:
    rng = np.random.default_rng(0)
    rows = []
    for i, label in enumerate(labels):
        folds = rng.normal(0.5 - 0.02 * i, 0.03, 5)
        rows.append(
            Compared(label, i % 2 == 1, folds, corrected_effect(folds, 0.25), corrected_effect(folds - 0.4, 0.25))
        )
    return rows


def drawn(name: str) -> Figure:
    genes = ("ENSG00000123456", "HLA-DRB1", "A")
    many = tuple(f"run {i}" for i in range(11))
    correlations = {label: pd.Series(np.random.default_rng(1).normal(0.4, 0.2, 40)) for label in RUNS}
    values = np.random.default_rng(2).normal(8, 6, (3000, 3))
    figures = {
        "maps": lambda: draw_maps(some_maps(genes, RUNS, LONG_UNIT), 183, 6, 100),
        "maps of eleven runs": lambda: draw_maps(some_maps(genes, many), 183, 6, 100),
        "one column": lambda: draw_maps(some_maps(genes[:1], RUNS[:1], LONG_UNIT), 89, 3, 100),
        "scatter": lambda: draw_scatter(
            genes, values[:300], values[:300] + 1, np.array([0.5, np.nan, -0.2]), LONG_UNIT
        ),
        "hexagons": lambda: draw_scatter(genes[1:], values[:, 1:], values[:, 1:], np.array([0.5, -0.2]), LONG_UNIT),
        "comparison": lambda: draw_comparison({"pcc@50": compared(RUNS), "mse": compared(RUNS)}, RUNS[0]),
        "genes": lambda: draw_gene_spread(correlations),
    }
    return figures[name]()


@pytest.mark.parametrize(
    "name", ["maps", "maps of eleven runs", "one column", "scatter", "hexagons", "comparison", "genes"]
)
def test_no_text_is_over_other_text_or_cut_off(name: str) -> None:
    figure = drawn(name)
    figure.draw_without_rendering()
    labels = [text for ax in figure.axes for text in (ax.xaxis.label, ax.yaxis.label)]
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        low, high = sorted(axis.get_view_interval())
        labels += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    labels += [text for legend in figure.legends for text in legend.get_texts()]
    boxes = [
        (text.get_text(), text.get_window_extent())
        for text in (*figure.texts, *labels)
        if text.get_text() and text.get_visible()
    ]
    assert len(boxes) > 5
    width, height = (side / 25.4 * figure.dpi for side in size_mm(figure))
    for text, box in boxes:
        assert box.x0 >= 0, text
        assert box.x1 <= width, text
        assert box.y0 >= 0, text
        assert box.y1 <= height, text
    for (first, one), (second, other) in combinations(boxes, 2):
        assert not one.padded(-1).overlaps(other.padded(-1)), f"{first!r} over {second!r}"


@pytest.mark.parametrize("text", ["jpg", "svg,", "", "svg,eps"])
def test_formats(text: str) -> None:
    if text == "svg,":
        assert figure_formats(text) == ("svg",)
        assert figure_formats("PNG, svg,png") == ("svg", "png")
    else:
        with pytest.raises(InputError, match="give any of svg, pdf, png"):
            figure_formats(text)
