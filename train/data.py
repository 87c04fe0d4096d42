"""The cache in memory: all spots of all slides as contiguous tensors on the device; a batch is an index."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_matrix, diags
from torch import Tensor

from hist_cache.cache import Cache, CachedSlide
from hist_cache.errors import InputError
from hist_cache.panels import columns


@dataclass(frozen=True)
class SpotData:
    """N spots with G panel genes, on one device.

    spot, niche (N, D) float16 embeddings; expression, niche_expression (N, G) float32, log2(1 + count);
    slide (N,) int64 index into `slides`.
    """

    spot: Tensor
    niche: Tensor
    expression: Tensor
    niche_expression: Tensor
    slide: Tensor
    slides: list[str]
    panel: list[str]

    def rows(self, slides: tuple[str, ...]) -> Tensor:
        """Rows of these slides' spots, in order."""
        wanted = torch.tensor([self.slides.index(s) for s in slides], device=self.slide.device)
        return torch.isin(self.slide, wanted).nonzero().squeeze(1)


def read_slides(cache: Cache, size: int) -> dict[str, CachedSlide]:
    """Slides of a cache with niches of `size` neighbours, by id."""
    slides = {s: cache.read(s, [size]) for s in cache.slides}
    if not slides:
        raise InputError(f"{cache.folder}: no slides; run hist-extract")
    return slides


def assemble(slides: dict[str, CachedSlide], size: int, panel: list[str], device: torch.device) -> SpotData:
    """Join slides by gene name into tensors on `device`."""
    spots, niches, own, around, index = [], [], [], [], []
    for i, slide in enumerate(slides.values()):
        counts = columns(slide.counts, slide.genes, panel).astype(np.float64)
        spots.append(slide.embeddings)
        niches.append(slide.niches[size])
        own.append(log2_expression(counts.toarray()))
        around.append(log2_expression(niche_mean(counts, slide.neighbors[size])))
        index.append(np.full(len(slide), i))
    return SpotData(
        spot=torch.from_numpy(np.concatenate(spots)).to(device),
        niche=torch.from_numpy(np.concatenate(niches)).to(device),
        expression=torch.from_numpy(np.concatenate(own)).to(device),
        niche_expression=torch.from_numpy(np.concatenate(around)).to(device),
        slide=torch.from_numpy(np.concatenate(index)).to(device),
        slides=list(slides),
        panel=list(panel),
    )


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
