"""Rings against a search over all pairs of spots, by their array indices; rows after edges or slides are left out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hist_cache.cached_slide import CachedSlide
from hist_cache.errors import HistError
from tests.hist_cache.test_cache import make
from tests.hist_cache.test_lattice import hexagons, squares
from train.assembly import assemble
from train.data import SpotData
from train.rings import join_rings, slide_rings

CPU = torch.device("cpu")
FULL = {"hex": 6, "square": 8}  # spots in ring 1


def ring_between(kind: str, one: np.ndarray, other: np.ndarray) -> int:
    """In which ring around a spot another one is, from rows and columns; a hex row is shifted by half a pitch."""
    rows, columns = abs(int(one[0]) - int(other[0])), abs(int(one[1]) - int(other[1]))
    return max(rows, columns) if kind == "square" else rows + max(0, (columns - rows) // 2)


def lattice_slide(kind: str, seed: int, holes: float = 0.2, shape: tuple[int, int] = (6, 9)) -> CachedSlide:
    """A slide with holes, spots in any order, and the neighbours of ring 1 found by a search."""
    rng = np.random.default_rng(seed)
    coords, array = hexagons(shape[0], 2 * shape[1]) if kind == "hex" else squares(*shape)
    chosen = rng.permutation(np.flatnonzero(rng.random(len(coords)) >= holes))
    coords, array = coords[chosen], array[chosen]
    slide = make(n=len(chosen), seed=seed)
    slide.coords, slide.array = coords, array
    slide.attributes = {"lattice": kind, "um_per_px": 0.5, "pitch_um": 50.0}
    near = [[j for j in range(len(array)) if ring_between(kind, a, array[j]) == 1] for a in array]
    rows = [found + [-1] * (FULL[kind] - len(found)) for found in near]
    slide.neighbors = {6: np.array(rows, dtype=np.int32)}
    return slide


def found(data: SpotData, ring: int, row: int) -> set[tuple[str, int]]:
    """The spots of a ring around a row, each once, by slide and by row in the slide's file."""
    rows = [r for r in data.rings[ring - 1][row].tolist() if r != -1]
    assert len(set(rows)) == len(rows)
    return {(data.slides[int(data.slide[r])], int(data.row[r])) for r in rows}


def searched(slides: dict[str, CachedSlide], kinds: dict[str, str], data: SpotData, ring: int, row: int) -> set:  # type: ignore[type-arg]
    """The same, by comparing all pairs of spots that are in the data."""
    name, own = data.slides[int(data.slide[row])], int(data.row[row])
    array = slides[name].array
    there = {int(r) for s, r in zip(data.slide, data.row, strict=True) if data.slides[int(s)] == name}
    return {(name, other) for other in there if ring_between(kinds[name], array[own], array[other]) == ring}


@settings(max_examples=12, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["hex", "square"]), min_size=1, max_size=3),
    n_rings=st.integers(1, 3),
    seed=st.integers(0, 1000),
    drop_edges=st.booleans(),
)
def test_rings_are_those_of_a_search(kinds: list[str], n_rings: int, seed: int, drop_edges: bool) -> None:
    holes = 0.04 if drop_edges else 0.25
    slides = {f"S{i}": lattice_slide(kind, seed + i, holes) for i, kind in enumerate(kinds)}
    data = assemble(slides, 6, ["G0", "G3"], CPU, drop_edges=drop_edges, n_rings=n_rings)
    assert len(data.rings) == n_rings
    of_name = dict(zip(slides, kinds, strict=True))
    for i, ring in enumerate(data.rings):
        assert ring.dtype == torch.int64
        assert ring.shape == (len(data.slide), (i + 1) * (8 if "square" in kinds else 6))
        for row in range(len(data.slide)):
            assert found(data, i + 1, row) == searched(slides, of_name, data, i + 1, row)
    if drop_edges:
        assert len(data.slide) < sum(len(s) for s in slides.values())


@pytest.mark.parametrize("drop_edges", [False, True])
@pytest.mark.parametrize("chosen", [("A", "C"), ("C", "A"), ("B",)])
def test_the_rings_of_some_slides_are_theirs(chosen: tuple[str, ...], drop_edges: bool) -> None:
    kinds = {"A": "hex", "B": "square", "C": "hex"}
    slides = {name: lattice_slide(kind, i, 0.03) for i, (name, kind) in enumerate(kinds.items())}
    everything = assemble(slides, 6, ["G0", "G3"], CPU, drop_edges=drop_edges, n_rings=2)
    part = everything.only(chosen)
    alone = assemble({s: slides[s] for s in slides if s in chosen}, 6, ["G0", "G3"], CPU, "log2", drop_edges, n_rings=2)
    for name in ("spot", "niche", "expression", "niche_expression", "row", "complete", "total"):
        assert torch.equal(getattr(part, name), getattr(alone, name)), name
    for row in range(len(alone.slide)):
        assert part.slides[int(part.slide[row])] == alone.slides[int(alone.slide[row])]
        for ring in (1, 2):
            assert found(part, ring, row) == found(alone, ring, row) == searched(slides, kinds, alone, ring, row)
    assert sum(len(found(part, 1, row)) for row in range(len(part.slide))) > 40


def test_a_slide_whose_spots_are_all_dropped_has_no_rows() -> None:
    slides = {"A": lattice_slide("hex", 0, 0.0), "B": lattice_slide("hex", 1, 0.0, (2, 3))}
    data = assemble(slides, 6, ["G0"], CPU, drop_edges=True, n_rings=2)
    assert set(data.slide.tolist()) == {0}
    assert all(len(ring) == len(data.slide) > 0 for ring in data.rings)


def test_without_a_lattice_the_first_ring_is_the_nearest_spots() -> None:
    rng = np.random.default_rng(3)
    slide = make(n=60, seed=3)
    slide.coords, slide.array = rng.uniform(0, 600, (60, 2)), np.full((60, 2), -1, dtype=np.int32)
    slide.attributes = {"um_per_px": 0.5, "pitch_um": 50.0}
    (ring,) = slide_rings(slide, 1, np.arange(60), first=7)
    assert ring.shape == (60, 6)
    for i in range(60):
        distance = np.hypot(*(slide.coords - slide.coords[i]).T)
        nearest = [j for j in np.argsort(distance) if j != i and distance[j] <= 150][:6]
        assert sorted(ring[i][ring[i] >= 0] - 7) == sorted(nearest)


def test_no_rings_are_asked_for() -> None:
    slide = lattice_slide("hex", 0)
    del slide.attributes["pitch_um"]
    assert assemble({"A": slide}, 6, ["G0"], CPU).rings == ()
    with pytest.raises(HistError, match="does not state its pitch_um"):
        assemble({"A": slide}, 6, ["G0"], CPU, n_rings=1)


def test_narrow_rings_are_filled_up() -> None:
    joined = join_rings([np.array([[1, 2]]), np.array([[3, 4, 5], [6, -1, 7]])])
    assert joined.tolist() == [[1, 2, -1], [3, 4, 5], [6, -1, 7]]
