"""What a model learns, against loops in float64 and scikit-learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from tests.train.recipes.slides import GENES, TRAIN, make_data
from train.models.ridge import LinearMap
from train.recipes.targets import (
    centered,
    centered_targets,
    mean_level,
    raw_targets,
    ridge_level,
    slide_means,
    what_ridge_leaves,
)


def loop_means(values: np.ndarray, slide: np.ndarray, n_slides: int) -> np.ndarray:
    out = np.zeros((n_slides, values.shape[1]))
    for i in range(n_slides):
        own = [row for row, s in zip(values.tolist(), slide.tolist(), strict=True) if s == i]
        for gene in range(values.shape[1] if own else 0):
            out[i, gene] = sum(row[gene] for row in own) / len(own)
    return out


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), n_slides=st.integers(1, 5), n=st.integers(1, 30))
def test_the_means_of_slides_are_those_of_a_loop(seed: int, n_slides: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    values, slide = rng.normal(100, 1, (n, 3)).astype(np.float32), rng.integers(0, n_slides, n)
    found = slide_means(torch.from_numpy(values), torch.from_numpy(slide), n_slides)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), loop_means(values, slide, n_slides), rtol=1e-12)


def test_centered_targets_are_those_of_a_loop() -> None:
    data = make_data()
    level = torch.randn(3, GENES, dtype=torch.float64)
    targets = centered_targets(data, level)
    slide = data.slide.numpy()
    for found, values in (
        (targets.expression, data.expression),
        (targets.target, data.expression),
        (targets.niche_expression, data.niche_expression),
    ):
        y = values.double().numpy()
        np.testing.assert_allclose(found.numpy(), y - loop_means(y, slide, 3)[slide], rtol=1e-5, atol=1e-6)
        assert found.dtype == torch.float32
    assert torch.equal(targets.offset, level[data.slide].float())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([0.01, 1.0, 50.0]))
def test_centered_targets_are_the_same_whatever_a_slides_offset(seed: int, scale: float) -> None:
    data = make_data(sizes=(9, 6, 3), n_rings=0)
    g = torch.Generator().manual_seed(seed)
    shift = (scale * torch.randn(3, GENES, generator=g))[data.slide]
    moved = replace(data, expression=data.expression + shift, niche_expression=data.niche_expression - 2 * shift)
    level = torch.zeros(3, GENES, dtype=torch.float64)
    one, other = centered_targets(data, level), centered_targets(moved, level)
    for name in ("expression", "niche_expression", "target", "offset"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=0, atol=scale * 1e-5 + 1e-5)


def test_the_mean_level_is_that_of_the_train_spots() -> None:
    data = make_data()
    expected = np.mean([row for row in data.expression[TRAIN].double().numpy()], axis=0)
    np.testing.assert_allclose(mean_level(data, TRAIN).numpy(), np.tile(expected, (3, 1)), rtol=1e-12)


def test_the_level_of_ridge_is_its_prediction_of_a_slides_mean_embeddings() -> None:
    data = make_data()
    x = torch.cat([data.spot, data.niche], dim=1).double().numpy()
    ridge = Ridge(3.0).fit(x[TRAIN.numpy()], data.expression[TRAIN].double().numpy())
    fitted = LinearMap(torch.from_numpy(ridge.coef_.T.copy()), torch.from_numpy(ridge.intercept_))
    found = ridge_level(data, fitted)
    means = loop_means(x, data.slide.numpy(), 3)
    np.testing.assert_allclose(found.numpy(), ridge.predict(means), rtol=1e-10)
    of_spots = ridge.predict(x)  # it is linear: the same as the mean of its predictions
    np.testing.assert_allclose(found.numpy(), loop_means(of_spots, data.slide.numpy(), 3), rtol=1e-10)


@pytest.mark.parametrize("kind", ["raw", "centered"])
def test_with_its_offset_a_perfect_output_is_the_expression_up_to_its_level(kind: str) -> None:
    data = make_data()
    means = slide_means(data.expression, data.slide, 3)
    targets = raw_targets(data) if kind == "raw" else centered_targets(data, means)
    torch.testing.assert_close(targets.target + targets.offset, data.expression)
    ridge = torch.randn(len(data.slide), GENES)
    left = what_ridge_leaves(targets, ridge)
    torch.testing.assert_close(left.target, targets.target - ridge)
    torch.testing.assert_close(left.target + left.offset, data.expression)
    assert left.expression is targets.expression
    assert left.niche_expression is targets.niche_expression


def test_raw_targets_are_the_expression() -> None:
    data = make_data()
    targets = raw_targets(data)
    assert targets.target is targets.expression is data.expression
    assert targets.niche_expression is data.niche_expression
    assert not targets.offset.any()
    assert not torch.allclose(centered(data, data.expression), data.expression)
