"""What is predicted: from the counts of a slide to the expression of each spot and of its niche."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy.sparse import csr_matrix, diags

from hist_cache.panels import columns

Transform = Literal["log2", "ln_cp10k"]
NicheProfile = Literal["log_of_mean", "mean_of_logs"]
UNITS = {"log2": "log2(1 + count)", "ln_cp10k": "ln(1 + count per 10,000)"}


def profiles(
    counts: csr_matrix,
    genes: Sequence[str],
    neighbors: np.ndarray,
    panel: Sequence[str],
    transform: Transform,
    niche_profile: NicheProfile = "log_of_mean",
) -> tuple[np.ndarray, np.ndarray]:
    """Expression of each spot and of its niche, `(N, P)` float32 each.

    A niche's profile is the mean of raw counts over the spot and its neighbours, then the transform; or the mean of
    their transformed counts.

    Args:
        counts: `(N, G)` raw counts.
        genes: `(G,)` names.
        neighbors: `(N, K)` rows of the neighbours, -1 where there is none.
        panel: `(P,)` names of the genes to take.
        transform: Of the counts.
        niche_profile: Whether counts are averaged before the transform or after it.
    """
    of_panel = columns(counts, genes, panel).astype(np.float64)
    total = csr_matrix(counts.sum(1), dtype=np.float64)

    def transformed(values: np.ndarray, sums: np.ndarray) -> np.ndarray:
        return log2_expression(values) if transform == "log2" else ln_cp10k(values, sums)

    own = transformed(of_panel.toarray(), total.toarray())
    if niche_profile == "mean_of_logs":
        return own, niche_mean(csr_matrix(own.astype(np.float64)), neighbors).astype(np.float32)
    return own, transformed(niche_mean(of_panel, neighbors), niche_mean(total, neighbors))


def ln_cp10k(counts: np.ndarray, total: np.ndarray) -> np.ndarray:
    """ln(1 + count per 10,000) of `(N, G)` counts, float32; total `(N, 1)` is over all genes, and 0 gives 0."""
    return np.log1p(counts / np.maximum(total, 1e-12) * 1e4).astype(np.float32)


def log2_expression(counts: np.ndarray) -> np.ndarray:
    """log2(1 + count), float32, without library size."""
    return np.log2(1 + counts).astype(np.float32)


def niche_mean(counts: csr_matrix, neighbors: np.ndarray) -> np.ndarray:
    """Mean of values over each spot and its neighbours, `(N, G)`; absent neighbours (-1) are left out of it."""
    n, k = neighbors.shape
    row = np.repeat(np.arange(n), k)[neighbors.ravel() >= 0]
    column = neighbors.ravel()[neighbors.ravel() >= 0]
    near = csr_matrix((np.ones(len(row)), (row, column)), shape=(n, n)) + diags(np.ones(n))
    size = np.asarray(near.sum(1)).ravel()
    return (diags(1 / size) @ near @ counts).toarray()
