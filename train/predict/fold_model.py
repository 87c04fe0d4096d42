"""A trained fold in a notebook: numpy arrays of embeddings in, expression out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from hist_cache.errors import InputError
from hist_cache.runs import CONFIG, Fold
from train.data import SpotData
from train.experiments.outputs import load_model
from train.experiments.setting import Setting, read_setting
from train.expression import UNITS
from train.models.base import Model
from train.predict.folds import looks_around, read_recipe_tensors
from train.predict.models import predict_spots


@dataclass(frozen=True)
class FoldModel:
    """The model of a finished fold, with what its recipe has fitted, on the CPU.

    Attributes:
        setting: What decided its numbers.
        genes: Names of the genes that it predicts.
    """

    setting: Setting
    genes: list[str]
    _model: Model
    _tensors: Mapping[str, Tensor]

    @property
    def unit(self) -> str:
        """The unit of the predictions, such as `log2(1 + count)`."""
        return UNITS[self.setting.transform]

    @property
    def width(self) -> int:
        """D, the width of the embeddings that it reads."""
        return self.setting.model.embedding_width // (1 + self.setting.recipe.neighbor_rings)

    def __repr__(self) -> str:
        what = f"{self.setting.method} of {self.setting.dataset}, {self.setting.neighbors} neighbours"
        encoder = self.setting.cache["encoder"]
        return f"FoldModel: {what}\n  ({encoder}: {self.width} numbers a crop) -> {len(self.genes)} genes, {self.unit}"

    @torch.no_grad()
    def predict(self, embeddings: ArrayLike, niche: ArrayLike) -> NDArray[np.float32]:
        """Predict spots from their embeddings, as hist-train predicts its test spots.

        A recipe that standardises by slide, or takes levels from a slide, takes all N spots for one slide.

        Args:
            embeddings: `(N, D)` of the spot crops, from the encoder that the fold was trained with: `embeddings` of a
                cached slide.
            niche: `(N, D)` of the niche crops of the same spots: `niches[K]` of a cached slide, with the K of the fold.

        Returns:
            `(N, G)` float32 expression of `genes`, in `unit`.

        Raises:
            InputError: The arrays have other shapes or values that are not finite, or the model looks at the places of
                the spots around each spot, which hist-predict knows.
        """
        if looks_around(self._model) or self.setting.recipe.n_rings:
            raise InputError(
                f"{self.setting.method} looks at the spots around each spot, and embeddings do not say where they are: "
                "use hist-predict"
            )
        tensors = [self._checked(name, a) for name, a in (("embeddings", embeddings), ("niche", niche))]
        if tensors[0].shape != tensors[1].shape:
            raise InputError(f"embeddings are of {len(tensors[0])} spots, niche of {len(tensors[1])}")
        n = len(tensors[0])
        unknown = torch.full((1, 1), torch.nan).expand(n, len(self.genes))
        rows = torch.arange(n)
        data = SpotData(
            spot=tensors[0],
            niche=tensors[1],
            expression=unknown,
            niche_expression=unknown,
            slide=torch.zeros_like(rows),
            row=rows,
            complete=torch.ones(n, dtype=torch.bool),
            slides=["spots"],
            panel=self.genes,
            transform=self.setting.transform,
        )
        predicted: NDArray[np.float32] = predict_spots(self._model, self.setting.recipe, self._tensors, data).numpy()
        return predicted

    def _checked(self, name: str, values: ArrayLike) -> Tensor:
        """An array as the cache holds it, in float16, in which the model has seen embeddings."""
        array = np.asarray(values)
        if array.ndim != 2 or array.shape[1] != self.width or not len(array) or array.dtype.kind not in "fiu":
            raise InputError(f"{name} are {array.dtype} of shape {array.shape}; give numbers of (spots, {self.width})")
        with np.errstate(over="ignore"):
            array = array.astype(np.float16)
        if not np.isfinite(array).all():
            raise InputError(f"{name}: not all are finite numbers that float16 holds")
        return torch.from_numpy(array)


def load_fold_model(fold: Fold) -> FoldModel:
    """The model of a finished fold; `InputError` where a file of it cannot be read."""
    setting = read_setting(fold.folder / CONFIG, fold.config)
    return FoldModel(setting, fold.panel, load_model(fold.folder), read_recipe_tensors(fold.folder))
