"""Areas under ROC curves, their intervals over patients, and their p-values."""

from __future__ import annotations

import numpy as np


def auroc(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Area under the ROC curve: how often a positive has a higher score than a negative; a tie counts a half.

    Args:
        scores: (..., n).
        positive: (n,) bool, of both kinds.

    Returns:
        An area for each row of scores.
    """
    from scipy.stats import rankdata

    n_positive = int(positive.sum())
    ranks = rankdata(scores, axis=-1)[..., positive].sum(-1)
    return np.asarray((ranks - n_positive * (n_positive + 1) / 2) / (n_positive * (len(positive) - n_positive)))


def class_aurocs(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """AUROC of each class against the others: (..., n, classes) -> (..., classes)."""
    n_classes = probabilities.shape[-1]
    return np.stack([auroc(probabilities[..., c], labels == c) for c in range(n_classes)], axis=-1)


def weighted_auroc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC where each score counts several times, for many weights at once.

    Args:
        scores: (n,).
        positive: (n,) bool.
        weights: (D, n) how often each score counts.

    Returns:
        (D,) areas; NaN where positives or negatives have no weight.
    """
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))  # of equal scores
    sorted_weights = weights[:, order].astype(np.float64)
    is_positive = positive[order]
    high = np.add.reduceat(sorted_weights * is_positive, starts, axis=1)
    low = np.add.reduceat(sorted_weights * ~is_positive, starts, axis=1)
    wins = (high * (np.cumsum(low, axis=1) - low / 2)).sum(1)
    pairs = high.sum(1) * low.sum(1)
    return np.divide(wins, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def patient_draws(patients: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """How often each slide counts when patients are drawn with replacement, as many as there are: (draws, n)."""
    n = int(patients.max()) + 1
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)
    return counts[:, patients]


def drawn_aurocs(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUROC of each class in each draw, mean over repeats.

    Args:
        probabilities: (repeats, n, classes).
        labels: (n,).
        weights: (draws, n), from `patient_draws`.

    Returns:
        (draws, classes); NaN where a draw has one kind of slide alone.
    """
    areas = [
        [weighted_auroc(of_repeat[:, c], labels == c, weights) for c in range(probabilities.shape[-1])]
        for of_repeat in probabilities
    ]
    return np.asarray(np.mean(areas, axis=0).T)


def interval_95(drawn: np.ndarray) -> np.ndarray:
    """The percentile interval of draws, (draws, ...) -> (2, ...): lower and upper end; NaN does not count."""
    return np.asarray(np.nanquantile(drawn, [0.025, 0.975], axis=0))


def p_of_control(observed: float, permuted: np.ndarray) -> float:
    """Share of permutations that do as well as the real labels, which count as one of them, so that it is never 0."""
    return float((1 + (permuted >= observed).sum()) / (1 + len(permuted)))
