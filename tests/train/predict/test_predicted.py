"""What all files of a predicted slide read of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.train.predict.predicted_tables import DIAMETER, DOWNSAMPLE, PITCH, UM_PER_PX, predicted_table
from train.predict import predicted
from train.predict.predicted import (
    gene_values,
    nearest_distance,
    predicted_slide,
    row_blocks,
    spatial_variance,
    spot_diameter,
    stored_picture,
    um_per_px,
    value_range,
)


def test_names_and_sizes() -> None:
    table = predicted_table()
    assert predicted_slide(table) == "SLIDE1"
    assert (spot_diameter(table), um_per_px(table)) == (DIAMETER, UM_PER_PX)
    assert stored_picture(table).downsample == DOWNSAMPLE
    assert nearest_distance(table.obsm["spatial"]) == PITCH
    assert nearest_distance(table.obsm["spatial"][:1]) == 0


def test_spatial_variance_is_morans_i_times_the_variance(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a ring each spot has two nearest neighbours, so that the definition can be written out."""
    monkeypatch.setattr(predicted, "GENES_A_BLOCK", 2)
    n, rng = 40, np.random.default_rng(0)
    table = predicted_table(1, n, genes=5)
    angle = 2 * np.pi * np.arange(n) / n
    table.obsm["spatial"] = 1000 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    values = np.stack([np.cos(angle), np.cos(3 * angle), rng.random(n), (-1.0) ** np.arange(n), 5 * angle], axis=1)
    table.X = values.astype(np.float32)
    weights = np.roll(np.eye(n), 1, axis=0) + np.roll(np.eye(n), -1, axis=0)
    for gene, found in enumerate(spatial_variance(table, neighbors=2)):
        z = values[:, gene] - values[:, gene].mean()
        morans_i = n / weights.sum() * (weights * np.outer(z, z)).sum() / (z**2).sum()
        assert found == pytest.approx(morans_i * z.var(), abs=1e-5)


def test_spatial_variance_where_values_are_missing_or_alone() -> None:
    table = predicted_table(genes=3)
    table.X[::2, 1] = np.nan
    table.X[:, 2] = np.nan
    found = spatial_variance(table)
    assert found[0] > found[1] > found[2] == 0
    assert spatial_variance(predicted_table(1, 1)).tolist() == [0] * 5
    assert spatial_variance(predicted_table(1, 2)).shape == (5,)


def test_row_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicted, "SPOTS_A_BLOCK", 7)
    table = predicted_table()
    blocks = list(row_blocks(table, [3, 0]))
    assert [start for start, _ in blocks] == list(range(0, table.n_obs, 7))
    np.testing.assert_array_equal(np.concatenate([values for _, values in blocks]), np.asarray(table.X)[:, [3, 0]])


def test_gene_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicted, "GENES_A_BLOCK", 2)
    table = predicted_table(truth=True)
    np.testing.assert_array_equal(gene_values(table, [4, 0, 1]), np.asarray(table.X)[:, [4, 0, 1]])
    np.testing.assert_array_equal(gene_values(table, [3], "truth"), table.layers["truth"][:, [3]])


@given(arrays(np.float32, st.integers(0, 30), elements=st.floats(-1e3, 1e3, width=32) | st.just(np.nan)))
def test_value_range(values: np.ndarray) -> None:
    low, high = value_range(values)
    finite = values[np.isfinite(values)]
    assert low <= high
    if len(finite):
        assert finite.min() <= low
        assert high <= finite.max() * (1 + 1e-6) or high == pytest.approx(finite.max())
        assert (high > low) == (finite.max() > finite.min())
