"""How far a spot's embeddings lie from those that a fold has learnt from: where its predictions are guesses.

Embeddings of spot and niche, side by side, are standardised over the train spots and divided into their first
principal components, of which each is scaled to a variance of 1, and what these leave, whose mean square is scaled to 1
too. The distance is the root of the mean of both parts' mean squares: 1 is usual for a train spot. It is a Mahalanobis
distance with a floor for directions without variance. The limit is the distance that 1 % of the spots of the validation
slides exceed. The model was not trained on these, so a slide of the same kind has about 1 % of its spots beyond it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from hist_cache.cache import Cache
from hist_cache.errors import HistError
from hist_cache.files import atomic_write
from train.models.components import standard_deviations
from train.predict.folds import TrainedFold

REFERENCE_FILE = "reference.safetensors"  # in the folder of a fold
N_COMPONENTS = 64
BEYOND = 0.01  # share of the validation spots beyond the limit
MIN_SHARE = 1e-6  # of the largest variance: components with less are left to the rest

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class Reference:
    """Statistics of the embeddings of a fold's train spots, with D features of spot and niche each.

    Attributes:
        mean: `(2 D,)`.
        std: `(2 D,)`, 1 for a feature without variance.
        axes: `(2 D, k)` principal axes of standardised embeddings over the standard deviations of their components.
        rest: Mean square of what the components leave, over the train spots.
        limit: The distance that a share of `BEYOND` of the validation spots exceeds.
    """

    mean: _Array
    std: _Array
    axes: _Array
    rest: float
    limit: float

    def distance(self, embeddings: NDArray[np.floating]) -> NDArray[np.float32]:
        """Distances `(n,)` of embeddings `(n, 2 D)` from the train spots."""
        values = (embeddings.astype(np.float64) - self.mean) / self.std
        scores = values @ self.axes
        # The axes are divided by standard deviations; the length of what they span is that of the scores times these.
        spanned = (scores * self._deviations()) ** 2
        rest = np.maximum((values**2).sum(1) - spanned.sum(1), 0) / self.rest if self.rest > 0 else 0.0
        return np.sqrt(((scores**2).mean(1) + rest) / (2 if self.rest > 0 else 1)).astype(np.float32)

    def _deviations(self) -> _Array:
        deviations: _Array = 1 / np.linalg.norm(self.axes, axis=0)
        return deviations

    def write(self, folder: Path) -> None:
        """Keep it in the folder of the fold."""
        arrays = {"mean": self.mean, "std": self.std, "axes": self.axes}
        arrays |= {"rest": np.array([self.rest]), "limit": np.array([self.limit])}
        with atomic_write(folder / REFERENCE_FILE) as aside:
            aside.write_bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def read_reference(folder: Path) -> Reference | None:
    """What `Reference.write` wrote; None where it is not there or damaged, so that it is computed again."""
    try:
        arrays = load((folder / REFERENCE_FILE).read_bytes())
        rest, limit = (float(arrays[name][0]) for name in ("rest", "limit"))
        return Reference(arrays["mean"], arrays["std"], arrays["axes"], rest, limit)
    except (OSError, SafetensorError, KeyError, IndexError, ValueError):
        return None


def fit_reference(train: Iterable[NDArray[np.floating]], val: Iterable[NDArray[np.floating]]) -> Reference:
    """Compute a reference.

    Args:
        train: Embeddings `(n, 2 D)` of the spots of each train slide; gone through twice, a slide in memory at a time.
        val: The same of each validation slide.
    """
    n, total = 0, np.zeros(1)
    for slide in train:
        n, total = n + len(slide), total + slide.sum(0, dtype=np.float64)
    mean = total / n
    gram = np.zeros((len(mean), len(mean)))
    for slide in train:
        centered = slide.astype(np.float64) - mean
        gram += centered.T @ centered / n
    std = standard_deviations(mean, np.diag(gram), n)
    correlation = gram / np.outer(std, std)
    variances, vectors = np.linalg.eigh(correlation)
    kept = np.flatnonzero(variances > MIN_SHARE * variances[-1])[::-1][:N_COMPONENTS]
    rest = max(float(np.trace(correlation) - variances[kept].sum()), 0.0)
    rest = rest if rest > MIN_SHARE * float(np.trace(correlation)) else 0.0
    fitted = Reference(mean, std, vectors[:, kept] / np.sqrt(variances[kept]), rest, np.inf)
    limit = float(np.quantile(np.concatenate([fitted.distance(slide) for slide in val]), 1 - BEYOND))
    return Reference(fitted.mean, fitted.std, fitted.axes, rest, limit)


@dataclass(frozen=True)
class SlideEmbeddings:
    """Embeddings `(n, 2 D)` float32 of some slides, read one after the other, each time anew.

    Attributes:
        cache: Where they are.
        slides: IDs.
        size: Neighbourhood size.
    """

    cache: Cache
    slides: list[str]
    size: int

    def __iter__(self) -> Iterator[NDArray[np.floating]]:
        for name in self.slides:
            slide = self.cache.read(name, [self.size])
            yield np.concatenate([slide.embeddings, slide.niches[self.size]], axis=1).astype(np.float32)


def missing_reference(fold: TrainedFold, cache: Cache) -> str:
    """Why `reference_of` gave none, and what helps."""
    if fold.adapter is not None:
        return (
            "the embeddings of its train slides with its adapter are not in the cache; hist-extract --dataset "
            f"{fold.setting.dataset} --lora {fold.adapter} makes them"
        )
    return f"the cache that it was trained on is not there ({cache.folder}); --cache names another folder"


def reference_of(fold: TrainedFold, cache: Cache) -> Reference | None:
    """The reference of a fold, computed and kept where it has none yet.

    Of a split within slices, train and validation slides are the same ones, whole.

    Args:
        fold: The fold.
        cache: The embeddings that it was trained on.

    Returns:
        The reference; None where the cache is not there (any more).
    """
    width = 2 * fold.cached_width
    if (kept := read_reference(fold.folder)) is not None and len(kept.mean) == width:
        return kept
    train, val = (fold.setting.slides_of(part) for part in (fold.split.train, fold.split.val))

    if not all(cache.path(slide).is_file() for slide in (*train, *val)):
        return None
    size = fold.setting.neighbors
    fitted = fit_reference(SlideEmbeddings(cache, train, size), SlideEmbeddings(cache, val, size))
    with suppress(HistError):  # in a folder that cannot be written to it is computed again next time
        fitted.write(fold.folder)
    return fitted
