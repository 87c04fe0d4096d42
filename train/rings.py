"""Which spots are in the rings around each spot, as rows of tensors in which slides follow each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hist_cache.cached_slide import CachedSlide
from hist_cache.errors import HistError
from hist_cache.lattice import find_lattice, full_ring_size, ring_neighbors


def slide_rings(slide: CachedSlide, n_rings: int, kept: np.ndarray, first: int) -> list[np.ndarray]:
    """The spots of each ring around the kept spots of a slide, `(n, K)` rows for each ring, -1 where there is none.

    Args:
        slide: From a cache.
        n_rings: Rings 1 to this one; 0 gives [].
        kept: Rows of the spots that are kept; they get the rows `first`, `first` + 1, ...
        first: Row of the first kept spot.

    Raises:
        HistError: The cache does not say how far apart the spots are.
    """
    if not n_rings:
        return []
    if "pitch_um" not in slide.attributes:
        raise HistError(
            "a slide of the cache does not state its pitch_um, so that its rings are unknown; extract it again"
        )
    pitch_px = float(slide.attributes["pitch_um"]) / float(slide.attributes["um_per_px"])
    lattice = find_lattice(slide.coords, slide.array, pitch_px)
    neighbors = ring_neighbors(lattice, slide.coords, pitch_px, n_rings)
    new_rows = np.full(len(slide) + 1, -1)  # the last one stands for "none"
    new_rows[kept] = np.arange(first, first + len(kept))
    ends = [full_ring_size(lattice.kind, ring) for ring in range(1, n_rings + 1)]
    return np.split(new_rows[neighbors[kept]], ends[:-1], axis=1)


def join_rings(of_slides: Sequence[np.ndarray]) -> np.ndarray:
    """One ring of several slides below each other; a lattice with fewer places in it is filled up with -1."""
    width = max(ring.shape[1] for ring in of_slides)
    padded = [np.pad(ring, ((0, 0), (0, width - ring.shape[1])), constant_values=-1) for ring in of_slides]
    return np.concatenate(padded)
