"""What any model must beat: shuffled predictions, the train mean, ridge and nearest neighbours on the embeddings."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from hist_cache.errors import HistError, one_line
from train.data import Images, SpotData
from train.metrics import summarize
from train.models.base import PreparedModel, embedding_pair
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
    """Ridge on the first 256 principal components of the embeddings of spot and niche, side by side.

    Its strength is the one of `ALPHAS` with the least validation error. All steps are linear, so what is kept is one
    matrix.
    """

    weight: Tensor
    bias: Tensor

    def prepare(self, data: SpotData, train: Tensor, val: Tensor, seed: int) -> None:
        """Fit on the train rows; see `Model.prepare`."""
        from sklearn.decomposition import PCA
        from sklearn.linear_model import Ridge
        from sklearn.preprocessing import StandardScaler

        x_train, x_val = (embedding_pair(data, rows).numpy() for rows in (train, val))
        y_train, y_val = (data.expression[rows].cpu().numpy() for rows in (train, val))
        scaler = StandardScaler()
        pca = PCA(min(COMPONENTS, *x_train.shape), random_state=seed)
        try:
            with np.errstate(invalid="ignore"):  # one train spot has no variance, and needs none
                z_train = pca.fit_transform(scaler.fit_transform(x_train))
        except (np.linalg.LinAlgError, ValueError) as error:
            raise HistError(
                f"ridge: the principal components of the embeddings cannot be computed ({one_line(error)}); "
                "hist-extract --verify checks the cache"
            ) from error
        z_val = pca.transform(scaler.transform(x_val))
        fits = [Ridge(alpha).fit(z_train, y_train) for alpha in ALPHAS]
        best = min(fits, key=lambda fit: float(((fit.predict(z_val) - y_val) ** 2).mean()))
        by_component = pca.components_.T @ np.atleast_2d(best.coef_).T
        centre = (scaler.mean_ / scaler.scale_ + pca.mean_) @ by_component
        self.keep(
            weight=torch.from_numpy(by_component / scaler.scale_[:, None]),
            bias=torch.from_numpy(np.asarray(best.intercept_ - centre, dtype=np.float64)),
        )
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
