"""A control of splits within slices: the nearest train spots on the same slide, by their places alone.

It sees no image. What a model gains over it is what images say beyond where a spot is.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree
from torch import Tensor

from hist_cache.errors import HistError
from train.data import SpotData

NEAREST = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of spots that are averaged; the one with the least validation error is taken."""


def interpolated(data: SpotData, train: Tensor, val: Tensor, test: Tensor) -> np.ndarray:
    """Predict each test spot as the mean of the nearest train spots on its slide.

    Args:
        data: All spots, with their positions.
        train: `(n,)` rows, whose expression is averaged.
        val: `(m,)` rows, whose error chooses how many spots are averaged: one of `NEAREST`.
        test: `(k,)` rows, whose expression is not read.

    Returns:
        `(k, G)` expression, float64.

    Raises:
        HistError: Positions are not known, or a slide has no train spots.
    """
    truth = data.expression[val].double().cpu().numpy()
    errors = [float(np.square(nearest_mean(data, train, val, count) - truth).mean()) for count in NEAREST]
    return nearest_mean(data, train, test, NEAREST[int(np.argmin(errors))])


def nearest_mean(data: SpotData, train: Tensor, rows: Tensor, count: int) -> np.ndarray:
    """Mean expression of the `count` train spots that are nearest on the same whole slide; of all where it has fewer.

    Args:
        data: All spots, with their positions.
        train: `(n,)` rows of the train spots.
        rows: `(k,)` rows of the spots that are predicted.
        count: How many are averaged.

    Returns:
        `(k, G)` float64.

    Raises:
        HistError: Positions are not known, or a slide has no train spots.
    """
    if data.position is None:
        raise HistError("the positions of the spots are not known, so that nothing can be interpolated")
    position, whole = data.position.cpu().numpy(), data.whole.cpu().numpy()
    bank, wanted = train.cpu().numpy(), rows.cpu().numpy()
    expression = data.expression[train].double().cpu().numpy()
    predicted = np.empty((len(wanted), expression.shape[1]))
    for slide in np.unique(whole[wanted]):
        own, asked = np.flatnonzero(whole[bank] == slide), np.flatnonzero(whole[wanted] == slide)
        if not len(own):
            raise HistError("a slide has no train spots, so that nothing can be interpolated on it")
        n = min(count, len(own))
        nearest = cKDTree(position[bank[own]]).query(position[wanted[asked]], k=range(1, n + 1))[1]
        starts = np.arange(0, nearest.size + 1, n)
        weights = csr_matrix((np.full(nearest.size, 1 / n), nearest.ravel(), starts), shape=(len(asked), len(own)))
        predicted[asked] = weights @ expression[own]
    return predicted
