"""Fine measurements (transcripts, cells, bins of 2 to 16 um) pooled into pseudo-spots: circles on a hexagonal lattice.

A point belongs to the spot whose circle its centre lies in, so what lies between the circles is not counted, as on
Visium. The lattice is that of `place_spots`, in um from the origin of the positions, so it is the same each time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from extract.imports.pitch import VISIUM_PITCH_UM, VISIUM_SPOT_UM
from extract.imports.sample import Sample
from extract.slides.virtual_spots import lattice_sites, site_names
from hist_cache.errors import InputError

if TYPE_CHECKING:
    from scipy.sparse import coo_matrix, csr_matrix

POINTS_AT_ONCE = 500_000
MAX_WAITING = 20_000_000  # entries of parts that are not added up yet
MAX_LATTICE_ROWS = 1 << 20  # of a lattice, and of sites in a row: 100 m
Points = tuple[NDArray[np.float64], "csr_matrix"]  # (n, 2) positions in um, x then y, and (n, G) counts


@dataclass(frozen=True)
class PseudoSpots:
    """Pooled counts.

    Attributes:
        counts: (N, G) int64 counts of all points in each circle; no row is empty.
        centers: (N, 2) centres of the circles in um, x then y.
        array: (N, 2) array row and column, from 0, as on Visium: columns count half pitches, row + column is even.
        pitch_um: Distance between the centres of neighbouring circles.
        spot_um: Diameter of the circles.
        n_empty: Number of circles without counts whose centres lie within the box of the points.
        share: Share of all counts that lie in circles.
    """

    counts: csr_matrix
    centers: NDArray[np.float64]
    array: NDArray[np.int32]
    pitch_um: float
    spot_um: float
    n_empty: int
    share: float

    @property
    def names(self) -> list[str]:
        """(N,) names of the spots."""
        return site_names(self.array)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user must know of the pooling."""
        lattice = f"a hexagonal lattice of {self.pitch_um:.4g} um"
        return (
            f"pooled into {len(self.centers):,} pseudo-spots of {self.spot_um:g} um on {lattice}, which hold "
            f"{self.share:.0%} of the counts; {self.n_empty:,} others have no counts and are left out",
        )


def pitch_of(spot_um: float) -> float:
    """Return the pitch for spots of a diameter, both in um: in proportion as on Visium, 100 for 55."""
    return spot_um * VISIUM_PITCH_UM / VISIUM_SPOT_UM


def nearest_sites(points: NDArray[np.float64], pitch: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Find the nearest site of the hexagonal lattice for each point.

    Args:
        points: (n, 2) positions, x then y.
        pitch: Distance between the centres of neighbouring sites, in the same unit.

    Returns:
        (n, 2) row and number in the row, which may be negative, and (n,) distance from that site.
    """
    row_height = pitch * np.sqrt(0.75)
    above = np.floor((points[:, 1] - pitch / 2) / row_height).astype(np.int64)
    sites, distances = [], []
    for row in (above, above + 1):  # the nearest site is in one of the two rows that a point lies between
        number = np.round(points[:, 0] / pitch - 0.5 - (row % 2) / 2).astype(np.int64)
        centers = lattice_sites(row, number, pitch, "hex")[0]
        sites.append(np.stack([row, number], axis=1))
        offset = points - centers
        distances.append(np.hypot(offset[:, 0], offset[:, 1]))
    nearer = distances[1] < distances[0]
    chosen: NDArray[np.int64] = np.where(nearer[:, None], sites[1], sites[0])
    distance: NDArray[np.float64] = np.where(nearer, distances[1], distances[0])
    return chosen, distance


def pool(chunks: Iterable[Points], spot_um: float) -> PseudoSpots:
    """Pool points into circles; no more is kept in memory than one chunk and the sums.

    Args:
        chunks: Positions in um and counts; later chunks may have more genes than earlier ones.
        spot_um: Diameter of the circles.

    Raises:
        InputError: No circle has any counts.
    """
    from scipy.sparse import csr_matrix

    pitch = pitch_of(spot_um)
    sums, low, high, total = _Sums(), np.full(2, np.inf), np.full(2, -np.inf), 0
    for points, counts in chunks:
        if not len(points):
            continue
        low, high = np.minimum(low, points.min(0)), np.maximum(high, points.max(0))
        total += int(counts.sum())
        sites, distance = nearest_sites(points, pitch)
        inside = np.flatnonzero(distance <= spot_um / 2)
        if abs(sites).max() >= MAX_LATTICE_ROWS / 2:
            raise InputError(f"positions reach {abs(points).max():.3g} um; no tissue is that large")
        numbers = (sites[inside] + MAX_LATTICE_ROWS // 2) @ np.array([MAX_LATTICE_ROWS, 1])
        keys, spot = np.unique(numbers, return_inverse=True)
        into = csr_matrix((np.ones(len(inside), dtype=np.int64), (spot, inside)), shape=(len(keys), len(points)))
        sums.add(keys, into @ counts.astype(np.int64))
    keys, counts = sums.result()
    keep = np.flatnonzero(np.asarray(counts.sum(axis=1)).ravel())
    if not len(keep):
        raise InputError(f"no counts lie in any circle of {spot_um:g} um; is the pixel size right?")
    counts, sites = counts[keep], np.stack(np.divmod(keys[keep], MAX_LATTICE_ROWS), axis=1) - MAX_LATTICE_ROWS // 2
    centers, array = lattice_sites(sites[:, 0], sites[:, 1], pitch, "hex")
    array -= array.min(0) // 2 * 2  # from 0 or 1, and row + column stays even
    within = int(((centers >= low) & (centers <= high)).all(axis=1).sum())
    n_empty = _sites_within(low, high, pitch) - within
    return PseudoSpots(counts, centers, array, pitch, spot_um, n_empty, float(counts.sum() / total))


def pool_sample(sample: Sample, spot_um: float, um_per_px: float) -> Sample:
    """Pool the spots of a sample, such as bins or cells, into pseudo-spots.

    Args:
        sample: The sample.
        spot_um: Diameter of the pseudo-spots.
        um_per_px: Size of a px of its coordinates.

    Raises:
        InputError: The pseudo-spots are not larger than the spots, or have no counts.
    """
    if spot_um <= sample.spot_um:
        raise InputError(f"--pseudo-spots {spot_um:g}: no larger than the spots of {sample.spot_um:g} um to be pooled")
    starts = range(0, len(sample.coords), POINTS_AT_ONCE)
    parts = [slice(start, start + POINTS_AT_ONCE) for start in starts]
    spots = pool(((sample.coords[part] * um_per_px, sample.counts[part]) for part in parts), spot_um)
    return pooled_sample(sample, spots, spots.centers / um_per_px)


def pooled_sample(sample: Sample, spots: PseudoSpots, coords: NDArray[np.float64]) -> Sample:
    """Return a sample with pseudo-spots in the place of what was measured.

    Args:
        sample: What was measured; its counts may be of another number of spots.
        spots: The pseudo-spots.
        coords: (N, 2) their centres in px of the full-resolution image.
    """
    return replace(
        sample,
        counts=spots.counts,
        barcodes=spots.names,
        coords=coords,
        array=spots.array,
        pitch_um=spots.pitch_um,
        spot_um=spots.spot_um,
        notes=(*sample.notes, *spots.notes),
    )


class _Sums:
    """Sums of counts by site, added up whenever many entries wait."""

    def __init__(self) -> None:
        self._keys: list[NDArray[np.int64]] = []
        self._parts: list[coo_matrix] = []
        self._limit = MAX_WAITING

    def add(self, keys: NDArray[np.int64], counts: csr_matrix) -> None:
        """Add (S, G) counts of sites; `keys` names each site once."""
        self._keys.append(keys)
        self._parts.append(counts.tocoo())
        if sum(part.nnz for part in self._parts) > self._limit:
            all_keys, counts = self.result()
            self._keys, self._parts = [all_keys], [counts.tocoo()]
            self._limit = max(MAX_WAITING, 2 * counts.nnz)

    def result(self) -> tuple[NDArray[np.int64], csr_matrix]:
        """Return (S,) keys, sorted, and (S, G) sums."""
        from scipy.sparse import coo_matrix, csr_matrix

        if not self._parts:
            return np.zeros(0, dtype=np.int64), csr_matrix((0, 0), dtype=np.int64)
        keys, rows = np.unique(np.concatenate(self._keys), return_inverse=True)
        starts = np.cumsum([0, *(len(k) for k in self._keys)])
        row = np.concatenate([rows[start + part.row] for start, part in zip(starts, self._parts, strict=False)])
        column = np.concatenate([part.col for part in self._parts])
        data = np.concatenate([part.data for part in self._parts])
        width = max(part.shape[1] for part in self._parts)
        return keys, coo_matrix((data, (row, column)), shape=(len(keys), width)).tocsr()


def _sites_within(low: NDArray[np.float64], high: NDArray[np.float64], pitch: float) -> int:
    """Count the sites of the hexagonal lattice within a box."""
    row_height = pitch * np.sqrt(0.75)
    first, last = np.ceil((low[1] - pitch / 2) / row_height), np.floor((high[1] - pitch / 2) / row_height)
    n = 0
    for shift in (0, 1):
        rows = max(0, int(np.floor((last - shift) / 2) - np.ceil((first - shift) / 2)) + 1)
        across = np.floor(high[0] / pitch - 0.5 - shift / 2) - np.ceil(low[0] / pitch - 0.5 - shift / 2) + 1
        n += rows * max(0, int(across))
    return n
