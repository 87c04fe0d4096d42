"""Slides classified by their expression with a random forest, tested on patients that it has not seen.

Everything is fitted inside of the train folds. What is tested are the out-of-fold probabilities: of every slide, from
the forest of the fold in which its patient was left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hist_cache.console import progress
from train.report.auroc import class_aurocs, drawn_aurocs, interval_95, patient_draws
from train.report.classify_data import Cohort

if TYPE_CHECKING:
    from sklearn.ensemble import RandomForestClassifier

# What a random number is for: the second part of its seed.
SEED_OF_SPLIT, SEED_OF_FOREST, SEED_OF_SHUFFLE, SEED_OF_LABELS, SEED_OF_DRAWS = range(5)
REAL_LABELS = 0  # the third part of the seed where labels are not permuted; permutation i has i + 1
PROBABILITY_DIGITS = 9  # of a probability: what comes after is rounding, which would break ties


@dataclass(frozen=True)
class ClassifySettings:
    """How slides are classified.

    Attributes:
        folds: Parts that patients are split into.
        repeats: How often they are split anew.
        trees: Of each forest.
        permutations: Permutations of the labels, of which each is split once.
        control_trees: Of each forest with permuted labels.
        draws: Draws of patients for the intervals.
        seed: The first part of every seed.
    """

    folds: int = 5
    repeats: int = 5
    trees: int = 500  # 100 have an AUROC that is 0.04 lower where 10 of 200 genes tell 60 slides apart
    permutations: int = 20
    control_trees: int = 100  # with permuted labels the AUROC is 0.5, however many there are
    draws: int = 2000
    seed: int = 42


@dataclass(frozen=True)
class Classification:
    """How well the expression of one method tells the classes apart.

    Attributes:
        name: Of the method.
        probabilities: (repeats, slides, classes) out-of-fold.
        auroc: (repeats, classes) of each class against the others.
        drawn: (draws, classes) AUROC of drawn patients, mean over repeats; NaN where a draw lacks a class.
        average_precision: (repeats, classes).
        balanced_accuracy: (repeats,) of the most probable class.
        permuted: (permutations, classes) AUROC with permuted labels.
        importance: (repeats, genes) decrease of the AUROC, mean over classes, when a gene is shuffled in test slides.
    """

    name: str
    probabilities: np.ndarray
    auroc: np.ndarray
    drawn: np.ndarray
    average_precision: np.ndarray
    balanced_accuracy: np.ndarray
    permuted: np.ndarray
    importance: np.ndarray


@dataclass(frozen=True)
class AurocDifference:
    """Of two methods on the same slides and folds, for one class.

    Attributes:
        mean: First minus second.
        low: Lower end of the 95 % interval.
        high: Upper end.
        p: Two-sided, from the draws.
    """

    mean: float
    low: float
    high: float
    p: float


def drawn_seed(*key: int) -> int:
    """A seed for what the numbers stand for, below 2^32; different for every key."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def patient_folds(labels: np.ndarray, patients: np.ndarray, folds: int, seed: int) -> list[np.ndarray]:
    """Split slides so that all slides of a patient are in one fold and every fold has its share of each class.

    The patients are put in random order before, and are not shuffled by scikit-learn: before version 1.8 its
    `StratifiedGroupKFold` mixes the patients up when it shuffles, so that classes have other shares in train and test.

    Args:
        labels: (n,) class of each slide.
        patients: (n,) index of each slide's patient.
        folds: how many.
        seed: of the order.

    Returns:
        The test slides of each fold as indices; all others are its train slides.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    order = np.random.default_rng(seed).permutation(patients.max() + 1)
    splits = StratifiedGroupKFold(folds).split(np.zeros((len(labels), 1)), labels, order[patients])
    return [test for _, test in splits if len(test)]


def fit_forest(values: np.ndarray, labels: np.ndarray, trees: int, seed: int) -> RandomForestClassifier:
    """Fit a random forest whose classes weigh the same in sum.

    Args:
        values: (n, G) float32 expression of the train slides.
        labels: (n,) their classes.
        trees: how many.
        seed: of the forest.
    """
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(trees, class_weight="balanced", random_state=seed).fit(values, labels)


def shuffled_changes(forest: RandomForestClassifier, values: np.ndarray, seed: int) -> np.ndarray:
    """How probabilities of slides change when one gene after the other is shuffled among them.

    Shuffling a gene changes only trees that split by it, so only these are asked again.

    Args:
        forest: a fitted one.
        values: (n, G) float32 expression of slides that it has not seen.
        seed: of the new order of the slides, which all genes share.

    Returns:
        (G, n, classes) what is added to the probabilities.
    """
    n, n_genes = values.shape
    mixed = values[np.random.default_rng(seed).permutation(n)]
    changes = np.zeros((n_genes, n, len(forest.classes_)))
    genes_of_trees = [np.unique(tree.tree_.feature[tree.tree_.feature >= 0]) for tree in forest.estimators_]
    copies = np.tile(values, (1 + max(map(len, genes_of_trees)), 1, 1))  # as they are, then with a gene shuffled each
    for tree, genes in zip(forest.estimators_, genes_of_trees, strict=True):
        for i, gene in enumerate(genes):
            copies[1 + i, :, gene] = mixed[:, gene]
        answers = tree.predict_proba(copies[: 1 + len(genes)].reshape(-1, n_genes), check_input=False)
        answers = answers.reshape(1 + len(genes), n, -1)
        changes[genes] += answers[1:] - answers[0]
        for i, gene in enumerate(genes):
            copies[1 + i, :, gene] = values[:, gene]
    return changes / len(forest.estimators_)


def out_of_fold(
    values: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    settings: ClassifySettings,
    key: tuple[int, int] = (REAL_LABELS, 0),
    with_shuffled: bool = False,
    on_forest: Callable[[int], Any] = lambda trees: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Split patients once, and predict the slides of each fold by a forest of the others.

    Args:
        values: (n, G) float32 expression.
        labels: (n,) classes, all of 0, 1, ...
        patients: (n,) index of each slide's patient.
        settings: folds, trees and seed.
        key: permutation of the labels and repeat, which are parts of the seeds.
        with_shuffled: whether each gene is shuffled too.
        on_forest: is called after each fold with the number of its forest's trees.

    Returns:
        (n, classes) probabilities; and (G, n, classes) those with one gene shuffled within each test fold, of no
        gene unless asked for.
    """
    n_classes = int(labels.max()) + 1
    probabilities = np.zeros((len(labels), n_classes))
    shuffled = np.zeros((values.shape[1] if with_shuffled else 0, len(labels), n_classes))
    seed, trees = settings.seed, settings.trees if key[0] == REAL_LABELS else settings.control_trees
    for fold, test in enumerate(patient_folds(labels, patients, settings.folds, drawn_seed(seed, SEED_OF_SPLIT, *key))):
        train = np.setdiff1d(np.arange(len(labels)), test)
        forest = fit_forest(values[train], labels[train], trees, drawn_seed(seed, SEED_OF_FOREST, *key, fold))
        seen = forest.classes_  # all, unless a patient alone has every slide of a class
        probabilities[np.ix_(test, seen)] = forest.predict_proba(values[test])
        if with_shuffled:
            changes = shuffled_changes(forest, values[test], drawn_seed(seed, SEED_OF_SHUFFLE, *key, fold))
            shuffled[:, test[:, None], seen] = probabilities[np.ix_(test, seen)] + changes
        on_forest(trees)
    return probabilities.round(PROBABILITY_DIGITS), shuffled.round(PROBABILITY_DIGITS)


def permuted_labels(labels: np.ndarray, patients: np.ndarray, seed: int) -> np.ndarray:
    """Give each patient the labels of another, drawn without replacement; a patient's slides stay alike.

    A patient with more slides than the other repeats the other's labels, one with fewer takes the first of them.
    """
    rows = [np.flatnonzero(patients == patient) for patient in range(int(patients.max()) + 1)]
    givers = np.random.default_rng(seed).permutation(len(rows))
    permuted = np.empty_like(labels)
    for own, giver in zip(rows, givers, strict=True):
        permuted[own] = np.resize(labels[rows[giver]], len(own))
    return permuted


def auroc_difference(one: Classification, other: Classification, index: int) -> AurocDifference:
    """Compare two methods on one class; both have the same draws of patients, so that the draws are paired."""
    drawn = one.drawn[:, index] - other.drawn[:, index]
    drawn = drawn[np.isfinite(drawn)]
    low, high = interval_95(drawn)
    rarer = min((drawn <= 0).sum(), (drawn >= 0).sum())
    p = min(1.0, 2 * (1 + rarer) / (1 + len(drawn)))
    return AurocDifference(float((one.auroc - other.auroc)[:, index].mean()), float(low), float(high), float(p))


def classify_method(
    name: str, cohort: Cohort, settings: ClassifySettings, on_forest: Callable[[int], Any] = lambda trees: None
) -> Classification:
    """Test the expression of one method, with everything that is reported of it.

    Args:
        name: of the method, one of the cohort's.
        cohort: the slides.
        settings: how they are classified.
        on_forest: is called after each fold with the number of its forest's trees.
    """
    from sklearn.metrics import average_precision_score

    values, labels, patients = cohort.values[name], cohort.labels, cohort.patients
    every, importance = [], []
    for repeat in range(settings.repeats):
        probabilities, shuffled = out_of_fold(
            values, labels, patients, settings, (REAL_LABELS, repeat), True, on_forest
        )
        every.append(probabilities)
        importance.append((class_aurocs(probabilities, labels) - class_aurocs(shuffled, labels)).mean(-1))
    permuted = []
    for i in range(settings.permutations):
        other = permuted_labels(labels, patients, drawn_seed(settings.seed, SEED_OF_LABELS, i + 1))
        probabilities, _ = out_of_fold(values, other, patients, settings, (i + 1, 0), False, on_forest)
        permuted.append(class_aurocs(probabilities, other))
    stacked = np.stack(every)
    weights = patient_draws(patients, settings.draws, drawn_seed(settings.seed, SEED_OF_DRAWS))
    classes = range(len(cohort.classes))
    hits = stacked.argmax(-1) == labels
    return Classification(
        name=name,
        probabilities=stacked,
        auroc=class_aurocs(stacked, labels),
        drawn=drawn_aurocs(stacked, labels, weights),
        average_precision=np.array([[average_precision_score(labels == c, p[:, c]) for c in classes] for p in stacked]),
        balanced_accuracy=np.mean([hits[:, labels == c].mean(1) for c in classes], axis=0),
        permuted=np.stack(permuted),
        importance=np.stack(importance),
    )


def classify_cohort(cohort: Cohort, settings: ClassifySettings) -> list[Classification]:
    """Test the expression of every method of a cohort, on the same folds and with the same permuted labels."""
    each = settings.repeats * settings.trees + settings.permutations * settings.control_trees
    with progress("classifying", each * settings.folds * len(cohort.values), "trees") as meter:
        return [classify_method(name, cohort, settings, meter.advance) for name in cohort.values]
