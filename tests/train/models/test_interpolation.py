"""Interpolation against a search over all pairs of spots."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from hist_cache.errors import HistError
from tests.train.fit.test_loop import make_data
from train.data import SpotData
from train.models.interpolation import NEAREST, interpolated, nearest_mean


def scattered() -> tuple[SpotData, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Train, validation and test parts of two slides, at places of their own in one frame."""
    data = make_data(180, 8)
    position = torch.rand(180, 2, generator=torch.Generator().manual_seed(3)) * 1000
    slide = torch.arange(180) % 6
    names = [f"{s}@{part}0" for s in "AB" for part in ("train", "val", "test")]
    y = data.expression + position[:, :1] / 300  # which says something of places
    data = replace(data, position=position, slide=slide, slides=names, whole_slides=list("AAABBB"), expression=y)
    return data, *(data.rows([f"A@{part}0", f"B@{part}0"]) for part in ("train", "val", "test"))


@pytest.mark.parametrize("count", [1, 5, 29, 64])
def test_it_is_the_mean_of_the_nearest_train_spots_of_the_slide(count: int) -> None:
    data, train, _, test = scattered()
    assert data.position is not None
    predicted = nearest_mean(data, train, test, count)
    distance = cdist(data.position[test].numpy(), data.position[train].numpy())
    distance[data.whole[test].numpy()[:, None] != data.whole[train].numpy()] = np.inf
    for i, row in enumerate(distance):
        nearest = np.argsort(row)[: min(count, np.isfinite(row).sum())]
        expected = data.expression[train[nearest]].double().mean(0).numpy()
        np.testing.assert_allclose(predicted[i], expected, rtol=1e-9, atol=1e-12)


def test_validation_spots_choose_how_many_and_test_spots_nothing() -> None:
    data, train, val, test = scattered()
    predicted = interpolated(data, train, val, test)
    errors = [((nearest_mean(data, train, val, n) - data.expression[val].numpy()) ** 2).mean() for n in NEAREST]
    np.testing.assert_array_equal(predicted, nearest_mean(data, train, test, NEAREST[int(np.argmin(errors))]))
    blind = data.expression.clone()
    blind[test] = torch.nan
    np.testing.assert_array_equal(interpolated(replace(data, expression=blind), train, val, test), predicted)


def test_it_needs_places_and_train_spots_on_the_slide() -> None:
    data, train, val, test = scattered()
    with pytest.raises(HistError, match="positions"):
        interpolated(replace(data, position=None), train, val, test)
    with pytest.raises(HistError, match="no train spots"):
        interpolated(data, train[data.whole[train] == 0], val, test)
