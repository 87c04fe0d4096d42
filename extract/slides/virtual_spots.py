"""A lattice of virtual spots over the tissue of a slide that has no measured ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from extract.slides.tissue import TissueMask
from hist_cache.errors import InputError

MIN_SPOT_TISSUE = 0.5  # share of a spot's disc
MAX_VIRTUAL_SPOTS = 5_000_000  # sites of a lattice over the whole slide; more would not fit into memory
POINTS_OF_DISC = 64  # at which a disc is compared with the mask
DISCS_AT_ONCE = 100_000  # spots that are compared at a time


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

    The lattice begins half a pitch from the slide's upper left corner, so it is the same each time. Array rows and
    columns are those of Visium on a hexagonal lattice: columns count half pitches, row + column is even.

    Args:
        mask: Where the tissue is. How much of a spot lies on tissue is counted at the resolution of this mask.
        pitch_um: Distance between the centres of neighbouring spots.
        spot_um: Diameter of a spot.
        lattice: `hex` as on Visium (rows 0.866 pitches apart, odd rows shifted by half a pitch) or `square`.

    Returns:
        The spots in rows from the top, each from the left; none where there is no tissue.

    Raises:
        InputError: The pitch gives more spots than can be predicted.
    """
    pitch = pitch_um / mask.um_per_px
    row_height = pitch * (np.sqrt(0.75) if lattice == "hex" else 1.0)
    rows, columns = int(mask.height / row_height + 0.5), int(mask.width / pitch + 0.5)
    if rows * columns > MAX_VIRTUAL_SPOTS:
        raise InputError(f"a pitch of {pitch_um:g} um gives {rows * columns:,} spots a slide; give a larger --pitch")
    row, number = np.mgrid[:rows, :columns].reshape(2, -1)
    coords, array = lattice_sites(row, number, pitch, lattice)
    keep = disc_share(mask, coords, spot_um / mask.um_per_px) >= MIN_SPOT_TISSUE
    return VirtualSpots(site_names(array[keep]), coords[keep], array[keep])


def lattice_sites(
    row: NDArray[np.int64], number: NDArray[np.int64], pitch: float, lattice: Literal["hex", "square"]
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Return where sites of the lattice of `place_spots` are, and their array row and column.

    Args:
        row: (N,) rows from the top; the first one is 0.
        number: (N,) numbers of the sites in their rows, from the left; the first one is 0.
        pitch: Distance between the centres of neighbouring sites, in any unit.
        lattice: `hex` or `square`.

    Returns:
        (N, 2) centres in the unit of the pitch, x then y, and (N, 2) array row and column.
    """
    hexagonal = lattice == "hex"
    shift = row % 2 if hexagonal else np.zeros_like(row)
    row_height = pitch * (np.sqrt(0.75) if hexagonal else 1.0)
    coords = np.stack([(0.5 + number + shift / 2) * pitch, pitch / 2 + row * row_height], axis=1)
    column = 2 * number + shift if hexagonal else number
    return coords, np.stack([row, column], axis=1).astype(np.int32)


def site_names(array: NDArray[np.int32]) -> list[str]:
    """Return the names of sites by their (N, 2) array row and column."""
    return [f"{r:03d}x{c:03d}" for r, c in array.tolist()]


def disc_share(mask: TissueMask, centers: NDArray[np.float64], diameter_px: float) -> NDArray[np.float64]:
    """Return which share of each disc is tissue; what lies outside of the slide is none.

    Args:
        mask: Where the tissue is.
        centers: (N, 2) level-0 px, x then y.
        diameter_px: Diameter of the discs, level-0 px.

    Returns:
        (N,) from 0 to 1.
    """
    # Points on a spiral by the golden angle, which are spread evenly over a disc.
    n = np.arange(POINTS_OF_DISC)
    radius, angle = np.sqrt((n + 0.5) / POINTS_OF_DISC) * diameter_px / 2, n * np.pi * (3 - np.sqrt(5))
    disc = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    share = np.zeros(len(centers))
    for start in range(0, len(centers), DISCS_AT_ONCE):
        points = centers[start : start + DISCS_AT_ONCE, None] + disc
        share[start : start + DISCS_AT_ONCE] = mask.contains(points).mean(axis=1)
    return share
