"""Slides classified by random forests: what is found where there is something, and nothing where there is nothing."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from tests.train.report.classified_cohorts import make_cohort, planted
from train.report.auroc import class_aurocs
from train.report.classify import (
    SEED_OF_SPLIT,
    Classification,
    ClassifySettings,
    auroc_difference,
    classify_cohort,
    drawn_seed,
    fit_forest,
    out_of_fold,
    patient_folds,
    permuted_labels,
    shuffled_changes,
)

QUICK = ClassifySettings(repeats=2, trees=20, permutations=3, control_trees=5, draws=100)
FEW = ClassifySettings(trees=8)


@pytest.fixture(scope="module")
def found() -> list[Classification]:
    labels, values = planted()
    noise = np.random.default_rng(9).normal(size=values.shape)
    return classify_cohort(make_cohort(labels, np.arange(60), values, noise), QUICK)


def test_what_is_there_is_found(found: list[Classification]) -> None:
    one = found[0]
    assert one.auroc.mean() > 0.9
    assert one.probabilities.shape == (2, 60, 2)
    np.testing.assert_allclose(one.probabilities.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(one.auroc[:, 0], one.auroc[:, 1])  # two classes have one curve
    assert one.balanced_accuracy.mean() > 0.8
    assert set(np.argsort(-one.importance.mean(0))[:3]) == {0, 1, 2}
    assert 0.25 < one.permuted.mean() < 0.75


def test_methods_are_compared_slide_by_slide(found: list[Classification]) -> None:
    difference = auroc_difference(found[1], found[0], 1)
    assert difference.high < 0
    assert difference.p == pytest.approx(2 / 101)
    assert difference.mean == pytest.approx(found[1].auroc[:, 1].mean() - found[0].auroc[:, 1].mean())
    same = auroc_difference(found[0], found[0], 1)
    assert (same.mean, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_nothing_is_found_where_nothing_is() -> None:
    """Over several cohorts, as one alone may be far from 0.5 by chance; stratified folds do not push it below."""
    areas = []
    for seed in range(8):
        labels, values = planted(shift=0.0, seed=seed)
        probabilities, _ = out_of_fold(values.astype(np.float32), labels, np.arange(60), FEW, (0, seed))
        areas.append(class_aurocs(probabilities, labels)[1])
    assert 0.4 < np.mean(areas) < 0.6


def test_a_patient_is_never_in_train_and_test() -> None:
    """Patients have a signature in all their slides, and a label by chance: split by slide, it is learnt by heart."""
    rng = np.random.default_rng(2)
    patients = np.repeat(np.arange(24), 4)
    labels = rng.permutation(np.arange(24) % 2)[patients]
    values = (3 * rng.normal(size=(24, 15))[patients] + 0.1 * rng.normal(size=(96, 15))).astype(np.float32)
    areas = []
    for repeat in range(4):
        probabilities, _ = out_of_fold(values, labels, patients, FEW, (0, repeat))
        areas.append(class_aurocs(probabilities, labels)[1])
    split = StratifiedKFold(5, shuffle=True, random_state=0)
    by_slide = cross_val_predict(
        RandomForestClassifier(25, random_state=0), values, labels, cv=split, method="predict_proba"
    )
    assert class_aurocs(by_slide, labels)[1] > 0.95
    assert 0.2 < np.mean(areas) < 0.75


def test_folds_have_whole_patients_and_their_share_of_each_class() -> None:
    patients = np.arange(50)
    labels = (patients < 10).astype(int)
    all_folds = [patient_folds(labels, patients, 5, seed) for seed in range(5)]
    for folds in all_folds:
        assert sorted(np.concatenate(folds)) == list(range(50))
        assert [int(labels[test].sum()) for test in folds] == [2] * 5
    assert len({tuple(folds[0]) for folds in all_folds}) == 5
    uneven = np.repeat(np.arange(20), np.arange(20) % 3 + 1)
    for test in patient_folds((uneven % 2).astype(int), uneven, 5, 0):
        assert not set(uneven[test]) & set(np.delete(uneven, test))


def test_the_same_seed_gives_the_same_and_another_another() -> None:
    labels, values = planted(30)
    one, same, other = (
        out_of_fold(values.astype(np.float32), labels, np.arange(30), FEW, key)[0] for key in ((0, 0), (0, 0), (0, 1))
    )
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_only_train_slides_are_fitted() -> None:
    """Expression of the test slides of one fold has no influence on what other slides get."""
    labels, values = planted(30)
    values = values.astype(np.float32)
    changed = values.copy()
    changed[0] = 99
    before, after = (out_of_fold(of, labels, np.arange(30), FEW)[0] for of in (values, changed))
    folds = patient_folds(labels, np.arange(30), 5, drawn_seed(FEW.seed, SEED_OF_SPLIT, 0, 0))
    beside = next(test[test != 0] for test in folds if 0 in test)  # tested by a forest that has not seen slide 0
    assert np.array_equal(before[beside], after[beside])
    assert not np.array_equal(before, after)


def test_permuted_labels_stay_together() -> None:
    patients = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    labels = np.array([1, 1, 0, 0, 0, 0, 1, 1])
    for seed in range(10):
        permuted = permuted_labels(labels, patients, seed)
        assert (permuted[::2] == permuted[1::2]).all()
        assert permuted.sum() == 4
    assert len({tuple(permuted_labels(labels, patients, seed)) for seed in range(10)}) > 1
    mixed = permuted_labels(np.array([0, 1, 0]), np.array([0, 0, 1]), 1)  # with another number of slides
    assert set(mixed) <= {0, 1}


def test_shuffling_gene_by_gene_is_what_the_whole_forest_says() -> None:
    labels, values = planted(40, genes=8)
    values = values.astype(np.float32)
    forest = fit_forest(values[:30], labels[:30], 12, seed=4)
    changes = shuffled_changes(forest, values[30:], seed=5)
    order = np.random.default_rng(5).permutation(10)
    for gene in range(8):
        other = values[30:].copy()
        other[:, gene] = other[order, gene]
        expected = forest.predict_proba(other) - forest.predict_proba(values[30:])
        np.testing.assert_allclose(changes[gene], expected, atol=1e-12)


def test_three_classes() -> None:
    labels, values = planted(45)
    labels = np.arange(45) % 3
    values[:, 4] += 4 * labels
    (one,) = classify_cohort(make_cohort(labels, np.arange(45), values), QUICK)
    assert one.auroc.shape == (2, 3)
    assert (one.auroc[:, [0, 2]] > 0.9).all()
    assert one.drawn.shape == (100, 3)
