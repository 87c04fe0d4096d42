"""Principal components of standardised embeddings, from their Gram matrix: the input of ridge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hist_cache.errors import HistError, one_line
from train.data import SpotData
from train.models.base import embedding_pair

ROWS_AT_ONCE = 4096
"""Rows that are in memory as float64 at once."""

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class Components:
    """Principal components of the standardised embeddings of spot and niche of some rows.

    Attributes:
        mean: `(D,)` means of the embeddings.
        axes: `(D, k)` what turns embeddings less `mean` into components: the axes, over the standard deviations.
        squares: `(k,)` sums of squares of the components over the rows, the largest first.
    """

    mean: _Array
    axes: _Array
    squares: _Array

    def of(self, embeddings: _Array) -> _Array:
        """Components `(n, k)` of embeddings `(n, D)`."""
        scores: _Array = (embeddings - self.mean) @ self.axes
        return scores


def principal_components(data: SpotData, rows: Tensor, count: int) -> Components:
    """The first `count` components of the embeddings of `rows`, fewer where there are no more.

    All that is computed from the rows is their Gram matrix, in float64. It gives the same as standardising the rows and
    decomposing them, at a fraction of the time.

    Raises:
        HistError: The decomposition did not converge.
    """
    from scipy.linalg import eigh

    n = len(rows)
    mean = sum(chunk.sum(0) for _, chunk in chunks(data, rows)) / n
    gram = np.zeros((len(mean), len(mean)))
    for _, chunk in chunks(data, rows):
        chunk -= mean
        gram += chunk.T @ chunk
    scale = standard_deviations(mean, np.diag(gram) / n, n)
    gram /= np.outer(scale, scale)
    first = max(0, len(gram) - min(count, n))
    try:
        squares, axes = eigh(gram, subset_by_index=[first, len(gram) - 1], overwrite_a=True)
    except (np.linalg.LinAlgError, ValueError) as error:
        raise HistError(
            f"ridge: the principal components of the embeddings cannot be computed ({one_line(error)}); "
            "hist-extract --verify checks the cache"
        ) from error
    kept = np.flatnonzero(squares > squares[-1] * len(gram) * np.finfo(np.float64).eps)[::-1]  # others are rounding
    return Components(mean, axes[:, kept] / scale[:, None], squares[kept])


def chunks(data: SpotData, rows: Tensor) -> Iterator[tuple[Tensor, _Array]]:
    """Some of the rows at a time, with their embeddings `(n, D)` in an array of its own."""
    for part in rows.split(ROWS_AT_ONCE):
        yield part, embedding_pair(data, part).numpy()


def standard_deviations(mean: _Array, variance: _Array, n: int) -> _Array:
    """Standard deviations of features; 1 for those whose variance is that of rounding, as in scikit-learn."""
    eps = np.finfo(np.float64).eps
    constant = variance <= n * eps * variance + (n * mean * eps) ** 2
    return np.where(constant, 1.0, np.sqrt(variance))
