"""The models of a run's folds at work: their mean is the prediction, and how much they differ stands beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hist_cache.errors import HistError
from train.data import SpotData
from train.fit.batches import encode_rows
from train.fit.loop import add_offset, predict_embedded
from train.models.base import Model
from train.predict.folds import TrainedFold, needs_surroundings
from train.predict.slide_data import SlideFile, embedding_parts, parts_of, spot_data
from train.recipes.config import RecipeConfig
from train.recipes.restored import restore_recipe

Values = NDArray[np.float32]


@torch.no_grad()
def predict_spots(model: Model, config: RecipeConfig, tensors: Mapping[str, Tensor], data: SpotData) -> Tensor:
    """Expression `(n, G)` float32 of all spots of the data, as hist-train predicts its test spots.

    Args:
        model: Of a fold.
        config: Its recipe.
        tensors: What the recipe has fitted.
        data: The spots; their expression is not read.
    """
    recipe = restore_recipe(config, tensors, data)
    rows = torch.arange(len(data.slide), device=data.slide.device)
    model.look_around(recipe.data.surroundings)
    output = predict_embedded(model, encode_rows(recipe.data, rows), rows)
    return recipe.complete(add_offset(recipe.data, rows, output), rows).float()


@dataclass(frozen=True)
class LoadedFold:
    """A fold with its model on the device."""

    fold: TrainedFold
    model: Model
    tensors: dict[str, Tensor]

    @property
    def whole(self) -> bool:
        """Whether it must see all spots of a slide at once."""
        return needs_surroundings(self.model, self.fold)

    def predict(self, data: SpotData) -> Tensor:
        """Expression `(n, G)` float32 of all spots of the data, as hist-train predicts its test spots."""
        return predict_spots(self.model, self.fold.setting.recipe, self.tensors, data)


@dataclass(frozen=True)
class Part:
    """Predictions of some spots of a slide.

    Attributes:
        start: The first spot's row among those that are predicted.
        embeddings: Of the first fold's encoder: `(n, 2 D)` float32, spot and niche side by side.
        mean: `(n, G)` mean over the folds that predict a gene.
        spread: `(n, G)` standard deviation between them, NaN where one fold predicts a gene; None for a single fold.
    """

    start: int
    embeddings: Values
    mean: Values
    spread: Values | None


@dataclass(frozen=True)
class Ensemble:
    """The folds of a run, which may have panels of their own.

    Attributes:
        folds: With their models.
        device: Of the models.
    """

    folds: list[LoadedFold]
    device: torch.device

    @classmethod
    def load(cls, folds: Sequence[TrainedFold], device: torch.device) -> Ensemble:
        """Load the models of folds."""
        return cls([LoadedFold(fold, *fold.load(device)) for fold in folds], device)

    @property
    def genes(self) -> list[str]:
        """Names of all genes that a fold predicts, in the order of the first fold that does."""
        return list(dict.fromkeys(gene for loaded in self.folds for gene in loaded.fold.panel))

    @property
    def whole(self) -> bool:
        """Whether a fold must see all spots of a slide at once."""
        return any(loaded.whole for loaded in self.folds)

    def predict(self, files: Mapping[str, SlideFile], kept: NDArray[np.int64]) -> Iterator[Part]:
        """Predict a slide, some spots at a time unless a model looks around.

        Args:
            files: Folder of a fold -> the slide, embedded by the fold's encoder.
            kept: Rows of the spots that are predicted and seen: all, or those with a complete niche.

        Raises:
            HistError: A prediction is not finite.
        """
        of_folds = [files[str(loaded.fold.folder)] for loaded in self.folds]
        unlike = {file.path: file for file in of_folds}
        parts = parts_of(len(of_folds[0].slide), self.whole)
        readers = {path: embedding_parts(file, parts) for path, file in unlike.items()}
        column = {gene: i for i, gene in enumerate(self.genes)}
        done = 0
        for start, end in parts:
            inside = kept[(kept >= start) & (kept < end)]
            read = {path: next(reader) for path, reader in readers.items()}
            chosen = torch.from_numpy(inside - start)
            own = {path: (spot[chosen], niche[chosen]) for path, (spot, niche) in read.items()}
            if not len(inside):
                continue
            spread = Spread.empty(len(inside), len(column))
            for loaded, file in zip(self.folds, of_folds, strict=True):
                fold = loaded.fold
                data = spot_data(
                    *(file, inside, own[file.path], fold.panel, fold.setting.transform, fold.n_rings, self.device)
                )
                predicted = loaded.predict(data).cpu().numpy()
                if not np.isfinite(predicted).all():
                    raise HistError(f"{fold.folder}: not all predictions are finite; its training diverged")
                spread.add(predicted, np.array([column[gene] for gene in fold.panel]))
            embeddings = torch.cat(own[of_folds[0].path], dim=1).float().numpy()
            yield Part(done, embeddings, spread.mean, spread.deviation() if len(self.folds) > 1 else None)
            done += len(inside)


@dataclass
class Spread:
    """Mean and standard deviation of predictions that come fold by fold, by Welford's method.

    Attributes:
        mean: `(n, G)` mean over the folds so far that predict a gene.
        squares: `(n, G)` sum of squares of the differences to it.
        count: `(G,)` folds that predict a gene.
    """

    mean: Values
    squares: Values
    count: NDArray[np.int64]

    @classmethod
    def empty(cls, n: int, genes: int) -> Spread:
        """Of no fold."""
        return cls(np.zeros((n, genes), np.float32), np.zeros((n, genes), np.float32), np.zeros(genes, np.int64))

    def add(self, predicted: Values, columns: NDArray[np.int64]) -> None:
        """Add a fold's predictions `(n, g)`, whose genes are in these columns `(g,)`, each once."""
        self.count[columns] += 1
        change: Values = predicted - self.mean[:, columns]
        self.mean[:, columns] += np.divide(change, self.count[columns], dtype=np.float32)
        self.squares[:, columns] += np.multiply(change, predicted - self.mean[:, columns], dtype=np.float32)

    def deviation(self) -> Values:
        """`(n, G)` standard deviation with F - 1 in the denominator; NaN where one fold predicts a gene."""
        others = np.where(self.count > 1, self.count - 1, np.nan).astype(np.float32)
        return np.sqrt(self.squares / others)
