"""Differences between runs over splits that share training data: a corrected t-test, and the size of the effect."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from hist_cache.slide_parts import N_BANDS
from train.report.fold_result import FoldResult
from train.report.results import Results, RunResult
from train.report.significance import paired_values

INTERVAL = 0.95  # confidence of all intervals
MAX_STATISTIC = 1e4  # of a t-test, for an interval of the effect size: beyond it scipy's distribution is not exact
TRAINED_BANDS = N_BANDS - 2  # within slices: one band is tested, and one validates


@dataclass(frozen=True)
class PairedEffect:
    """What the splits that two runs share say of the difference between them; None where that takes more splits."""

    n: int
    """Splits that both runs have."""
    ratio: float
    """Size of the test set over that of the training set, mean over the splits."""
    difference: float | None
    """Mean of the first run minus the second; None without a split."""
    low: float | None = None
    """Lower end of its 95 % interval, by the corrected t-test; None for fewer than two splits, as `high` is."""
    high: float | None = None
    p: float | None = None
    """Two-sided, of the corrected t-test; None for fewer than two splits, or where the differences do not vary."""
    g: float | None = None
    """Hedges' g of pairs: the mean difference in standard deviations of the differences, corrected for few splits.
    None for fewer than three splits, or where the differences do not vary."""
    g_low: float | None = None
    """Lower end of its 95 % interval; None where `g` is, or is too large for an interval."""
    g_high: float | None = None


def corrected_effect(differences: np.ndarray, ratio: float) -> PairedEffect:
    """The corrected resampled t-test of Nadeau and Bengio (2003), with an interval and an effect size.

    The differences d of n splits are not independent, because the splits share training data. The variance of their
    mean is therefore taken as (1/n + ratio) var(d) in place of var(d) / n, with n - 1 degrees of freedom. The effect
    size is the mean of d over its standard deviation, times Hedges' factor. Its interval is that of the noncentrality
    of the corrected t, so that without the factor it would exclude 0 where `p` is below 0.05.

    Args:
        differences: `(n,)`, first run minus second on each split.
        ratio: size of the test set over that of the training set; 0 gives the ordinary paired t-test.
    """
    from scipy.stats import t

    d = np.asarray(differences, dtype=np.float64)
    n = len(d)
    if n < 2:
        return PairedEffect(n, ratio, float(d.mean()) if n else None)
    mean, std, scale = float(d.mean()), float(d.std(ddof=1)), float(np.sqrt(1 / n + ratio))
    half = float(t.ppf((1 + INTERVAL) / 2, n - 1)) * scale * std
    ends = mean - half, mean + half
    if np.ptp(d) <= 1e-12 * np.abs(d).max():
        return PairedEffect(n, ratio, mean, *ends)
    statistic = mean / (scale * std)
    p = float(2 * t.sf(abs(statistic), n - 1))
    if n < 3:
        return PairedEffect(n, ratio, mean, *ends, p)
    factor = hedges_factor(n - 1)
    around = noncentrality_interval(statistic, n - 1)
    g_ends = [None if end is None else factor * scale * end for end in around]
    return PairedEffect(n, ratio, mean, *ends, p, factor * mean / std, *g_ends)


def hedges_factor(degrees: int) -> float:
    """What makes a standardised mean unbiased where its standard deviation has 2 degrees of freedom or more."""
    from scipy.special import gammaln

    return float(np.exp(gammaln(degrees / 2) - gammaln((degrees - 1) / 2)) * np.sqrt(2 / degrees))


def noncentrality_interval(statistic: float, degrees: int) -> tuple[float | None, float | None]:
    """The 95 % interval of the noncentrality of a t distribution from one value of it; None where that is too large."""
    from scipy.special import nctdtrinc

    if abs(statistic) > MAX_STATISTIC:
        return None, None
    low, high = (float(nctdtrinc(degrees, share, statistic)) for share in ((1 + INTERVAL) / 2, (1 - INTERVAL) / 2))
    return low, high


def split_ratio(folds: Iterable[FoldResult]) -> float:
    """Size of the test set over that of the training set, mean over folds.

    Counted in slides, because splits draw slides: spots of one slide are no further independent examples. Within
    slices it is counted in bands. Validation slides belong to neither set.
    """
    ratios = [
        1 / TRAINED_BANDS if fold.setting.is_within else len(fold.split.test) / len(fold.split.train) for fold in folds
    ]
    return float(np.mean(ratios))


def compare_corrected(results: Results, run: RunResult, reference: RunResult, metric: str) -> PairedEffect:
    """Compare a run with another on the splits that both were run on, by metrics pooled over the test spots.

    Args:
        results: holds the metrics of both.
        run: the first sample.
        reference: the second sample.
        metric: such as `pcc@50`.
    """
    pairs = paired_values(results, run, reference, metric)
    folds = [fold for fold in run.folds if fold.number in pairs]
    differences = np.array([own - other for own, other in pairs.values()])
    return corrected_effect(differences, split_ratio(folds) if folds else 0.0)
