"""Parts of slides as tensors: what is in them, and that nothing is computed from spots outside of them."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.spatial.distance import cdist

from hist_cache.cached_slide import CachedSlide
from hist_cache.errors import InputError
from hist_cache.splits import Split, make_splits
from tests.hist_cache.test_cache import make as make_slide
from tests.hist_cache.test_lattice import hexagons, squares
from tests.train.models.test_every_model import NAMES, make
from tests.train.test_rings import FULL, ring_between
from train.assembly import assemble
from train.data import SpotData
from train.fit.config import FitConfig
from train.fit.loop import fit, predict
from train.models.base import Model
from train.models.components import principal_components
from train.models.coordinates import unit_coordinates
from train.models.stevs import StevsModel
from train.parts import BandCut, cut_slides
from train.recipes.config import RecipeConfig
from train.recipes.fitted import fit_recipe

CPU = torch.device("cpu")
PANEL = ["G0", "G1", "G2", "G3"]
TENSORS = ("spot", "niche", "expression", "niche_expression", "row", "complete", "total", "position")


def long_slide(kind: str, seed: int, columns: int = 26, rows: int = 6) -> CachedSlide:
    """A slide with some holes, on a lattice of 100 um pitch in px of 0.5 um, with its neighbours of ring 1."""
    rng = np.random.default_rng(seed)
    coords, array = hexagons(rows, 2 * columns) if kind == "hex" else squares(rows, columns)
    chosen = rng.permutation(np.flatnonzero(rng.random(len(coords)) >= 0.05))
    slide = make_slide(n=len(chosen), genes=5, width=6, seed=seed)
    slide.coords, slide.array = 2 * coords[chosen], array[chosen]
    slide.attributes = {"lattice": kind, "um_per_px": 0.5, "pitch_um": 100.0, "spot_um": 55.0}
    near = [[j for j, b in enumerate(slide.array) if ring_between(kind, a, b) == 1] for a in slide.array]
    slide.neighbors = {6: np.array([found + [-1] * (FULL[kind] - len(found)) for found in near], dtype=np.int32)}
    slide.counts = csr_matrix(rng.poisson(4.0, (len(chosen), 5)).astype(np.float32))
    return slide


def slides() -> dict[str, CachedSlide]:
    return {"A": long_slide("hex", 1), "B": long_slide("square", 2)}


def poisoned(every: dict[str, CachedSlide], left: dict[str, np.ndarray]) -> dict[str, CachedSlide]:
    """The slides with NaN counts in all spots but those that are left."""
    for name, slide in every.items():
        counts = slide.counts.toarray()
        counts[np.setdiff1d(np.arange(len(slide)), left[name])] = np.nan
        slide.counts = csr_matrix(counts)
    return every


def within(every: dict[str, CachedSlide], tested: int, n_rings: int = 2, drop_edges: bool = False) -> SpotData:
    return assemble(cut_slides(every, BandCut(6, tested)), 6, PANEL, CPU, drop_edges=drop_edges, n_rings=n_rings)


def split_of(tested: int) -> Split:
    return make_splits("custom", ["A", "B"], {}, "within")[tested]


@pytest.mark.parametrize("tested", range(5))
@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_a_part_is_computed_from_its_own_spots(tested: int, part: str) -> None:
    split = split_of(tested)
    parts = cut_slides(slides(), BandCut(6, tested))
    left = {parts[name].whole: parts[name].rows for name in getattr(split, part)}
    plain, blind = within(slides(), tested), within(poisoned(slides(), left), tested)
    rows = plain.rows(getattr(split, part))
    assert blind.expression.isnan().any(), "the poison is there"
    for name in TENSORS:
        assert torch.equal(getattr(plain, name)[rows], getattr(blind, name)[rows]), name
    for ring in plain.rings:
        seen = ring[rows]
        assert torch.isin(seen[seen >= 0], rows).all()
        assert torch.equal(plain.slide[seen[seen >= 0]], plain.slide[rows].repeat_interleave((seen >= 0).sum(1)))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 4), st.sampled_from(["hex", "square"]), st.integers(0, 1000), st.booleans())
def test_parts_are_those_of_a_search(tested: int, kind: str, seed: int, drop_edges: bool) -> None:
    every = {"A": long_slide(kind, seed)}
    slide = every["A"]
    data = within(every, tested, drop_edges=drop_edges)
    assert data.whole_slides == ["A"] * 3
    x, n = slide.coords[:, 0], len(slide)  # the longer axis
    band = np.array([int(5 * Fraction(int((x < own).sum() + (x <= own).sum()), 2 * n)) for own in x])
    role = np.where(band == tested, 2, np.where(band == (tested + 1) % 5, 1, 0))
    distance_um = cdist(slide.coords, slide.coords) * 0.5
    near = distance_um < np.sqrt(2) * (100 + 27.5) + 27.5  # one ring of 100 um, spots of 55 um
    kept = [not (near[i] & (role > role[i])).any() for i in range(n)]
    complete = (slide.neighbors[6] >= 0).all(1)
    for i, name in enumerate(data.slides):
        expected = np.flatnonzero(kept & (role == i) & (complete | (not drop_edges)))
        assert data.row[data.slide == i].tolist() == expected.tolist(), name
    np.testing.assert_array_equal(data.complete.numpy(), complete[data.row.numpy()])
    if drop_edges:
        return
    of_part = {name: set(data.row[data.slide == i].tolist()) for i, name in enumerate(data.slides)}
    for row, own, i in zip(data.row.tolist(), data.niche_expression, data.slide.tolist(), strict=True):
        inside = [j for j in slide.neighbors[6][row] if j in of_part[data.slides[i]]]
        mean = slide.counts[[row, *inside]].toarray().mean(0)[:4]
        np.testing.assert_allclose(own.numpy(), np.log2(1 + mean), rtol=1e-5)
    tests = [set(within(every, k).row[within(every, k).slide == 2].tolist()) for k in range(5)]
    assert sum(map(len, tests)) == len(slide) == len(set().union(*tests)), "each spot is tested once"


def trained(name: str, data: SpotData, split: Split) -> Model:
    model = make(name, data)
    train, val = data.rows(split.train), data.rows(split.val)
    model.look_around(data.surroundings)
    model.prepare(data, train, val, seed=0)
    torch.manual_seed(1)
    if model.learns:
        config = FitConfig(epochs=2, batch_size=16, lr=3e-3, patience=1000)
        fit(model, data, train, val, config, None)
    return model


@pytest.mark.parametrize("name", NAMES)
def test_no_expression_of_test_parts_reaches_a_model(name: str) -> None:
    tested, split = 2, split_of(2)
    parts = cut_slides(slides(), BandCut(6, tested))
    left = {s: np.concatenate([parts[f"{s}@{part}2"].rows for part in ("train", "val")]) for s in ("A", "B")}
    plain, blind = within(slides(), tested), within(poisoned(slides(), left), tested)
    models = [trained(name, data, split) for data in (plain, blind)]
    for (key, a), b in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    predicted = [
        predict(model, data, data.rows(split.test)) for model, data in zip(models, (plain, blind), strict=True)
    ]
    assert torch.isfinite(predicted[1]).all()
    assert torch.equal(*predicted)


RECIPES = (
    RecipeConfig(standardize="slide", neighbor_rings=2, targets="centered", level="ridge", ridge="skip", smooth=0.4),
    RecipeConfig(standardize="train", neighbor_rings=1, targets="centered", ridge="mean", smooth=0.2),
)


@pytest.mark.parametrize("config", RECIPES)
def test_no_expression_of_test_parts_reaches_a_recipe(config: RecipeConfig) -> None:
    split, parts = split_of(1), cut_slides(slides(), BandCut(6, 1))
    left = {s: np.concatenate([parts[f"{s}@{part}1"].rows for part in ("train", "val")]) for s in ("A", "B")}
    outputs = []
    for data in (within(slides(), 1), within(poisoned(slides(), left), 1)):
        train, val, test = (data.rows(part) for part in (split.train, split.val, split.test))
        recipe = fit_recipe(
            *(config, data, train, val, "mse"),
            lambda cached, rows=train: principal_components(cached, rows, 4),
            lambda seen, rows=train: principal_components(seen, rows, 4),
        )
        assert recipe.data.targets is not None
        seen = [recipe.data.spot, recipe.data.niche, recipe.data.target[train], recipe.data.target[val]]
        seen += [recipe.data.targets.offset[test], *recipe.tensors.values()]
        outputs.append([*seen, recipe.complete(torch.ones(len(test), len(PANEL)), test)])
    for plain, blind in zip(*outputs, strict=True):
        assert torch.isfinite(blind).all()
        assert torch.equal(plain, blind)


def test_coordinates_of_all_parts_have_the_frame_of_their_slide() -> None:
    every, data = slides(), within(slides(), 1)
    model = make("stevs", data)
    model.look_around(data.surroundings)
    assert isinstance(model, StevsModel)
    assert model.places is not None
    for i, slide in enumerate(every.values()):
        own = data.whole == i
        rows = data.row[own].numpy()
        assert len(set(data.slide[own].tolist())) == 3
        low, high = slide.coords[rows].min(0), slide.coords[rows].max(0)
        expected = (slide.coords[rows] - (low + high) / 2) / ((high - low).max() / 2)
        np.testing.assert_allclose(model.places[own].numpy(), expected, atol=1e-5)
    separate = unit_coordinates(data.surroundings.position, data.slide)
    assert not torch.allclose(separate, model.places, atol=0.1)


def test_whole_slides_stay_as_they_are() -> None:
    data = assemble(slides(), 6, PANEL, CPU, n_rings=1)
    assert data.whole_slides is None
    assert torch.equal(data.surroundings.whole, data.slide)


def test_some_of_the_parts_keep_their_slides() -> None:
    split, data = split_of(0), within(slides(), 0)
    some = data.only(split.train)
    rows = data.rows(split.train)
    assert torch.equal(some.whole, data.whole[rows])
    assert torch.equal(some.expression, data.expression[rows])


def test_a_slide_that_cannot_be_cut_is_named() -> None:
    every = slides() | {"SMALL": long_slide("hex", 3, columns=8)}
    with pytest.raises(InputError, match=r"SMALL: too small for --split within: of its .* none is left in .*fewer"):
        cut_slides(every, BandCut(6, 2))
    del every["A"].attributes["pitch_um"]
    with pytest.raises(InputError, match="A: its cache file does not state pitch_um"):
        cut_slides(every, BandCut(6, 0))
