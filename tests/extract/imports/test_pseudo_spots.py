"""Pooling into circles against distances between all points and all circles, in float64."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix, random

from extract.imports import pseudo_spots
from extract.imports.options import ImportOptions
from extract.imports.pseudo_spots import PseudoSpots, nearest_sites, pool, pool_sample
from extract.imports.sample import Sample
from extract.imports.work import pool_if_asked
from hist_cache.errors import InputError
from hist_cache.lattice import find_lattice, ring_neighbors

PITCH, SPOT = 100.0, 55.0


def centers(low: float, high: float) -> np.ndarray:
    """All centres of Visium's lattice in a square, row by row, written down without the code under test."""
    rows = np.arange(-60, 60)
    sites = [(50 + 100 * n + (50 if row % 2 else 0), 50 + row * 100 * np.sqrt(3) / 2) for row in rows for n in rows]
    return np.array([site for site in sites if low <= min(site) and max(site) <= high])


def points(n: int, genes: int, low: float = -800, high: float = 2100) -> tuple[np.ndarray, csr_matrix]:
    rng = np.random.default_rng(3)
    counts = random(n, genes, density=0.4, random_state=rng, data_rvs=lambda k: rng.integers(1, 9, k)).tocsr()
    return rng.uniform(low, high, (n, 2)), counts.astype(np.int32)


def in_chunks(xy: np.ndarray, counts: csr_matrix, size: int) -> PseudoSpots:
    return pool(((xy[i : i + size], counts[i : i + size]) for i in range(0, len(xy), size)), SPOT)


def test_the_nearest_site() -> None:
    xy, _ = points(3000, 1)
    everywhere = centers(-2000, 4000)
    distance = np.linalg.norm(xy[:, None] - everywhere[None], axis=2).min(1)
    np.testing.assert_allclose(nearest_sites(xy, PITCH)[1], distance, atol=1e-9)


@pytest.mark.parametrize("waiting", [20_000_000, 300])  # added up once at the end, or again and again
def test_sums_of_all_points_in_a_circle(waiting: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pseudo_spots, "MAX_WAITING", waiting)
    xy, counts = points(4000, 7)
    spots = in_chunks(xy, counts, 333)
    everywhere = centers(-1000, 2300)
    inside = np.linalg.norm(everywhere[:, None] - xy[None], axis=2) <= SPOT / 2
    expected = inside @ counts.toarray()
    measured = expected.sum(1) > 0
    order = np.lexsort(np.round(spots.centers.T[:2], 3))
    wanted = np.lexsort(np.round(everywhere[measured].T[:2], 3))
    np.testing.assert_allclose(spots.centers[order], everywhere[measured][wanted], atol=1e-9)
    np.testing.assert_array_equal(spots.counts[order].toarray(), expected[measured][wanted])
    within = ((everywhere >= xy.min(0)) & (everywhere <= xy.max(0))).all(1)
    assert spots.n_empty == (within & ~measured).sum()
    assert spots.share == pytest.approx(expected.sum() / counts.sum())


def test_array_indices_are_those_of_visium() -> None:
    spots = in_chunks(*points(20_000, 3), 5000)
    row, column = spots.array.T
    assert spots.array.min() >= 0
    assert ((row + column) % 2 == 0).all()
    lattice = find_lattice(spots.centers, spots.array, PITCH)
    assert (lattice.kind, lattice.source) == ("hex", "array")
    neighbors = ring_neighbors(lattice, spots.centers, PITCH, 1)
    spot, place = np.nonzero(neighbors >= 0)
    distance = np.linalg.norm(spots.centers[spot] - spots.centers[neighbors[spot, place]], axis=1)
    np.testing.assert_allclose(distance, PITCH)
    assert len(set(spots.names)) == len(spots.names)


def test_empty_circles_are_left_out_and_said() -> None:
    xy = np.array([[50.0, 50.0], [50.0, 77.5], [150.0, 50.0], [250.0, 50.0], [350.0, 50.0], [350.0, 80.0]])
    counts = csr_matrix([[2, 0], [3, 0], [0, 0], [0, 1], [0, 0], [0, 7]])
    spots = pool([(xy, counts)], SPOT)
    np.testing.assert_array_equal(spots.counts.toarray(), [[5, 0], [0, 1]])
    np.testing.assert_array_equal(spots.array, [[0, 0], [0, 4]])
    assert spots.notes == (
        "pooled into 2 pseudo-spots of 55 um on a hexagonal lattice of 100 um, which hold 46% of the counts; "
        "2 others have no counts and are left out",
    )


def test_later_chunks_may_have_more_genes() -> None:
    at = np.array([[50.0, 50.0]])
    spots = pool([(at, csr_matrix([[1]])), (at[:0], csr_matrix((0, 2))), (at + 9, csr_matrix([[2, 4, 6]]))], SPOT)
    np.testing.assert_array_equal(spots.counts.toarray(), [[3, 4, 6]])


def test_nothing_to_pool() -> None:
    for chunks in ([], [(np.array([[100.0, 50.0]]), csr_matrix([[3]]))]):
        with pytest.raises(InputError, match="no counts lie in any circle of 55 um"):
            pool(chunks, SPOT)
    with pytest.raises(InputError, match="no tissue is that large"):
        pool([(np.array([[1e9, 50.0]]), csr_matrix([[3]]))], SPOT)


def test_a_sample_of_bins() -> None:
    row, column = np.mgrid[:40, :40].reshape(2, -1)
    um = np.stack([column, row], axis=1) * 8.0 + 4
    counts = csr_matrix(np.random.default_rng(0).poisson(1, (1600, 5)))
    array = np.stack([row, column], axis=1).astype(np.int32)
    sample = Sample(
        "a", counts, [str(i) for i in range(1600)], list("ABCDE"), None, um / 0.5, array,
        "Visium HD", 8.0, 8.0, 0.5, "scalefactors", None, notes=("before",),
    )  # fmt: skip
    pooled = pool_sample(sample, 55, 0.5)
    inside = np.linalg.norm(pooled.coords[:, None] * 0.5 - um[None], axis=2) <= 27.5
    np.testing.assert_array_equal(pooled.counts.toarray(), inside @ counts.toarray())
    assert (pooled.pitch_um, pooled.spot_um, pooled.um_per_px, pooled.technology) == (100, 55, 0.5, "Visium HD")
    assert pooled.notes[0] == "before"
    assert len(pooled.barcodes) == len(pooled.coords) == len(pooled.array)
    with pytest.raises(InputError, match="no larger than the spots of 8 um"):
        pool_sample(sample, 5, 0.5)
    # --um-per-px is of the image: where that has half the resolution, positions have half its pixel size.
    options = ImportOptions(source=("a",), pseudo_spots=55, um_per_px=1.0, scale=0.5)
    np.testing.assert_array_equal(pool_if_asked(sample, options).coords, pooled.coords)
