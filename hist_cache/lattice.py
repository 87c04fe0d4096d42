"""Which spots are neighbours: rings of a hexagonal (Visium) or square (legacy ST) lattice.

Ring m of the hex lattice holds 6m spots, rings 1..m together K = 3m(m+1) (6, 18, 36); on the square lattice
K = (2m+1)^2 - 1 (8, 24, 48). Neighbours never include the centre.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_order, connected_components
from scipy.spatial import cKDTree

Kind = Literal["hex", "square", "none"]
RINGS = {6: 1, 18: 2, 36: 3}  # the name of a neighbourhood size -> its rings
NEAR = 1.25  # pitches: takes in lattice neighbours, not the square's diagonal (1.41)
MAX_MISFIT = 0.25  # rms distance of spots from their lattice site, in pitches
MIN_ORDER = 0.5  # |mean exp(i k angle)|: 1 for a perfect lattice, 0 for none


@dataclass(frozen=True)
class Lattice:
    """sites (N, 2) int64: each spot's coordinates in units of the two lattice vectors (60 or 90 degrees apart)."""

    kind: Kind
    sites: np.ndarray
    source: Literal["array", "positions"]


def find_lattice(coords: np.ndarray, array: np.ndarray, pitch_px: float) -> Lattice:
    """The lattice of a slide's spots, from array indices where these fit the positions, else from the positions.

    coords (N, 2) px; array (N, 2) row and column (-1 unknown). Array indices do not fit where, as on Visium HD,
    columns and positions disagree. `kind` is "none" where the positions follow no lattice.
    """
    for kind in ("hex", "square"):
        sites = _sites_from_array(array, kind)
        if sites is not None and _fits(coords, sites, kind, pitch_px):
            return Lattice(kind, sites, "array")
    near = cKDTree(coords).query_pairs(NEAR * pitch_px, output_type="ndarray")
    kind, angle = _order(coords, near)
    if kind != "none":
        sites = _sites_from_positions(coords, near, _vectors(kind, angle, pitch_px))
        if _fits(coords, sites, kind, pitch_px):
            return Lattice(kind, sites, "positions")
    return Lattice("none", np.zeros((len(coords), 2), dtype=np.int64), "positions")


def full_ring_size(kind: Kind, m: int) -> int:
    """K: spots in rings 1..m."""
    return (2 * m + 1) ** 2 - 1 if kind == "square" else 3 * m * (m + 1)


def ring_neighbors(lattice: Lattice, coords: np.ndarray, pitch_px: float, m: int) -> np.ndarray:
    """(N, K) int32 rows of the spots in rings 1..m, inner rings first, -1 where the tissue has none.

    Without a lattice: the K = 3m(m+1) nearest spots within (m + 1/2) pitches.
    """
    k = full_ring_size(lattice.kind, m)
    if lattice.kind == "none":
        found = min(k + 1, len(coords))
        distance, rows = cKDTree(coords).query(coords, k=[*range(1, found + 1)])
        rows = np.where(distance <= (m + 0.5) * pitch_px, rows, -1)
        return _without_self(rows, k)
    steps = _steps(lattice.kind, m)
    low = lattice.sites.min(0) - m
    width = int(lattice.sites[:, 1].max() - low[1]) + m + 1
    keys = (lattice.sites - low) @ np.array([width, 1])
    order = np.argsort(keys, kind="stable")
    wanted = ((lattice.sites - low)[:, None, :] + steps[None]) @ np.array([width, 1])
    at = np.minimum(np.searchsorted(keys[order], wanted), len(keys) - 1)
    rows = order[at]
    return np.where(keys[rows] == wanted, rows, -1).astype(np.int32)


def _steps(kind: Kind, m: int) -> np.ndarray:
    """(K, 2) lattice steps to rings 1..m, inner first."""
    a, b = np.mgrid[-m : m + 1, -m : m + 1].reshape(2, -1)
    if kind == "hex":
        ring = (abs(a) + abs(b) + abs(a + b)) // 2
    else:
        ring = np.maximum(abs(a), abs(b))
    keep = (ring >= 1) & (ring <= m)
    a, b, ring = a[keep], b[keep], ring[keep]
    order = np.lexsort((b, a, ring))
    return np.stack([a, b], axis=1)[order]


def _sites_from_array(array: np.ndarray, kind: Kind) -> np.ndarray | None:
    row, col = array.astype(np.int64).T
    if len(array) == 0 or (array < 0).any():
        return None
    if kind == "square":
        return np.stack([col, row], axis=1)
    # Visium: columns step by 2 along a row and by 1 between rows, so row + column has one parity.
    parity = (row + col) % 2
    if parity.min() != parity.max():
        return None
    return np.stack([(col - row - parity[0]) // 2, row], axis=1)


def _vectors(kind: Kind, angle: float, pitch_px: float) -> np.ndarray:
    """(2, 2) the two lattice vectors, px."""
    second = angle + (np.pi / 3 if kind == "hex" else np.pi / 2)
    return pitch_px * np.array([[np.cos(angle), np.sin(angle)], [np.cos(second), np.sin(second)]])


def _fits(coords: np.ndarray, sites: np.ndarray, kind: Kind, pitch_px: float) -> bool:
    """Whether an affine map takes sites to positions, with the lattice's own lengths and angle, no site taken twice."""
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
        and (abs(lengths - 1) < 0.2).all()
        and abs(cosine - (0.5 if kind == "hex" else 0.0)) < 0.2
    )


def _order(coords: np.ndarray, pairs: np.ndarray) -> tuple[Kind, float]:
    """The lattice kind with the larger bond-orientational order, and the angle of its first vector."""
    if len(pairs) < 3:
        return "none", 0.0
    dx, dy = (coords[pairs[:, 1]] - coords[pairs[:, 0]]).T
    angles = np.arctan2(dy, dx)
    mean = {kind: np.exp(1j * fold * angles).mean() for kind, fold in (("hex", 6), ("square", 4))}
    kind: Kind = "hex" if abs(mean["hex"]) >= abs(mean["square"]) else "square"
    if abs(mean[kind]) < MIN_ORDER:
        return "none", 0.0
    return kind, float(np.angle(mean[kind]) / (6 if kind == "hex" else 4))


def _sites_from_positions(coords: np.ndarray, pairs: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """(N, 2) sites found by walking from spot to neighbouring spot, so that jitter does not add up."""
    to_sites = np.linalg.inv(vectors)
    n = len(coords)
    graph = coo_matrix((np.ones(len(pairs)), pairs.T), shape=(n, n)).tocsr()
    parts, label = connected_components(graph, directed=False)
    sites = np.zeros((n, 2), dtype=np.int64)
    by_size = np.argsort(-np.bincount(label, minlength=parts), kind="stable")
    origin = coords[label == by_size[0]][0]
    for part in by_size:
        root = int(np.flatnonzero(label == part)[0])
        sites[root] = np.round((coords[root] - origin) @ to_sites)
        order, parent = breadth_first_order(graph, root, directed=False)
        for spot in order[1:]:
            p = parent[spot]
            sites[spot] = sites[p] + np.round((coords[spot] - coords[p]) @ to_sites).astype(np.int64)
    return sites


def _without_self(rows: np.ndarray, k: int) -> np.ndarray:
    n = len(rows)
    out = np.full((n, k), -1, dtype=np.int32)
    for i in range(n):
        others = [r for r in rows[i] if r not in (-1, i)][:k]
        out[i, : len(others)] = others
    return out
