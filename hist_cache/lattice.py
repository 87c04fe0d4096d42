"""Neighbours of spots: the rings around each spot of a hexagonal (Visium) or square (legacy ST) lattice.

On a hexagonal lattice ring m has 6m spots, so rings 1 to m have K = 3m(m+1) spots: 6, 18 or 36. On a square lattice
they have K = (2m+1)^2 - 1 spots: 8, 24 or 48. A spot is never its own neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_order, connected_components
from scipy.spatial import cKDTree

Kind = Literal["hex", "square", "none"]
RINGS = {6: 1, 18: 2, 36: 3}  # name of a neighbourhood (its size on a hexagonal lattice) -> number of rings
MAX_NEIGHBOR_PITCHES = 1.25  # between the distance of lattice neighbours (1) and the diagonal of a square (1.41)
MAX_MISFIT = 0.25  # root mean square distance of the spots from their lattice sites, in pitches
MAX_VECTOR_ERROR = 0.2  # of the length of a lattice vector (in pitches), and of the cosine between the two
MIN_ORDER = 0.5  # |mean exp(i k angle)|, which is 1 for a perfect lattice and 0 for none


@dataclass(frozen=True)
class Lattice:
    """The lattice of a slide's spots.

    Attributes:
        kind: Hexagonal, square, or none if the spots follow no lattice.
        sites: (N, 2) int64, each spot's coordinates in units of the two lattice vectors, which are 60 degrees (hex) or
            90 degrees (square) apart.
        source: Whether the sites come from array indices or from the positions of the spots.
    """

    kind: Kind
    sites: NDArray[np.int64]
    source: Literal["array", "positions"]


def find_lattice(coords: NDArray[np.float64], array: NDArray[np.int32], pitch_px: float) -> Lattice:
    """Find the lattice of a slide's spots, from their array indices where these fit the positions, else from positions.

    Array indices may not fit: on Visium HD, for example, columns and positions disagree.

    Args:
        coords: (N, 2) spot centres in px.
        array: (N, 2) array row and array column; -1 where they are not known.
        pitch_px: Distance between the centres of neighbouring spots, in px.

    Returns:
        The lattice. Its kind is "none" if the positions follow no lattice.
    """
    for kind in ("hex", "square"):
        sites = _sites_from_array(array, kind)
        if sites is not None and _fits(coords, sites, kind, pitch_px):
            return Lattice(kind, sites, "array")
    pairs = cKDTree(coords).query_pairs(MAX_NEIGHBOR_PITCHES * pitch_px, output_type="ndarray")
    kind, angle = _order(coords, pairs)
    if kind != "none":
        sites = _sites_from_positions(coords, pairs, _vectors(kind, angle, pitch_px))
        if _fits(coords, sites, kind, pitch_px):
            return Lattice(kind, sites, "positions")
    return Lattice("none", np.zeros((len(coords), 2), dtype=np.int64), "positions")


def full_ring_size(kind: Kind, n_rings: int) -> int:
    """Return K, the number of spots in rings 1 to `n_rings` of a complete lattice."""
    return (2 * n_rings + 1) ** 2 - 1 if kind == "square" else 3 * n_rings * (n_rings + 1)


def ring_neighbors(lattice: Lattice, coords: NDArray[np.float64], pitch_px: float, n_rings: int) -> NDArray[np.int32]:
    """List the neighbours of each spot in rings 1 to `n_rings`.

    Without a lattice they are the K = 3m(m+1) nearest spots within (m + 1/2) pitches, where m is `n_rings`.

    Args:
        lattice: The lattice of the spots.
        coords: (N, 2) spot centres in px.
        pitch_px: Distance between the centres of neighbouring spots, in px.
        n_rings: Number of rings, 1 or more.

    Returns:
        (N, K) row numbers of the neighbours, inner rings first, -1 where the tissue has no spot.
    """
    k = full_ring_size(lattice.kind, n_rings)
    if lattice.kind == "none":
        n_nearest = min(k + 1, len(coords))
        distance, nearest = cKDTree(coords).query(coords, k=[*range(1, n_nearest + 1)])
        return _without_self(np.where(distance <= (n_rings + 0.5) * pitch_px, nearest, -1), k)
    # Each site gets a number (its key), so that a neighbour is found by looking up a number.
    steps = _steps(lattice.kind, n_rings)
    low = lattice.sites.min(0) - n_rings
    width = int(lattice.sites[:, 1].max() - low[1]) + n_rings + 1
    keys = (lattice.sites - low) @ np.array([width, 1])
    order = np.argsort(keys, kind="stable")
    neighbor_keys = ((lattice.sites - low)[:, None, :] + steps[None]) @ np.array([width, 1])
    position = np.minimum(np.searchsorted(keys[order], neighbor_keys), len(keys) - 1)
    rows = order[position]
    return np.where(keys[rows] == neighbor_keys, rows, -1).astype(np.int32)


def _steps(kind: Kind, n_rings: int) -> NDArray[np.int64]:
    """Return the (K, 2) lattice steps from a spot to rings 1 to `n_rings`, inner rings first."""
    a, b = np.mgrid[-n_rings : n_rings + 1, -n_rings : n_rings + 1].reshape(2, -1)
    if kind == "hex":
        ring = (abs(a) + abs(b) + abs(a + b)) // 2
    else:
        ring = np.maximum(abs(a), abs(b))
    keep = (ring >= 1) & (ring <= n_rings)
    a, b, ring = a[keep], b[keep], ring[keep]
    order = np.lexsort((b, a, ring))
    return np.stack([a, b], axis=1)[order]


def _sites_from_array(array: NDArray[np.int32], kind: Kind) -> NDArray[np.int64] | None:
    """Turn array indices into (N, 2) lattice sites; None where indices are missing or cannot be of this kind."""
    row, col = array.astype(np.int64).T
    if len(array) == 0 or (array < 0).any():
        return None
    if kind == "square":
        return np.stack([col, row], axis=1)
    # Visium columns step by 2 within a row and by 1 between rows, so row + column is always even or always odd.
    parity = (row + col) % 2
    if parity.min() != parity.max():
        return None
    return np.stack([(col - row - parity[0]) // 2, row], axis=1)


def _vectors(kind: Kind, angle: float, pitch_px: float) -> NDArray[np.float64]:
    """Return the two lattice vectors as rows of a (2, 2) array, in px; the first one has the given angle."""
    second = angle + (np.pi / 3 if kind == "hex" else np.pi / 2)
    return pitch_px * np.array([[np.cos(angle), np.sin(angle)], [np.cos(second), np.sin(second)]])


def _fits(coords: NDArray[np.float64], sites: NDArray[np.int64], kind: Kind, pitch_px: float) -> bool:
    """Test whether the sites explain the positions.

    They do if no site is taken twice and an affine map takes sites to positions with a small misfit, and if the two
    vectors of that map have the lengths and the angle of the lattice.
    """
    if len(np.unique(sites, axis=0)) < len(sites) or len(sites) < 4:
        return False
    design = np.column_stack([sites, np.ones(len(sites))])
    solution, _, rank, _ = np.linalg.lstsq(design, coords, rcond=None)
    if rank < 3:
        return False
    misfit = np.sqrt(((design @ solution - coords) ** 2).sum(1).mean())
    u, v = solution[:2]
    lengths = np.linalg.norm([u, v], axis=1) / pitch_px
    cosine = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
    return bool(
        misfit < MAX_MISFIT * pitch_px
        and (abs(lengths - 1) < MAX_VECTOR_ERROR).all()
        and abs(cosine - (0.5 if kind == "hex" else 0.0)) < MAX_VECTOR_ERROR
    )


def _order(coords: NDArray[np.float64], pairs: NDArray[np.int64]) -> tuple[Kind, float]:
    """Return the lattice kind with the larger bond-orientational order, and the angle of its first vector.

    Args:
        coords: (N, 2) spot centres in px.
        pairs: (P, 2) rows of neighbouring spots.
    """
    if len(pairs) < 3:
        return "none", 0.0
    dx, dy = (coords[pairs[:, 1]] - coords[pairs[:, 0]]).T
    angles = np.arctan2(dy, dx)
    mean = {kind: np.exp(1j * fold * angles).mean() for kind, fold in (("hex", 6), ("square", 4))}
    kind: Kind = "hex" if abs(mean["hex"]) >= abs(mean["square"]) else "square"
    if abs(mean[kind]) < MIN_ORDER:
        return "none", 0.0
    return kind, float(np.angle(mean[kind]) / (6 if kind == "hex" else 4))


def _sites_from_positions(
    coords: NDArray[np.float64], pairs: NDArray[np.int64], vectors: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return the (N, 2) sites, found by going from spot to neighbouring spot so that deviations do not add up."""
    to_sites = np.linalg.inv(vectors)
    n = len(coords)
    graph = coo_matrix((np.ones(len(pairs)), pairs.T), shape=(n, n)).tocsr()
    n_parts, label = connected_components(graph, directed=False)
    sites = np.zeros((n, 2), dtype=np.int64)
    by_size = np.argsort(-np.bincount(label, minlength=n_parts), kind="stable")
    origin = coords[label == by_size[0]][0]
    for part in by_size:
        root = int(np.flatnonzero(label == part)[0])
        sites[root] = np.round((coords[root] - origin) @ to_sites)
        order, parent = breadth_first_order(graph, root, directed=False)
        for spot in order[1:]:
            p = parent[spot]
            sites[spot] = sites[p] + np.round((coords[spot] - coords[p]) @ to_sites).astype(np.int64)
    return sites


def _without_self(rows: NDArray[np.int64], k: int) -> NDArray[np.int32]:
    """Remove each spot from its own list of neighbours and return (N, k) rows, filled up with -1."""
    n = len(rows)
    out = np.full((n, k), -1, dtype=np.int32)
    for i in range(n):
        others = [r for r in rows[i] if r not in (-1, i)][:k]
        out[i, : len(others)] = others
    return out
