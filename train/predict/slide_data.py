"""A slide of the cache as tensors that models predict from: all of it, or some spots at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hist_cache.cached_slide import CachedSlide
from hist_cache.slide_blocks import ROWS_IN_MEMORY, read_embeddings
from train.data import SpotData
from train.expression import Transform
from train.rings import slide_rings


@dataclass(frozen=True)
class SlideFile:
    """A slide in the cache.

    Attributes:
        path: Its file.
        slide: Its contents without embeddings.
        size: Neighbourhood size.
    """

    path: Path
    slide: CachedSlide
    size: int

    @property
    def names(self) -> tuple[str, str]:
        """Names of the embeddings in the file."""
        return "embeddings", f"niche/{self.size}"

    def complete(self) -> np.ndarray:
        """Whether each spot has all its neighbours, (N,) bool."""
        return np.all(self.slide.neighbors[self.size] >= 0, axis=1)


def parts_of(n: int, whole: bool) -> list[tuple[int, int]]:
    """First row, and the one after the last, of the parts of a slide of n spots that are in memory at once."""
    return [(0, n)] if whole else [(i, min(i + ROWS_IN_MEMORY, n)) for i in range(0, n, ROWS_IN_MEMORY)]


def embedding_parts(file: SlideFile, parts: Sequence[tuple[int, int]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Embeddings `(n, D)` float16 of spots and of niches, part by part."""
    for spot, niche in read_embeddings(file.path, file.names, parts):
        yield torch.from_numpy(spot), torch.from_numpy(niche)


def spot_data(
    file: SlideFile,
    rows: np.ndarray,
    embeddings: tuple[Tensor, Tensor],
    panel: list[str],
    transform: Transform,
    n_rings: int,
    device: torch.device,
) -> SpotData:
    """Some spots of a slide, as `assemble` gives them, but without expression.

    Args:
        file: The slide.
        rows: `(n,)` of the spots.
        embeddings: `(n, D)` of these spots and of their niches.
        panel: Names of the genes.
        transform: Of the counts that a model has learnt from.
        n_rings: Rings around each spot whose spots are listed; the rows must then be all that a model is to see.
        device: Of the tensors.

    Returns:
        The data; expression is NaN everywhere, so that whoever reads it is found out.
    """
    n, slide = len(rows), file.slide
    unknown = torch.full((1, 1), torch.nan, device=device).expand(n, len(panel))
    position = (slide.coords[rows] * float(slide.attributes["um_per_px"])).astype(np.float32)
    return SpotData(
        spot=embeddings[0].to(device),
        niche=embeddings[1].to(device),
        expression=unknown,
        niche_expression=unknown,
        slide=torch.zeros(n, dtype=torch.int64, device=device),
        row=torch.from_numpy(rows.astype(np.int64)).to(device),
        complete=torch.from_numpy(file.complete()[rows]).to(device),
        slides=[str(slide.attributes["slide"])],
        panel=panel,
        transform=transform,
        position=torch.from_numpy(position).to(device),
        rings=tuple(torch.from_numpy(ring).to(device) for ring in slide_rings(slide, n_rings, rows, 0)),
    )
