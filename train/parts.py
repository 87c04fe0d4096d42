"""Parts of slides that count as slides of their own, for splits within slices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from hist_cache.bands import band_numbers, band_roles, far_from_others, niche_margin
from hist_cache.cached_slide import CachedSlide
from hist_cache.errors import InputError
from hist_cache.large_arrays import read_counts
from hist_cache.lattice import RINGS
from hist_cache.slide_parts import ROLES, part_name


@dataclass(frozen=True)
class BandCut:
    """How slides are cut for one fold.

    Attributes:
        neighbors: Neighbourhood size of the niches, which decides how far train spots stay away from test spots.
        tested: Number of the band that is tested.
    """

    neighbors: int
    tested: int


@dataclass(frozen=True, eq=False)
class SlidePart:
    """Some spots of a slide, or all of them. Nothing of a part is computed from the counts of spots outside of it.

    Attributes:
        slide: The whole slide.
        whole: Its ID.
        rows: (n,) int64, the spots' rows in it, in order.
    """

    slide: CachedSlide
    whole: str
    rows: NDArray[np.int64]

    @classmethod
    def all_of(cls, name: str, slide: CachedSlide) -> SlidePart:
        """The whole slide as its one part."""
        return cls(slide, name, np.arange(len(slide)))

    def neighbors(self, size: int) -> NDArray[np.int64]:
        """(n, K) neighbours as places in `rows`; -1 for those that are not in the part, and where there is none."""
        places = np.full(len(self.slide) + 1, -1)  # the last one stands for "none"
        places[self.rows] = np.arange(len(self.rows))
        return places[self.slide.neighbors[size][self.rows]]

    def counts(self) -> csr_matrix:
        """The counts (n, G) of the part's spots alone, read from the file where the slide does not hold them."""
        counts = read_counts(self.slide)
        return counts if len(self.rows) == len(self.slide) else counts[self.rows]


def cut_slides(slides: Mapping[str, CachedSlide], cut: BandCut) -> dict[str, SlidePart]:
    """Cut all slides for one fold; see `hist_cache.bands`.

    Args:
        slides: By ID.
        cut: How.

    Returns:
        The parts by the names that `part_name` gives them: train, val and test of one slide, then of the next.

    Raises:
        InputError: A slide does not state its pitch, or is so small that no spot is left in one of its parts.
    """
    parts = {}
    for name, slide in slides.items():
        for part, rows in zip(ROLES, _rows_of_parts(name, slide, cut), strict=True):
            parts[part_name(name, part, cut.tested)] = SlidePart(slide, name, rows)
    return parts


def _rows_of_parts(name: str, slide: CachedSlide, cut: BandCut) -> list[NDArray[np.int64]]:
    """The rows of a slide's train, validation and test spots."""
    if "pitch_um" not in slide.attributes:
        raise InputError(
            f"{name}: its cache file does not state pitch_um, so that nobody knows how far its niches reach; extract "
            "it again"
        )
    pitch, spot, um_per_px = (float(slide.attributes[k]) for k in ("pitch_um", "spot_um", "um_per_px"))
    margin_um = niche_margin(RINGS[cut.neighbors], pitch, spot)
    role = band_roles(band_numbers(slide.coords), cut.tested)
    kept = far_from_others(slide.coords, role, margin_um / um_per_px)
    rows = [np.flatnonzero(kept & (role == i)) for i in range(len(ROLES))]
    if empty := [part for part, own in zip(ROLES, rows, strict=True) if not len(own)]:
        raise InputError(
            f"{name}: too small for --split within: of its {len(slide):,} spots none is left in {' and '.join(empty)} "
            f"of fold {cut.tested}, as train and test spots stay {margin_um:.0f} um apart; give fewer --neighbors, "
            "--split loso, or a dataset without this slide"
        )
    return rows
