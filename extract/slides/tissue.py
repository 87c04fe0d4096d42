"""Where tissue is on an H&E slide, found on its overview."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TissueMask:
    """Where a slide has tissue, in pixels much larger than the slide's own.

    Attributes:
        pixels: (h, w) bool, true on tissue; its corners are those of the slide.
        width: Width of the slide, level-0 px.
        height: Height of the slide, level-0 px.
        um_per_px: Pixel size of level 0.
    """

    pixels: NDArray[np.bool_]
    width: int
    height: int
    um_per_px: float

    @property
    def area_mm2(self) -> float:
        """Area of the tissue."""
        raise NotImplementedError

    def contains(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Tell which points lie on tissue; none outside of the slide does.

        Args:
            points: (..., 2) level-0 px, x then y.

        Returns:
            (...) bool.
        """
        raise NotImplementedError


def find_tissue(overview: NDArray[np.uint8], size: tuple[int, int], um_per_px: float) -> TissueMask:
    """Find the tissue of an H&E slide.

    Args:
        overview: (h, w, 3) RGB of the whole slide, see `Image.overview`.
        size: Width and height of the slide, level-0 px.
        um_per_px: Pixel size of level 0.

    Returns:
        The tissue, in pixels of `MASK_UM` or those of the overview, whichever are larger; nothing on an empty slide.
    """
    raise NotImplementedError
