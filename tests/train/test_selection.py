"""Scores that epochs and penalties are selected by, against loops in float64 and SciPy's correlation."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr

from train.selection import SLIDE_SCORES, centered_mse, selection_error, slide_pcc


def example(seed: int, sizes: tuple[int, ...] = (9, 1, 14)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions and truth of 5 genes, and slides 0, 2 and 4 in a mixed order; slides 1 and 3 have no spots."""
    rng = np.random.default_rng(seed)
    slide = np.repeat([0, 2, 4][: len(sizes)], sizes)
    slide = rng.permutation(slide)
    truth = rng.normal(3, 2, (len(slide), 5)) + slide[:, None]
    return truth * rng.uniform(-0.5, 1, 5) + rng.normal(size=truth.shape), truth, slide


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(array) for array in arrays]


def pcc_by_scipy(predicted: np.ndarray, truth: np.ndarray, slide: np.ndarray) -> float:
    means = []
    for i in set(slide.tolist()):
        rows = np.flatnonzero(slide == i)
        of_genes = []
        for gene in range(truth.shape[1]):
            p, t = predicted[rows, gene], truth[rows, gene]
            constant = len(rows) < 2 or len(set(p.tolist())) == 1 or len(set(t.tolist())) == 1
            of_genes.append(0.0 if constant else pearsonr(p, t).statistic)
        means.append(sum(of_genes) / len(of_genes))
    return sum(means) / len(means)


@pytest.mark.parametrize("seed", range(3))
def test_centered_mse_is_that_of_a_loop(seed: int) -> None:
    predicted, truth, slide = example(seed)
    means = []
    for i in set(slide.tolist()):
        rows = np.flatnonzero(slide == i)
        squares = []
        for gene in range(truth.shape[1]):
            p = predicted[rows, gene] - sum(predicted[rows, gene]) / len(rows)
            t = truth[rows, gene] - sum(truth[rows, gene]) / len(rows)
            squares += [(a - b) ** 2 for a, b in zip(p, t, strict=True)]
        means.append(sum(squares) / len(squares))
    expected = sum(means) / len(means)
    assert centered_mse(*tensors(predicted, truth, slide)).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_slide_pcc_is_that_of_scipy(seed: int) -> None:
    predicted, truth, slide = example(seed)
    predicted[slide == 0, 1] = 0.7
    truth[slide == 4, 2] = 3.3
    truth[slide == 4, 3] = 0.0
    expected = pcc_by_scipy(predicted, truth, slide)
    assert slide_pcc(*tensors(predicted, truth, slide)).item() == pytest.approx(expected, rel=1e-10)


def test_a_gene_that_differs_by_rounding_alone_is_constant() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(50, 1))
    predicted = (5 + 3e-7 * truth).astype(np.float32)
    assert len(set(predicted[:, 0].tolist())) > 1
    assert slide_pcc(*tensors(predicted, truth.astype(np.float32), np.zeros(50, dtype=np.int64))).item() == 0
    predicted = 5 + 1e-4 * truth
    assert slide_pcc(*tensors(predicted, truth, np.zeros(50, dtype=np.int64))).item() == pytest.approx(1)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    of_truth=st.booleans(),
)
def test_a_slides_offset_changes_neither(seed: int, sizes: list[int], scale: float, of_truth: bool) -> None:
    predicted, truth, slide = example(seed, tuple(sizes))
    offset = scale * np.random.default_rng(seed + 1).normal(size=(slide.max() + 1, truth.shape[1]))[slide]
    moved = (predicted, truth + offset) if of_truth else (predicted + offset, truth)
    for score in (centered_mse, slide_pcc):
        before, after = (score(*tensors(*pair, slide)).item() for pair in ((predicted, truth), moved))
        assert after == pytest.approx(before, rel=1e-8, abs=1e-9)
    assert selection_error("mse", *tensors(*moved, slide)) != selection_error("mse", *tensors(predicted, truth, slide))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 100), sign=st.sampled_from([-1, 1]))
def test_a_slides_scale_changes_no_pcc(seed: int, scale: float, sign: int) -> None:
    predicted, truth, slide = example(seed)
    factors = sign * np.array([1, 1, scale, 1, 2 / scale])[slide][:, None]
    before, after = (slide_pcc(*tensors(p, truth, slide)).item() for p in (predicted, predicted * factors))
    assert after == pytest.approx(sign * before, rel=1e-9, abs=1e-12)


def test_slides_count_alike_whatever_their_size() -> None:
    truth = np.concatenate([np.arange(1000.0), np.arange(10.0)])[:, None]
    slide = np.repeat([0, 1], [1000, 10])
    predicted = truth * np.where(slide == 0, 1, -1)[:, None]
    assert slide_pcc(*tensors(predicted, truth, slide)).item() == pytest.approx(0)
    wrong = truth + np.where(slide == 1, np.resize([1, -1], 1010), 0)[:, None]
    assert centered_mse(*tensors(wrong, truth, slide)).item() == pytest.approx(0.5)


def test_the_error_of_each_rule() -> None:
    predicted, truth, slide = example(5)
    parts = tensors(predicted.astype(np.float32), truth.astype(np.float32), slide)
    mse = float(((parts[0].double() - parts[1].double()) ** 2).mean())
    assert selection_error("mse", *parts) == selection_error("loss", *parts) == pytest.approx(mse, rel=1e-12)
    assert selection_error("centered_mse", *parts) == centered_mse(*parts).item()
    assert selection_error("pcc", *parts) == -slide_pcc(*parts).item()
    assert set(SLIDE_SCORES) == {"centered_mse", "pcc"}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rule", ["mse", "centered_mse", "pcc"])
def test_a_prediction_that_is_not_finite_is_never_the_best(rule: str, value: float) -> None:
    predicted, truth, slide = example(6)
    predicted[3, 1] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        error = selection_error(rule, *tensors(predicted, truth, slide))  # type: ignore[arg-type]
    assert not error < math.inf
