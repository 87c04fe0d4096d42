"""Means over folds, distances to what was learnt from, and what hist-predict says of leaks."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis
from scipy.stats import chi

from hist_cache.splits import Split
from train.predict.folds import TrainedFold
from train.predict.models import Spread
from train.predict.reference import Reference, fit_reference, read_reference
from train.predict.slides import seen_by


def test_mean_and_spread_over_folds_with_panels_of_their_own() -> None:
    outputs = np.random.default_rng(0).normal(size=(4, 6, 5)).astype(np.float32)
    outputs[0, :, 1] = outputs[:3, :, 2] = np.nan  # gene 1 is not of fold 0; gene 2 of fold 3 alone
    running = Spread.empty(6, 5)
    for of_fold in outputs:
        columns = np.flatnonzero(np.isfinite(of_fold[0]))[::-1]
        running.add(of_fold[:, columns], columns)
    mean, spread = running.mean, running.deviation()
    with warnings.catch_warnings(action="ignore"):
        np.testing.assert_allclose(mean, np.nanmean(outputs.astype(float), 0), rtol=1e-5)
        np.testing.assert_allclose(spread, np.nanstd(outputs.astype(float), 0, ddof=1), rtol=1e-4)
    assert np.isnan(spread[:, 2]).all()
    assert np.isfinite(spread[:, [0, 1, 3, 4]]).all()


def slides(rng: np.random.Generator, n: int, width: int, count: int = 2) -> list[np.ndarray]:
    mixing = np.random.default_rng(7).normal(size=(width, width))
    return [(rng.normal(size=(n, width)) @ mixing + 3).astype(np.float32) for _ in range(count)]


def test_the_distance_is_that_of_mahalanobis_where_all_components_are_kept() -> None:
    rng = np.random.default_rng(0)
    train, val = slides(rng, 2000, 12), slides(rng, 2000, 12)
    reference = fit_reference(train, val)
    assert reference.rest == 0
    joined = np.concatenate(train).astype(np.float64)
    inverse = np.linalg.inv(np.cov(joined.T, ddof=0))
    expected = [mahalanobis(x, joined.mean(0), inverse) / 12**0.5 for x in val[0][:50].astype(np.float64)]
    np.testing.assert_allclose(reference.distance(val[0][:50]), expected, rtol=1e-5)
    far = np.mean([reference.distance(v) > reference.limit for v in val])
    assert far == pytest.approx(0.01, abs=1e-3)
    assert reference.limit == pytest.approx(chi(12).ppf(0.99) / 12**0.5, rel=0.1)  # these embeddings are Gaussian


def test_with_more_features_the_rest_counts_and_1_is_usual(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    train, val = slides(rng, 900, 150), slides(rng, 100, 150)
    reference = fit_reference(train, val)
    assert reference.axes.shape == (150, 64)
    assert np.sqrt((reference.distance(np.concatenate(train)).astype(float) ** 2).mean()) == pytest.approx(1, rel=1e-6)
    elsewhere = val[0] + 300 * np.eye(150)[3]  # in one feature
    assert (reference.distance(elsewhere) > reference.limit).mean() > 0.9
    reference.write(tmp_path)
    again = read_reference(tmp_path)
    assert again is not None
    np.testing.assert_array_equal(again.distance(elsewhere), reference.distance(elsewhere))
    (tmp_path / "reference.safetensors").write_bytes(b"damaged")
    assert read_reference(tmp_path) is None


def test_a_feature_without_variance_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    train, val = slides(rng, 300, 6), slides(rng, 50, 6)
    constant = [np.concatenate([s, np.full((len(s), 1), 2, np.float32)], axis=1) for s in (*train, *val)]
    reference = fit_reference(constant[:2], constant[2:])
    np.testing.assert_allclose(reference.distance(constant[2]), fit_reference(train, val).distance(val[0]), rtol=1e-4)
    assert isinstance(reference, Reference)


def fold(name: str, train: tuple[str, ...], val: str, test: str, images: dict[str, str]) -> TrainedFold:
    split = Split(train, (val,), (test,), name)
    return TrainedFold(Path(name), SimpleNamespace(slides_of=list), [], split, images, None, None, "")  # type: ignore[arg-type]


def test_a_slide_is_recognised_by_its_name_and_by_its_image() -> None:
    images = {"A": "a" * 64, "B": "b" * 64, "C": "c" * 64, "D": "d" * 64}
    folds = [fold("fold0", ("A", "B"), "C", "D", images), fold("fold1", ("B", "C"), "D", "A", images)]
    assert seen_by("A", "", folds) == "trained on it: fold0"
    assert seen_by("renamed", "c" * 64, folds) == "validated on it: fold0; trained on it: fold1"
    assert seen_by("new", "e" * 64, folds) == ""
    assert seen_by("D", "", folds[:1]) == ""
