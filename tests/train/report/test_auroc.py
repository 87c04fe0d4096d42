"""Areas under ROC curves against scikit-learn and counting, their intervals, and p-values of controls."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from train.report.auroc import (
    auroc,
    class_aurocs,
    drawn_aurocs,
    interval_95,
    p_of_control,
    patient_draws,
    weighted_auroc,
)

slides = st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.integers(0, 3)), min_size=2, max_size=25)


def counted(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> float:
    """Mann and Whitney's statistic, pair by pair."""
    wins = pairs = 0.0
    for i in np.flatnonzero(positive):
        for j in np.flatnonzero(~positive):
            pairs += weights[i] * weights[j]
            wins += weights[i] * weights[j] * (1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0)
    return wins / pairs if pairs else float("nan")


@given(slides)
def test_areas_are_shares_of_pairs(drawn: list[tuple[int, bool, int]]) -> None:
    scores, positive, weights = (np.array(column) for column in zip(*drawn, strict=True))
    scores = scores / 7
    ours = weighted_auroc(scores, positive, np.stack([weights, np.ones_like(weights)]))
    ones = np.ones(len(scores))
    np.testing.assert_allclose(ours, [counted(scores, positive, weights), counted(scores, positive, ones)], atol=1e-12)
    if 0 < positive.sum() < len(positive):
        assert auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)


def test_each_class_against_the_others() -> None:
    rng = np.random.default_rng(0)
    labels, probabilities = rng.integers(0, 3, 40), rng.dirichlet(np.ones(3), (4, 40))
    areas = class_aurocs(probabilities, labels)
    assert areas.shape == (4, 3)
    for repeat in range(4):
        for c in range(3):
            expected = roc_auc_score(labels == c, probabilities[repeat, :, c])
            assert areas[repeat, c] == pytest.approx(expected, abs=1e-12)


def test_draws_take_patients_whole() -> None:
    patients = np.array([0, 0, 1, 2, 2, 2])
    weights = patient_draws(patients, 500, seed=1)
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 3] == weights[:, 5]).all()
    assert (weights[:, [0, 2, 3]].sum(1) == 3).all()
    assert abs(weights.mean() - 1) < 0.1


def test_the_interval_holds_the_true_area() -> None:
    """Patients with one or two slides, whose scores are alike: the interval must be that of patients."""
    rng, covered, rounds, true = np.random.default_rng(3), 0, 150, 0.7602  # of two normals, 1 apart
    for i in range(rounds):
        patients = np.repeat(np.arange(60), 2)
        labels = (patients % 3 == 0).astype(int)
        scores = (rng.normal(size=60) + (np.arange(60) % 3 == 0))[patients]
        probabilities = np.stack([-scores, scores], axis=1)[None]
        low, high = interval_95(drawn_aurocs(probabilities, labels, patient_draws(patients, 300, seed=i)))
        covered += bool(low[1] <= true <= high[1])
    assert 0.87 <= covered / rounds <= 0.99


def test_draws_without_a_class_do_not_count() -> None:
    patients = np.arange(4)
    weights = patient_draws(patients, 200, seed=0)
    probabilities = np.array([[[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.6, 0.4]]])
    drawn = drawn_aurocs(probabilities, np.array([0, 1, 0, 0]), weights)
    assert np.isnan(drawn).any()
    assert np.isfinite(interval_95(drawn)).all()


def test_p_counts_the_real_labels() -> None:
    assert p_of_control(0.9, np.array([0.4, 0.5, 0.6])) == 1 / 4
    assert p_of_control(0.5, np.array([0.4, 0.5, 0.6])) == 3 / 4
