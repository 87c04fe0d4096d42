"""Bands and the margin between them, against searches over all pairs of spots."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import cdist

from hist_cache.bands import TEST, TRAIN, VAL, band_numbers, band_roles, far_from_others, niche_margin
from hist_cache.lattice import find_lattice, ring_neighbors
from hist_cache.slide_parts import N_BANDS
from tests.hist_cache.test_lattice import hexagons, rotated, squares

places = arrays(np.float64, st.tuples(st.integers(1, 60), st.just(2)), elements=st.integers(-40, 40).map(float))


@given(places, st.integers(2, 6), st.randoms(use_true_random=False))
def test_bands_are_cut_from_the_order_of_the_spots(coords: np.ndarray, count: int, random: object) -> None:
    band = band_numbers(coords, count)
    extents = coords.max(0) - coords.min(0)
    along = coords[:, 0] if extents[0] >= extents[1] else coords[:, 1]
    n = len(along)
    for own, number in zip(along, band, strict=True):
        ranks = [rank for rank, other in enumerate(sorted(along)) if other == own]
        middle = (ranks[0] + ranks[-1] + 1) / 2  # of the spots at this place, in spots from the lower end
        assert number <= count * middle / n < number + 1
    order = np.argsort(along, kind="stable")
    assert (np.diff(band[order]) >= 0).all()
    assert all(len(set(band[along == place])) == 1 for place in along), "spots at one place stay together"
    shuffled = np.random.default_rng(len(along)).permutation(n)
    np.testing.assert_array_equal(band_numbers(coords[shuffled], count), band[shuffled])
    if len(set(along)) == n:
        assert np.ptp(np.bincount(band, minlength=count)) <= 1


@given(places, st.integers(0, N_BANDS - 1), st.floats(0, 30))
def test_spots_near_a_later_role_are_dropped(coords: np.ndarray, tested: int, margin: float) -> None:
    band = band_numbers(coords)
    role = band_roles(band, tested)
    kept = far_from_others(coords, role, margin)
    distance = cdist(coords, coords)
    for i, own in enumerate(role):
        later = [j for j in range(len(role)) if role[j] > own]
        assert kept[i] == all(distance[i, j] >= margin for j in later)
    assert kept[role == TEST].all()
    assert set(band[role == TEST]) <= {tested}
    assert set(band[role == VAL]) <= {(tested + 1) % N_BANDS}


@pytest.mark.parametrize("kind", ["hex", "square"])
@pytest.mark.parametrize("n_rings", [1, 2, 3])
@pytest.mark.parametrize("angle", [0.0, 0.3, np.pi / 4])
@pytest.mark.parametrize("spot_diameter", [5.0, 55.0, 100.0])
def test_no_niche_holds_or_shows_a_spot_of_a_later_role(
    kind: str, n_rings: int, angle: float, spot_diameter: float
) -> None:
    """The niche is found from the lattice, and the crop's edges are compared with points on the spots' outlines."""
    flat, array = hexagons(10, 90) if kind == "hex" else squares(10, 45)
    coords = rotated(flat, angle)
    margin = niche_margin(n_rings, 100.0, spot_diameter)
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    outline = spot_diameter / 2 * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    niches = ring_neighbors(find_lattice(coords, array, 100.0), coords, 100.0, n_rings)
    half_side = n_rings * 100.0 + spot_diameter / 2
    for tested in range(N_BANDS):
        role = band_roles(band_numbers(coords), tested)
        kept = far_from_others(coords, role, margin)
        for own in (TRAIN, VAL):
            spots = np.flatnonzero(kept & (role == own))
            assert len(spots) > 10
            later = np.flatnonzero(role > own)
            assert not np.isin(niches[spots], later).any()
            offset = coords[later][:, None] + outline
            for spot in spots[:: max(1, len(spots) // 25)]:
                assert (abs(offset - coords[spot]).max(-1) > half_side - 1e-6).all()


@pytest.mark.parametrize("n_rings", [1, 2, 3])
@pytest.mark.parametrize("spot_diameter", [1.0, 90.0])
def test_nor_does_one_of_spots_without_a_lattice(n_rings: int, spot_diameter: float) -> None:
    coords = np.random.default_rng(n_rings).uniform(0, [4000, 900], (400, 2))
    lattice = find_lattice(coords, np.full((400, 2), -1, dtype=np.int32), 100.0)
    assert lattice.kind == "none"
    niches = ring_neighbors(lattice, coords, 100.0, n_rings)
    for tested in range(N_BANDS):
        role = band_roles(band_numbers(coords), tested)
        kept = far_from_others(coords, role, niche_margin(n_rings, 100.0, spot_diameter))
        for own in (TRAIN, VAL):
            seen = niches[kept & (role == own)]
            assert (role[seen[seen >= 0]] <= own).all()


def test_the_margin_is_no_wider_than_it_must_be() -> None:
    """The corner of a crop reaches a disc on its diagonal."""
    for n_rings in (1, 2, 3):
        centre = np.full(2, niche_margin(n_rings, 100.0, 55.0) / np.sqrt(2))
        corner = np.full(2, n_rings * 100.0 + 27.5)
        assert np.hypot(*(centre - corner)) == pytest.approx(27.5)
    assert [round(niche_margin(m, 100.0, 55.0)) for m in (1, 2, 3)] == [208, 349, 491]
    assert [round(niche_margin(m, 200.0, 100.0)) for m in (1, 2, 3)] == [404, 686, 969]


def test_a_slide_without_spots_has_no_bands() -> None:
    assert len(band_numbers(np.empty((0, 2)))) == 0
