"""Ridge regression on principal components, as a matrix for the embeddings themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.data import SpotData
from train.models.components import Components, chunks

ALPHAS = 10.0 ** np.arange(-1, 7)
TUNED_ALPHAS = 10.0 ** np.arange(-1, 7, 0.5)

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class LinearMap:
    """From embeddings of spot and niche, side by side, to expression.

    Attributes:
        weight: `(2 D, G)` float64.
        bias: `(G,)` float64.
    """

    weight: Tensor
    bias: Tensor

    def of(self, spot: Tensor, niche: Tensor) -> Tensor:
        """Predicted expression `(n, G)` float64 from embeddings `(n, D)` each."""
        return torch.cat([spot, niche], dim=1).double() @ self.weight + self.bias

    def to(self, device: torch.device) -> LinearMap:
        """The same on a device."""
        return LinearMap(self.weight.to(device), self.bias.to(device))


def fit_ridge(
    components: Components,
    data: SpotData,
    target: Tensor,
    train: Tensor,
    val: Tensor,
    alphas: Iterable[float],
    error: Callable[[_Array], float],
) -> LinearMap:
    """Fit ridge on the train rows, with the penalty that has the least error on the validation rows.

    Components are uncorrelated, so each penalty divides the same products by other numbers.

    Args:
        components: Of the embeddings of the train rows.
        data: All spots.
        target: `(N, G)`, what is predicted; only the train rows are read.
        train: `(n,)`.
        val: `(m,)`; their embeddings are read.
        alphas: The penalties.
        error: Of predictions `(m, G)` of the validation rows.

    Returns:
        The map, on the CPU.
    """
    mean = target[train].double().mean(0).cpu().numpy()
    products = np.zeros((len(components.squares), len(mean)))
    for rows, x in chunks(data, train):
        products += components.of(x).T @ (target[rows].double().cpu().numpy() - mean)
    z_val = np.concatenate([components.of(x) for _, x in chunks(data, val)])
    fits = [products / (components.squares + alpha)[:, None] for alpha in alphas]
    best = min(fits, key=lambda weights: error(z_val @ weights + mean))
    weight = components.axes @ best
    return LinearMap(torch.from_numpy(weight), torch.from_numpy(mean - components.mean @ weight))
