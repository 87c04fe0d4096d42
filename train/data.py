"""The cache in memory: all spots of all slides as contiguous tensors on the device; a batch is an index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from scipy.sparse import csr_matrix, diags
from torch import Tensor

from hist_cache.cache import Cache, CachedSlide
from hist_cache.errors import InputError
from hist_cache.panels import columns

if TYPE_CHECKING:
    from train.finetune.inputs import Frontier

Transform = Literal["log2", "ln_cp10k"]
UNITS = {"log2": "log2(1 + count)", "ln_cp10k": "ln(1 + count per 10,000)"}


@dataclass(frozen=True, eq=False)
class SpotData:
    """N spots with G panel genes, on one device.

    spot, niche (N, D) float16 embeddings; expression, niche_expression (N, G) float32, in `UNITS[transform]`;
    slide (N,) int64 index into `slides`; row (N,) int64 row of the slide's file; complete (N,) bool, whether all
    neighbours are there.
    """

    spot: Tensor
    niche: Tensor
    expression: Tensor
    niche_expression: Tensor
    slide: Tensor
    row: Tensor
    complete: Tensor
    slides: list[str]
    panel: list[str]
    transform: Transform = "log2"
    memo: dict[Any, Any] = field(default_factory=dict)
    """What several runs on these data need and one can compute: the ridge control of a split."""
    frontier: Frontier | None = None
    """Where an encoder that is tuned reads from; without it images are `spot` and `niche`."""

    def rows(self, slides: tuple[str, ...]) -> Tensor:
        """Rows of these slides' spots, in order."""
        wanted = torch.tensor([self.slides.index(s) for s in slides], device=self.slide.device)
        return torch.isin(self.slide, wanted).nonzero().squeeze(1)


def read_slides(cache: Cache, sizes: Sequence[int]) -> dict[str, CachedSlide]:
    """Slides of a cache with niches of these neighbourhood sizes, by id."""
    slides = {s: cache.read(s, sorted(set(sizes))) for s in cache.slides}
    if not slides:
        raise InputError(f"{cache.folder}: no slides; run hist-extract")
    return slides


def assemble(
    slides: dict[str, CachedSlide],
    size: int,
    panel: list[str],
    device: torch.device,
    transform: Transform = "log2",
    drop_edges: bool = False,
) -> SpotData:
    """Join slides by gene name into tensors on `device`; `drop_edges` leaves out spots that lack a neighbour."""
    parts: dict[str, list[np.ndarray]] = {}
    tensors: dict[str, Any] = {}
    for i, slide in enumerate(slides.values()):
        neighbors = slide.neighbors[size]
        complete = np.all(neighbors >= 0, axis=1)
        kept = np.flatnonzero(complete) if drop_edges else np.arange(len(slide))
        own, around = profiles(slide, neighbors, panel, transform)
        of_slide = {
            "spot": slide.embeddings[kept],
            "niche": slide.niches[size][kept],
            "expression": own[kept],
            "niche_expression": around[kept],
            "slide": np.full(len(kept), i),
            "row": kept,
            "complete": complete[kept],
        }
        for name, array in of_slide.items():
            parts.setdefault(name, []).append(array)
    for name, arrays in parts.items():
        tensors[name] = torch.from_numpy(np.concatenate(arrays)).to(device)
    return SpotData(**tensors, slides=list(slides), panel=list(panel), transform=transform)


def without_arrays(slides: dict[str, CachedSlide]) -> dict[str, CachedSlide]:
    """Slides with what a run's tables and maps need, without embeddings and counts: small enough to send about."""
    none, nothing = np.empty((0, 0)), csr_matrix((0, 0))
    return {
        name: replace(slide, embeddings=none, counts=nothing, genes=[], niches={}, neighbors={})
        for name, slide in slides.items()
    }


def profiles(
    slide: CachedSlide, neighbors: np.ndarray, panel: list[str], transform: Transform
) -> tuple[np.ndarray, np.ndarray]:
    """(N, G) float32 expression of each spot and of its niche (the mean of raw counts, then the transform)."""
    counts = columns(slide.counts, slide.genes, panel).astype(np.float64)
    own, around = counts.toarray(), niche_mean(counts, neighbors)
    if transform == "log2":
        return log2_expression(own), log2_expression(around)
    total = csr_matrix(slide.counts.sum(1), dtype=np.float64)
    return ln_cp10k(own, total.toarray()), ln_cp10k(around, niche_mean(total, neighbors))


def ln_cp10k(counts: np.ndarray, total: np.ndarray) -> np.ndarray:
    """ln(1 + count per 10,000) of (N, G) counts, float32; total (N, 1) over all genes, 0 giving 0."""
    return np.log1p(counts / np.maximum(total, 1e-12) * 1e4).astype(np.float32)


def log2_expression(counts: np.ndarray) -> np.ndarray:
    """log2(1 + count), float32, no library size."""
    return np.log2(1 + counts).astype(np.float32)


def niche_mean(counts: csr_matrix, neighbors: np.ndarray) -> np.ndarray:
    """(N, G) mean of raw counts over each spot and its neighbours; absent neighbours (-1) are left out of the mean."""
    n, k = neighbors.shape
    row = np.repeat(np.arange(n), k)[neighbors.ravel() >= 0]
    column = neighbors.ravel()[neighbors.ravel() >= 0]
    near = csr_matrix((np.ones(len(row)), (row, column)), shape=(n, n)) + diags(np.ones(n))
    size = np.asarray(near.sum(1)).ravel()
    return (diags(1 / size) @ near @ counts).toarray()
