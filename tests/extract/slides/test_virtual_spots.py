from typing import Literal

import numpy as np
import pytest
from scipy.spatial import cKDTree

from extract.slides.tissue import TissueMask
from extract.slides.virtual_spots import disc_share, place_spots
from hist_cache.errors import InputError
from hist_cache.lattice import find_lattice, ring_neighbors


def disc_mask(width: int = 6000, height: int = 5000, um_per_px: float = 0.5, radius: float = 2000) -> TissueMask:
    y, x = (np.mgrid[: height // 20, : width // 20] + 0.5) * 20
    return TissueMask(np.hypot(x - width / 2, y - height / 2) < radius, width, height, um_per_px)


@pytest.mark.parametrize("lattice", ["hex", "square"])
def test_the_lattice_is_found_from_the_array_and_neighbours_are_the_nearest(lattice: Literal["hex", "square"]) -> None:
    spots = place_spots(disc_mask(), 100, 55, lattice)
    again = place_spots(disc_mask(), 100, 55, lattice)
    assert spots.names == again.names
    np.testing.assert_array_equal(spots.coords, again.coords)
    assert len(set(spots.names)) == len(spots) == len(spots.coords) == len(spots.array)
    assert spots.array.dtype == np.int32
    assert spots.coords.dtype == np.float64
    pitch = 200.0
    found = find_lattice(spots.coords, spots.array, pitch)
    assert (found.kind, found.source) == (lattice, "array")
    neighbors = ring_neighbors(found, spots.coords, pitch, 2)
    # On both lattices two rings are all spots within a distance; corners of the square one are at 2.83 pitches.
    for own, row in zip(spots.coords, neighbors, strict=True):
        away = np.abs(spots.coords - own) / pitch
        distance = away.max(1) if lattice == "square" else np.hypot(*away.T)
        expected = np.flatnonzero((distance < 2.1) & (distance > 0.1))
        assert sorted(row[row >= 0].tolist()) == expected.tolist()


def test_hexagonal_spots_are_those_of_visium() -> None:
    spots = place_spots(disc_mask(), 100, 55, "hex")
    assert ((spots.array.sum(1) % 2) == 0).all()
    gaps = cKDTree(spots.coords).query(spots.coords, k=2)[0][:, 1]
    np.testing.assert_allclose(gaps, 200)
    np.testing.assert_allclose(spots.coords[:, 0], spots.array[:, 1] * 100 + 100)
    np.testing.assert_allclose(spots.coords[:, 1], spots.array[:, 0] * 200 * np.sqrt(0.75) + 100)


def test_spots_cover_the_tissue_and_are_half_on_it() -> None:
    spots = place_spots(disc_mask(), 100, 55, "hex")
    distance = np.hypot(*(spots.coords - [3000, 2500]).T)
    assert distance.max() < 2000 + 20
    assert len(spots) * 200 * 200 * np.sqrt(0.75) == pytest.approx(np.pi * 2000**2, rel=0.03)
    assert len(place_spots(disc_mask(radius=0), 100, 55, "hex")) == 0


def test_all_of_a_slide_of_tissue_is_covered() -> None:
    mask = TissueMask(np.ones((50, 60), dtype=bool), 6000, 5000, 0.5)
    for lattice, area in (("hex", np.sqrt(0.75)), ("square", 1.0)):
        spots = place_spots(mask, 100, 55, lattice)  # type: ignore[arg-type]
        assert ((spots.coords > 0) & (spots.coords < [6000, 5000])).all()
        assert len(spots) * 200 * 200 * area == pytest.approx(6000 * 5000, rel=0.05)


def test_the_share_of_a_disc_is_that_of_its_area() -> None:
    mask = TissueMask(np.arange(1000)[None] >= np.full((1000, 1), 500), 1000, 1000, 1.0)
    centers = np.array([[500.0, 500], [525, 500], [550, 500], [450, 500], [470, 500], [1000, 500], [2000, 500]])
    inside = np.clip((centers[:, 0] - 500) / 50, -1, 1)
    expected = 1 - (np.arccos(inside) - inside * np.sqrt(1 - inside**2)) / np.pi
    expected[-2:] = 0.5, 0  # half outside of the slide, all outside
    np.testing.assert_allclose(disc_share(mask, centers, 100.0), expected, atol=0.03)


def test_a_pitch_that_gives_too_many_spots() -> None:
    with pytest.raises(InputError, match=r"a pitch of 1 um gives .* spots a slide; give a larger --pitch"):
        place_spots(disc_mask(), 1, 0.5, "square")
