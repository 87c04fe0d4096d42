"""A lattice of virtual spots over the tissue of a slide that has no measured ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from extract.slides.tissue import TissueMask


@dataclass(frozen=True)
class VirtualSpots:
    """Spots without counts.

    Attributes:
        names: (N,) names, each once.
        coords: (N, 2) spot centres in level-0 px, x then y.
        array: (N, 2) array row and array column, as `hist_cache.lattice` reads them; -1 where they are not known.
    """

    names: list[str]
    coords: NDArray[np.float64]
    array: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.names)


def place_spots(mask: TissueMask, pitch_um: float, spot_um: float, lattice: Literal["hex", "square"]) -> VirtualSpots:
    """Place a lattice of spots over a slide and keep those that are at least half on tissue.

    Args:
        mask: Where the tissue is.
        pitch_um: Distance between the centres of neighbouring spots.
        spot_um: Diameter of a spot.
        lattice: `hex` as on Visium (rows 0.866 pitches apart, odd rows shifted by half a pitch) or `square`.

    Returns:
        The spots in rows from the top, each from the left; none where there is no tissue.

    Raises:
        InputError: The pitch gives more spots than can be predicted.
    """
    raise NotImplementedError
