"""What any model must beat: shuffled predictions, the train mean, ridge and nearest neighbours on the embeddings."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from train.data import Images, SpotData
from train.metrics import summarize
from train.models.base import PreparedModel
from train.models.components import Components, chunks, principal_components
from train.models.configs import KnnConfig, ModelConfig

COMPONENTS = 256
ALPHAS = 10.0 ** np.arange(-1, 7)


def permuted(predicted: np.ndarray, truth: np.ndarray, seed: int) -> dict[str, float]:
    """Metrics of the predictions dealt out to the wrong spots: what PCC@k owes to picking the best genes.

    Args:
        predicted: `(N, G)` expression.
        truth: `(N, G)` expression.
        seed: Of the permutation.
    """
    return summarize(predicted[np.random.default_rng(seed).permutation(len(predicted))], truth)


def train_mean(train: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Metrics of predicting each gene's mean over the train spots.

    Args:
        train: `(n, G)` expression of the train spots.
        truth: `(N, G)` expression of the test spots.
    """
    return summarize(np.broadcast_to(train.mean(0), truth.shape), truth)


class RidgeModel(PreparedModel):
    """Ridge on the first 256 principal components of the standardised embeddings of spot and niche, side by side.

    Its strength is the one of `ALPHAS` with the least validation error. All steps are linear, so what is kept is one
    matrix.
    """

    weight: Tensor
    bias: Tensor

    def prepare(self, data: SpotData, train: Tensor, val: Tensor, seed: int) -> None:
        """Fit on the train rows; see `Model.prepare`."""
        self.fit(principal_components(data, train, COMPONENTS), data, train, val)

    def fit(self, components: Components, data: SpotData, train: Tensor, val: Tensor) -> None:
        """Fit on the train rows, whose first `COMPONENTS` components are known already.

        Components are uncorrelated, so each strength divides the same products by other numbers.
        """
        y_val = data.expression[val].double().cpu().numpy()
        mean = data.expression[train].double().mean(0).cpu().numpy()
        products = np.zeros((len(components.squares), len(mean)))
        for rows, x in chunks(data, train):
            products += components.of(x).T @ (data.expression[rows].double().cpu().numpy() - mean)
        z_val = np.concatenate([components.of(x) for _, x in chunks(data, val)])
        fits = [products / (components.squares + alpha)[:, None] for alpha in ALPHAS]
        best = min(fits, key=lambda weights: float(((z_val @ weights + mean - y_val) ** 2).mean()))
        weight = components.axes @ best
        self.keep(weight=torch.from_numpy(weight), bias=torch.from_numpy(mean - components.mean @ weight))
        self.to(data.spot.device)

    def predict(self, images: Images) -> Tensor:
        """Predicted expression `(B, G)`, float64."""
        return torch.cat([images.spot, images.niche], dim=1).double() @ self.weight + self.bias


class KnnModel(PreparedModel):
    """The mean expression of the train spots whose embeddings of spot and niche are nearest (Euclidean)."""

    CHUNK: ClassVar[int] = 512
    """Spots whose distances to the whole bank are in memory at once."""

    bank: Tensor
    bank_expression: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        assert isinstance(config, KnnConfig)
        self.nearest = config.nearest

    def prepare(self, data: SpotData, train: Tensor, val: Tensor, seed: int) -> None:
        """Keep the train spots; see `Model.prepare`."""
        bank = torch.cat([data.spot[train], data.niche[train]], dim=1)
        self.keep(bank=bank, bank_expression=data.expression[train])

    def predict(self, images: Images) -> Tensor:
        """Predicted expression `(B, G)`, float32."""
        bank = self.bank.float()
        count = min(self.nearest, len(bank))
        parts = torch.cat([images.spot, images.niche], dim=1).split(self.CHUNK)
        rows = [torch.cdist(part, bank).topk(count, largest=False).indices for part in parts]
        return self.bank_expression[torch.cat(rows)].mean(dim=1)
