import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from hist_cache.lattice import find_lattice, full_ring_size, ring_neighbors
from hist_cache.slides import find_slide, slides_on_disk
from hist_cache.spots import read_spots
from tests.conftest import SHARED, needs_shared


def hexagons(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    r, c = np.mgrid[0:rows, 0:columns].reshape(2, -1)
    keep = (r + c) % 2 == 0
    return np.stack([c * 50.0, r * 86.6025], axis=1)[keep], np.stack([r, c], axis=1)[keep].astype(np.int32)


def squares(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    r, c = np.mgrid[0:rows, 0:columns].reshape(2, -1)
    return np.stack([c, r], axis=1) * 100.0, np.stack([r, c], axis=1).astype(np.int32)


def rotated(xy: np.ndarray, angle: float) -> np.ndarray:
    return xy @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def within(xy: np.ndarray, radius: float) -> list[set[int]]:
    return [set(near) - {i} for i, near in enumerate(cKDTree(xy).query_ball_point(xy, radius))]


@pytest.mark.parametrize(("n_rings", "radius"), [(1, 137.0), (2, 230.0), (3, 323.0)])
@pytest.mark.parametrize("has_array", [True, False])
def test_hex_rings_are_the_spots_within_their_radius(n_rings: int, radius: float, has_array: bool) -> None:
    xy, array = hexagons(12, 24)
    lattice = find_lattice(xy, array if has_array else np.full_like(array, -1), 100.0)
    assert (lattice.kind, lattice.source) == ("hex", "array" if has_array else "positions")
    near = ring_neighbors(lattice, xy, 100.0, n_rings)
    assert near.shape == (len(xy), {1: 6, 2: 18, 3: 36}[n_rings])
    assert [set(row) - {-1} for row in near] == within(xy, radius)


@pytest.mark.parametrize("n_rings", [1, 2, 3])
@pytest.mark.parametrize("has_array", [True, False])
def test_square_rings_are_squares(n_rings: int, has_array: bool) -> None:
    xy, array = squares(9, 11)
    lattice = find_lattice(xy, array if has_array else np.full_like(array, -1), 100.0)
    near = ring_neighbors(lattice, xy, 100.0, n_rings)
    assert near.shape[1] == full_ring_size("square", n_rings) == {1: 8, 2: 24, 3: 48}[n_rings]
    chebyshev = np.abs(xy[:, None] - xy[None]).max(-1) / 100
    assert [set(row) - {-1} for row in near] == [
        set(np.flatnonzero((d > 0.5) & (d < n_rings + 0.5))) for d in chebyshev
    ]


@settings(max_examples=40, deadline=None)
@given(
    angle=st.floats(0, 2 * np.pi), mirror=st.booleans(), jitter=st.floats(0, 0.08), square=st.booleans(),
    seed=st.integers(0, 1000), drop=st.floats(0, 0.3),
)  # fmt: skip
def test_positions_alone_give_the_neighbours_of_the_array(angle, mirror, jitter, square, seed, drop) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(seed)
    xy, array = squares(10, 12) if square else hexagons(10, 24)
    keep = rng.random(len(xy)) >= drop
    xy, array = xy[keep], array[keep]
    moved = rotated(xy * ([1, -1] if mirror else [1, 1]), angle) + rng.uniform(-jitter, jitter, xy.shape) * 100
    exact = find_lattice(xy, array, 100.0)
    estimate = find_lattice(moved, np.full_like(array, -1), 100.0)
    assert estimate.kind == exact.kind
    for n_rings in (1, 3):
        a, b = ring_neighbors(exact, xy, 100.0, n_rings), ring_neighbors(estimate, moved, 100.0, n_rings)
        assert [set(r) for r in a] == [set(r) for r in b]


def test_array_indices_that_do_not_fit_are_not_used() -> None:
    xy, array = squares(10, 10)
    wrong = array[np.random.default_rng(0).permutation(len(array))]
    assert find_lattice(xy, wrong, 100.0).source == "positions"


def test_no_lattice_takes_the_nearest_within_reach() -> None:
    xy = np.random.default_rng(0).uniform(0, 1000, (200, 2))
    lattice = find_lattice(xy, np.full((200, 2), -1), 100.0)
    assert lattice.kind == "none"
    near = ring_neighbors(lattice, xy, 100.0, 1)
    assert near.shape == (200, 6)
    for i, row in enumerate(near):
        others = row[row >= 0]
        distance = np.linalg.norm(xy - xy[i], axis=1)
        assert i not in others
        assert (distance[others] <= 150).all()
        assert set(others) == set([j for j in np.argsort(distance) if j != i and distance[j] <= 150][:6])


@needs_shared
def test_real_legacy_slides_are_square_by_either_way() -> None:
    root = SHARED / "hest"
    for slide in slides_on_disk(root):
        files = find_slide(root, slide)
        spots = read_spots(files)
        pitch = files.pitch_um / files.um_per_px
        by_array = find_lattice(spots.coords, spots.array, pitch)
        by_position = find_lattice(spots.coords, np.full_like(spots.array, -1), pitch)
        assert (by_array.kind, by_array.source, by_position.kind) == ("square", "array", "square")
        a, b = (ring_neighbors(x, spots.coords, pitch, 1) for x in (by_array, by_position))
        assert [set(r) for r in a] == [set(r) for r in b]
