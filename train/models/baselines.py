"""What any model must beat: shuffled predictions, the train mean, ridge and nearest neighbours on the embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from hist_cache.values import SelectBy
from train.data import Images, SpotData
from train.metrics import summarize
from train.models.base import PreparedModel
from train.models.components import Components, principal_components
from train.models.configs import KnnConfig, ModelConfig
from train.models.ridge import ALPHAS, TUNED_ALPHAS, LinearMap, fit_ridge
from train.selection import selection_error

COMPONENTS = 256
TUNED_COMPONENTS = 512


def permuted(predicted: np.ndarray, truth: np.ndarray, seed: int) -> dict[str, float]:
    """Metrics of the predictions dealt out to the wrong spots: what PCC@k owes to picking the best genes.

    Args:
        predicted: `(N, G)` expression.
        truth: `(N, G)` expression.
        seed: Of the permutation.
    """
    return summarize(predicted[np.random.default_rng(seed).permutation(len(predicted))], truth)


def train_mean(train: np.ndarray, count: int) -> np.ndarray:
    """The mean of each gene over the train spots as the prediction of `count` spots, `(count, G)`.

    Args:
        train: `(n, G)` expression of the train spots.
        count: How many are predicted.
    """
    return np.broadcast_to(train.mean(0), (count, train.shape[1]))


class RidgeModel(PreparedModel):
    """Ridge on the first 256 principal components of the standardised embeddings of spot and niche, side by side.

    Its strength is the one of `ALPHAS` with the least validation error. All steps are linear, so what is kept is one
    matrix. The probe of HEST-bench, after which it is made, reads the spot alone, has one penalty and no intercept.
    """

    weight: Tensor
    bias: Tensor

    def prepare(self, data: SpotData, train: Tensor, val: Tensor, seed: int) -> None:
        """Fit on the train rows; see `Model.prepare`."""
        self.fit(principal_components(data, train, COMPONENTS), data, train, val)

    def fit(self, components: Components, data: SpotData, train: Tensor, val: Tensor) -> None:
        """Fit on the train rows, whose first `COMPONENTS` components are known already."""
        y_val = data.expression[val].double().cpu().numpy()
        mse = lambda predicted: float(((predicted - y_val) ** 2).mean())  # noqa: E731
        fitted = fit_ridge(components, data, data.expression, train, val, ALPHAS, mse)
        self.keep(weight=fitted.weight, bias=fitted.bias)
        self.to(data.spot.device)

    def predict(self, images: Images) -> Tensor:
        """Predicted expression `(B, G)`, float64."""
        return LinearMap(self.weight, self.bias).of(images.spot, images.niche)


class TunedRidgeModel(PreparedModel):
    """Ridge as strong as it can be: on what the model beside it reads, learning what that model learns.

    It takes the inputs and the targets of the recipe, more components and a finer row of penalties than `RidgeModel`,
    and the penalty that is best by the rule which selects the epochs of a model that learns.
    """

    weight: Tensor
    bias: Tensor

    def prepare(self, data: SpotData, train: Tensor, val: Tensor, seed: int) -> None:
        """Fit on the train rows; see `Model.prepare`."""
        components = principal_components(data, train, TUNED_COMPONENTS)
        error = validation_error(self.select_by, data, val)
        fitted = fit_ridge(components, data, data.target, train, val, TUNED_ALPHAS, error)
        self.keep(weight=fitted.weight, bias=fitted.bias)
        self.to(data.spot.device)

    def predict(self, images: Images) -> Tensor:
        """Predicted expression `(B, G)`, or what is learnt in its place, float64."""
        return LinearMap(self.weight, self.bias).of(images.spot, images.niche)


def validation_error(rule: SelectBy, data: SpotData, val: Tensor) -> Callable[[np.ndarray], float]:
    """A function from a model's output `(m, G)` for the validation rows to the error that `rule` selects by."""
    truth, slide = data.expression[val].cpu(), data.slide[val].cpu()
    offset = None if data.targets is None else data.targets.offset[val].cpu().double()

    def error(output: np.ndarray) -> float:
        predicted = torch.from_numpy(output)
        return selection_error(rule, predicted if offset is None else predicted + offset, truth, slide)

    return error


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
        self.keep(bank=bank, bank_expression=data.target[train])

    def predict(self, images: Images) -> Tensor:
        """Predicted expression `(B, G)`, float32."""
        bank = self.bank.float()
        count = min(self.nearest, len(bank))
        parts = torch.cat([images.spot, images.niche], dim=1).split(self.CHUNK)
        rows = [torch.cdist(part, bank).topk(count, largest=False).indices for part in parts]
        return self.bank_expression[torch.cat(rows)].mean(dim=1)
