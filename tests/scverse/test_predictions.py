"""Predictions as hist-train and hist-predict write them, drawn by squidpy as its users draw any slide."""

from __future__ import annotations

from pathlib import Path

import anndata
import matplotlib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from hist_cache.cached_slide import CachedSlide
from hist_cache.h5ad import write_h5ad
from train.data import SpotData
from train.experiments.outputs import prediction_table
from train.predict.outputs import SlideTable, write_table

squidpy = pytest.importorskip("squidpy", reason="run by `make test-scverse`")
matplotlib.use("Agg")

GENES = ["GENE0", "GENE1"]
N, DOWNSAMPLE, SPOT_PX = 12, 10.0, 60.0


def cached_slide(seed: int) -> CachedSlide:
    rng = np.random.default_rng(seed)
    coords = np.stack([np.arange(N) % 4 * 120.0 + 100, np.arange(N) // 4 * 130.0 + 90 + seed], axis=1)
    return CachedSlide(
        barcodes=[f"B{i}" for i in range(N)],
        coords=coords,
        array=np.full((N, 2), -1, np.int32),
        embeddings=rng.random((N, 3), dtype=np.float32),
        counts=csr_matrix((N, 2), dtype=np.int32),
        genes=GENES,
        thumbnail=rng.integers(0, 255, (50, 60, 3), dtype=np.uint8),
        attributes={"thumbnail_downsample": DOWNSAMPLE, "spot_um": SPOT_PX / 2, "um_per_px": 0.5},
    )


def train_predictions(path: Path, slides: dict[str, CachedSlide]) -> NDArray[np.float32]:
    """Write predictions of a fold that tests some slides; returns them."""
    n = N * len(slides)
    zeros = torch.zeros(n, 3)
    expression = torch.rand(n, 2)
    data = SpotData(
        *(zeros, zeros, expression, expression, torch.arange(n) // N, torch.arange(n) % N, torch.ones(n).bool()),
        slides=list(slides),
        panel=GENES,
    )
    predicted = np.random.default_rng(9).random((n, 2), dtype=np.float32)
    write_h5ad(path, prediction_table(predicted, data, torch.arange(n), slides, None))
    return predicted


def check_drawn(figure: matplotlib.figure.Figure, slides: list[CachedSlide], values: NDArray[np.float32]) -> None:
    """Each slide's picture, and on it discs at the spots' places, as wide as the spots, coloured by the values."""
    axes = [ax for ax in figure.axes if ax.get_images()]
    assert len(axes) == len(slides)
    for ax, slide, of_slide in zip(axes, slides, np.split(values, len(slides)), strict=True):
        np.testing.assert_array_equal(ax.get_images()[0].get_array(), slide.thumbnail)
        (spots,) = ax.collections
        discs = [path.get_extents() for path in spots.get_paths()]
        centres = np.array([[(d.x0 + d.x1) / 2, (d.y0 + d.y1) / 2] for d in discs])
        np.testing.assert_allclose(centres, slide.coords / DOWNSAMPLE, atol=1e-3)
        np.testing.assert_allclose([d.width for d in discs], SPOT_PX / DOWNSAMPLE, rtol=0.01)
        np.testing.assert_allclose(np.asarray(spots.get_array()), of_slide, rtol=1e-6)


def draw(table: anndata.AnnData, **how: object) -> matplotlib.figure.Figure:
    from matplotlib import pyplot

    pyplot.close("all")
    squidpy.pl.spatial_scatter(table, color="GENE1", **how)
    return pyplot.gcf()


def test_one_slide_of_hist_train_and_several(tmp_path: Path) -> None:
    slides = {"S1": cached_slide(1), "S2": cached_slide(2)}
    predicted = train_predictions(tmp_path / "one.h5ad", {"S1": slides["S1"]})
    one = anndata.read_h5ad(tmp_path / "one.h5ad")
    assert one.uns["expression"] == "log2(1 + count)"
    check_drawn(draw(one), [slides["S1"]], predicted[:, 1])
    predicted = train_predictions(tmp_path / "two.h5ad", slides)
    two = anndata.read_h5ad(tmp_path / "two.h5ad")
    check_drawn(draw(two, library_key="slide"), list(slides.values()), predicted[:, 1])
    two.write_h5ad(tmp_path / "again.h5ad")  # as anndata itself writes what it has read
    again = anndata.read_h5ad(tmp_path / "again.h5ad")
    check_drawn(draw(again, library_key="slide"), list(slides.values()), predicted[:, 1])


def test_the_picture_is_stored_once(tmp_path: Path) -> None:
    import h5py

    train_predictions(tmp_path / "one.h5ad", {"S1": cached_slide(1)})
    with h5py.File(tmp_path / "one.h5ad") as file:
        images = file["uns/spatial/S1/images"]
        assert images["hires"] == images["lowres"]


def test_a_slide_of_hist_predict(tmp_path: Path) -> None:
    slide = cached_slide(3)
    predicted = np.random.default_rng(4).random((N, 2), dtype=np.float32)
    table = SlideTable("S3", slide, np.arange(N), GENES, "log2(1 + count)")
    with write_table(tmp_path / "S3.h5ad", table, []) as writer:
        writer.put(0, X=predicted)
    read = anndata.read_h5ad(tmp_path / "S3.h5ad")
    assert read.uns["expression"] == "log2(1 + count)"
    check_drawn(draw(read), [slide], predicted[:, 1])
