"""What a model reads, against scikit-learn's scaler and means over rings in loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

from tests.train.recipes.slides import TRAIN, WIDTH, make_data
from train.data import SpotData, SpotNiche
from train.recipes.config import RecipeConfig
from train.recipes.inputs import Scaling, per_slide, recipe_inputs, ring_mean, train_scaling


def loop_ring_mean(values: np.ndarray, ring: np.ndarray) -> np.ndarray:
    out = np.zeros(values.shape)
    for i, row in enumerate(ring):
        near = [int(r) for r in row if r >= 0]
        for column in range(values.shape[1]):
            if near:
                out[i, column] = sum(float(values[r, column]) for r in near) / len(near)
    return out


def expected(config: RecipeConfig, data: SpotData) -> SpotNiche:
    """The inputs in float64."""
    levels = []
    for cached in (data.spot, data.niche):
        x = cached.double().numpy()
        if config.standardize == "train":
            x = StandardScaler().fit(x[TRAIN.numpy()]).transform(x)
        elif config.standardize == "slide":
            of_slides = [x[(data.slide == i).numpy()] for i in range(len(data.slides))]
            x = np.concatenate([StandardScaler().fit_transform(own) for own in of_slides if len(own)])
        rings = [loop_ring_mean(x, ring.numpy()) for ring in data.rings[: config.neighbor_rings]]
        levels.append(torch.from_numpy(np.concatenate([x, *rings], axis=1)))
    return SpotNiche(*levels)


@pytest.mark.parametrize("rings", [0, 1, 2])
@pytest.mark.parametrize("standardize", ["none", "slide", "train"])
def test_inputs_are_those_of_loops(standardize: str, rings: int) -> None:
    data = make_data()
    config = RecipeConfig(standardize=standardize, neighbor_rings=rings)  # type: ignore[arg-type]
    scaling = train_scaling(data, TRAIN) if standardize == "train" else None
    found = recipe_inputs(config, data, scaling)
    for ours, theirs in zip(found, expected(config, data), strict=True):
        assert ours.dtype == torch.float16
        assert ours.shape == (len(data.slide), config.embedding_width(WIDTH))
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-3)
    if config == RecipeConfig():
        assert torch.equal(found.spot, data.spot)
        assert torch.equal(found.niche, data.niche)


def test_a_spot_without_a_ring_reads_zeros() -> None:
    data = make_data()
    alone = (data.rings[0] < 0).all(dim=1)
    assert 3 < alone.sum() < len(alone) - 3
    ring = recipe_inputs(RecipeConfig(standardize="slide", neighbor_rings=1), data, None).spot[:, WIDTH:]
    assert torch.equal((ring == 0).all(dim=1), alone)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 9), n=st.integers(1, 20))
def test_the_mean_over_a_ring_is_that_of_a_loop(seed: int, k: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    values, ring = rng.normal(size=(n, 3)), rng.integers(-1, n, (n, k))
    found = ring_mean(torch.from_numpy(values), torch.from_numpy(ring))
    np.testing.assert_allclose(found.numpy(), loop_ring_mean(values, ring), rtol=1e-12, atol=1e-14)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    factor=st.floats(0.05, 20),
    shift=st.floats(-5, 5),
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=4),
)
def test_standardised_per_slide_nothing_is_left_of_an_affine_change(
    seed: int, factor: float, shift: float, sizes: list[int]
) -> None:
    """Each slide gets a factor and a shift of its own for each feature, as another scanner may give it."""
    rng = np.random.default_rng(seed)
    slide = torch.from_numpy(rng.permutation(np.repeat(np.arange(len(sizes)), sizes)))
    values = rng.normal(size=(len(slide), 4)).round(2)
    values[:, 2] = 1.5
    factors = factor * rng.uniform(0.2, 1, (len(sizes), 4))[slide]
    shifts = shift * rng.normal(size=(len(sizes), 4))[slide]
    one, other = (
        per_slide(torch.from_numpy(v).float(), slide, len(sizes)) for v in (values, factors * values + shifts)
    )
    torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3)
    for i, size in enumerate(sizes):
        own = one[slide == i].double()
        if size > 1:
            np.testing.assert_allclose(own.mean(0), np.zeros(4), atol=1e-5)
            spread = own.std(dim=0, correction=0).numpy()
            constant = np.ptp(values[(slide == i).numpy()], axis=0) == 0
            np.testing.assert_allclose(spread, np.where(constant, 0, 1), atol=1e-4)
        if size == 1:
            assert not own.any()


def test_a_slide_is_standardised_by_itself_alone() -> None:
    data = make_data()
    values = data.spot.float()
    other = torch.where((data.slide == 1).unsqueeze(1), values, values * 3 + torch.randn(values.shape))
    before, after = (per_slide(v, data.slide, 3) for v in (values, other))
    assert torch.equal(before[data.slide == 1], after[data.slide == 1])
    assert not torch.equal(before[data.slide == 0], after[data.slide == 0])


def test_the_scaling_of_the_train_spots_reads_no_others() -> None:
    data = make_data()
    other = replace(data, spot=data.spot.clone(), niche=data.niche.clone())
    for level in (other.spot, other.niche):
        level[len(TRAIN) :] = float("nan")
    for one, two in zip(train_scaling(data, TRAIN), train_scaling(other, TRAIN), strict=True):
        assert torch.equal(one, two)


def test_a_constant_feature_is_centred_and_not_divided() -> None:
    values = torch.tensor([[0.1, 1.0], [0.1, 3.0], [0.1, 5.0]])
    scaling = Scaling.over(values.half())
    assert scaling.std[0] == 1
    assert scaling.of(values.half().float())[:, 0].tolist() == [0, 0, 0]
    np.testing.assert_allclose(scaling.of(values)[:, 1], [-(1.5**0.5), 0, 1.5**0.5], rtol=1e-6)


def test_a_feature_that_hardly_moves_on_the_train_slides_stays_finite_on_others() -> None:
    data = make_data()
    spot = data.spot.clone()
    spot[:, 0] = 0
    spot[: len(TRAIN) : 2, 0] = 2e-5
    spot[len(TRAIN) :: 2, 0], spot[len(TRAIN) + 1 :: 2, 0] = 3.0, -3.0
    data = replace(data, spot=spot)
    found = recipe_inputs(RecipeConfig(standardize="train", neighbor_rings=1), data, train_scaling(data, TRAIN))
    assert torch.isfinite(found.spot).all()
