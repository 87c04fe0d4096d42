"""Cutting a slide for splits within slices: bands across its longer axis, and a margin between train and test spots.

Two things would let a model see what it is tested on. The niche profile of a spot is an average over its neighbours, so
that a train niche could hold the counts of a test spot. And the niche crop of a train spot could show a test spot. So a
train spot is dropped where its niche may reach a spot of the validation or the test band, and a validation spot where
its niche may reach a spot of the test band. Test spots are never dropped: over all folds each spot is tested once.

How far a niche reaches: its crop is a square of the half side m p + r around the spot (m rings, pitch p, spots of the
radius r), whose corners are sqrt(2) (m p + r) away. Another spot is a disc of the radius r. So no crop shows a spot
whose centre is sqrt(2) (m p + r) + r away, however the lattice lies on the image. That is farther than any of the m
rings: the corner of a square lattice's ring m is sqrt(2) m p away. Where spots follow no lattice, neighbours are within
(m + 1/2) p, which is farther only if spots are far smaller than their pitch. On Visium (p 100 um, r 27.5 um) the margin
is 208, 349 and 491 um for m = 1, 2 and 3, and on legacy ST (p 200 um, r 50 um) 404, 686 and 969 um: the m + 1 nearest
rows of a band for m = 1, one more at most for m = 2 and 3.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from hist_cache.slide_parts import N_BANDS, ROLES

TRAIN, VAL, TEST = range(len(ROLES))


def band_numbers(coords: NDArray[np.float64], count: int = N_BANDS) -> NDArray[np.int64]:
    """Cut a slide into bands of equally many spots, across the longer of the axes x and y of its spots' positions.

    Spots at the same place of that axis are in the same band, so that the sizes of bands may differ where there are
    such spots; without them they differ by one spot at most.

    Args:
        coords: (N, 2) spot centres; any unit.
        count: Number of bands.

    Returns:
        (N,) number of each spot's band, from 0 on, which grows along the axis. The axis is x where both are as long.
    """
    if not len(coords):
        return np.zeros(0, dtype=np.int64)
    along = coords[:, int(np.argmax(np.ptp(coords, axis=0)))]
    in_order = np.sort(along)
    below, reached = np.searchsorted(in_order, along, "left"), np.searchsorted(in_order, along, "right")
    # The middle rank of the spots at a place decides for all of them; in whole numbers, so that nothing is rounded.
    numbers: NDArray[np.int64] = count * (below + reached) // (2 * len(along))
    return numbers


def band_roles(band: NDArray[np.int64], tested: int, count: int = N_BANDS) -> NDArray[np.int64]:
    """Give each spot the role of its band, before any is dropped.

    Args:
        band: (N,) number of each spot's band.
        tested: Number of the band that is tested; the next one validates, band 0 after the last.
        count: Number of bands.

    Returns:
        (N,) `TRAIN`, `VAL` or `TEST`.
    """
    return np.select([band == tested, band == (tested + 1) % count], [TEST, VAL], TRAIN)


def niche_margin(n_rings: int, pitch: float, spot_diameter: float) -> float:
    """Return the distance of two spots' centres from which on the niche of neither can hold or show the other spot.

    Args:
        n_rings: Rings of a niche.
        pitch: Distance between the centres of neighbouring spots.
        spot_diameter: In the same unit.

    Returns:
        The distance, in the same unit.
    """
    radius = spot_diameter / 2
    shown = math.sqrt(2) * (n_rings * pitch + radius) + radius
    return max(shown, (n_rings + 0.5) * pitch)


def far_from_others(coords: NDArray[np.float64], role: NDArray[np.int64], margin: float) -> NDArray[np.bool_]:
    """Test which spots are kept: all test spots, and those whose niches stay away from spots of a later role.

    Args:
        coords: (N, 2) spot centres.
        role: (N,) `TRAIN`, `VAL` or `TEST`.
        margin: What `niche_margin` returns, in the unit of the centres.

    Returns:
        (N,) True for test spots, for validation spots that have no test spot nearer than the margin, and for train
        spots that have neither a test spot nor one of the validation band, dropped or not, nearer than that.
    """
    kept = np.ones(len(coords), dtype=bool)
    for own in (TRAIN, VAL):
        later, spots = role > own, np.flatnonzero(role == own)
        if later.any() and len(spots):
            kept[spots] = cKDTree(coords[later]).query(coords[spots])[0] >= margin
    return kept
