"""Runs against ridge, fold by fold: by how much they are above it, how certain that is, and in how many folds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from train.report.alike import fold_pairs, same_splits
from train.report.baseline_rows import RIDGE, RIDGE_TUNED
from train.report.fold_result import FoldResult
from train.report.results import RunResult

METRIC = "pcc@200"  # that runs are compared in, where all of them have it
CONFIDENCE = 0.95
RIDGE_NAMES = {RIDGE_TUNED: "ridge on the same inputs", RIDGE: "ridge"}


@dataclass(frozen=True)
class Estimate:
    """A mean over folds, with its interval at a confidence of `CONFIDENCE`."""

    mean: float
    low: float | None
    """None for a single fold, as `high` is."""
    high: float | None


def paired_interval(differences: np.ndarray) -> Estimate:
    """The mean of differences `(n,)` of pairs, with the interval of the paired t-test."""
    from scipy.stats import t

    d = np.asarray(differences, dtype=np.float64)
    mean = float(d.mean())
    if len(d) < 2:
        return Estimate(mean, None, None)
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d)))
    return Estimate(mean, mean - half, mean + half)


@dataclass(frozen=True)
class FoldScores:
    """A run and ridge on the test spots of one fold."""

    number: int
    """Of the fold."""
    pcc: float
    ridge_pcc: float
    mse: float
    ridge_mse: float

    @property
    def ratio(self) -> float | None:
        """The run's PCC as a share of ridge's; None where that of ridge is not above 0."""
        return self.pcc / self.ridge_pcc if self.ridge_pcc > 0 else None


@dataclass(frozen=True)
class AgainstRidge:
    """A run, or the mean of several seeds of it, beside ridge on the same folds."""

    label: str
    ridge: str
    """`RIDGE_TUNED` or `RIDGE`."""
    metric: str
    """PCC@k that is compared."""
    folds: tuple[FoldScores, ...]
    runs: tuple[str, ...]
    """Labels of the runs: one, or all seeds, which are averaged in each fold."""

    @property
    def n_seeds(self) -> int:
        """How many runs are averaged in each fold."""
        return len(self.runs)

    @property
    def pcc(self) -> Estimate:
        """PCC of the run minus that of ridge."""
        return paired_interval(np.array([f.pcc - f.ridge_pcc for f in self.folds]))

    @property
    def mse(self) -> Estimate:
        """MSE of the run minus that of ridge: below 0 where the run is better."""
        return paired_interval(np.array([f.mse - f.ridge_mse for f in self.folds]))

    @property
    def n_above(self) -> int:
        """Folds in which the PCC is above that of ridge."""
        return sum(f.pcc > f.ridge_pcc for f in self.folds)

    @property
    def worst(self) -> FoldScores | None:
        """The fold with the lowest ratio; None where no fold has one."""
        known = [(f.ratio, f) for f in self.folds if f.ratio is not None]
        return min(known, key=lambda pair: pair[0])[1] if known else None

    @property
    def verdict(self) -> str:
        """`above`, `BELOW` or `no clear difference`; "" where a single fold says nothing of others."""
        estimate = self.pcc
        if estimate.low is None or estimate.high is None:
            return ""
        return "above" if estimate.low > 0 else "BELOW" if estimate.high < 0 else "no clear difference"

    @property
    def sentence(self) -> str:
        """What the comparison says, in words."""
        estimate, name, n = self.pcc, RIDGE_NAMES[self.ridge], len(self.folds)
        if estimate.low is None or estimate.high is None:
            side = "above" if estimate.mean > 0 else "below"
            return f"{self.label}: {decimal(abs(estimate.mean))} {side} {name} in a single fold, so without an interval"
        low, high, folds = decimal(estimate.low), decimal(estimate.high), f"{self.n_above} of {n} folds"
        if self.verdict == "above":
            return f"{self.label}: above {name} by {decimal(estimate.mean)} [{low}, {high}], in {folds}"
        if self.verdict == "BELOW":
            by = f"{decimal(-estimate.mean)} [{decimal(-estimate.high)}, {decimal(-estimate.low)}]"
            return f"{self.label}: BELOW {name} by {by}, above it in {folds}"
        by = f"{decimal(estimate.mean)} [{low}, {high}]"
        return f"{self.label}: no clear difference to {name}: {by}, above it in {folds}"


def decimal(value: float) -> str:
    """A number with three decimals and a minus that is as wide as a plus."""
    text = f"{value:.3f}".replace("-", "−")
    return "0.000" if text == "−0.000" else text


def against_ridge(runs: Sequence[RunResult]) -> list[AgainstRidge]:
    """Every run that is not ridge itself, and the mean over seeds of runs that differ in nothing else, against ridge.

    Each is compared with ridge on the same inputs and targets where all of its folds have that, and with ridge on
    principal components of the cached embeddings.

    Args:
        runs: that predict the same dataset.

    Returns:
        The comparisons in the order of the runs, the mean over seeds after the last of them; [] where the folds have
        no ridge, or no PCC.
    """
    runs = [run for run in runs if run.model != RIDGE and all(RIDGE in f.metrics["controls"] for f in run.folds)]
    metric = common_metric([fold for run in runs for fold in run.folds])
    if metric is None:
        return []
    groups = {id(group[-1]): group for group in averaged_groups(runs)}
    found = []
    for run in runs:
        found += _compared([run], metric, run.label)
        if group := groups.get(id(run)):
            found += _compared(group, metric, pooled_label(group))
    return found


def common_metric(folds: Sequence[FoldResult]) -> str | None:
    """`METRIC` where all folds have it, of the run and of ridge, else the widest PCC@k that they have; None without."""
    if not folds:
        return None
    scores = [values for fold in folds for values in (fold.metrics["pooled"], fold.metrics["controls"][RIDGE])]
    shared = [name for name in scores[0] if name.startswith("pcc@") and all(name in values for values in scores)]
    if METRIC in shared or not shared:
        return METRIC if shared else None
    return max(shared, key=lambda name: int(name.removeprefix("pcc@")))


def seed_groups(runs: Sequence[RunResult]) -> list[list[RunResult]]:
    """Runs under several seeds whose settings are equal in all else, each seed once."""
    groups: dict[str, dict[int, RunResult]] = {}
    for run in runs:
        groups.setdefault(_without_seed(run), {}).setdefault(run.setting.fit.seed, run)
    return [list(group.values()) for group in groups.values() if len(group) > 1]


def averaged_groups(runs: Sequence[RunResult]) -> list[list[RunResult]]:
    """Those of `seed_groups` that are on the same splits: runs of which means over seeds can be taken.

    A setting has several where its seeds were trained on splits that several seeds drew.
    """
    settings: dict[str, list[list[RunResult]]] = {}
    for run in runs:
        groups = settings.setdefault(_without_seed(run), [])
        group = next((group for group in groups if same_splits(group[0], run)), None)
        if group is None:
            groups.append([run])
        elif all(other.setting.fit.seed != run.setting.fit.seed for other in group):
            group.append(run)
    return [group for groups in settings.values() for group in groups if len(group) > 1]


def _without_seed(run: RunResult) -> str:
    """All that a run is named by, without its seed, as a key."""
    setting = replace(run.setting, fit=replace(run.setting.fit, seed=0), split_seed=None)
    return json.dumps(setting.as_dict(), sort_keys=True)


def shared_folds(group: Sequence[RunResult]) -> list[list[FoldResult]]:
    """The folds that all runs have: the same fold of every run, in order; [] where the seeds drew other splits."""
    first, *others = group
    pairs = [fold_pairs(first, other) for other in others]
    by_number = [{fold.number: fold for fold in other.folds} for other in others]
    return [
        [fold, *(folds[pair[fold.number]] for pair, folds in zip(pairs, by_number, strict=True))]
        for fold in first.folds
        if all(fold.number in pair for pair in pairs)
    ]


def pooled_label(group: Sequence[RunResult]) -> str:
    """The label of the mean over seeds."""
    return f"{label_without_seed(group[0])}, mean of {len(group)} seeds"


def label_without_seed(run: RunResult) -> str:
    """The label of a run without the part that names its seed."""
    return ", ".join(part for part in run.label.split(", ") if part != f"seed {run.setting.fit.seed}")


def _compared(group: Sequence[RunResult], metric: str, label: str) -> list[AgainstRidge]:
    """One run, or several seeds of it, against each ridge that all folds have; [] where no fold is shared."""
    folds = shared_folds(group)
    found = []
    for ridge in RIDGE_NAMES:
        if folds and all(metric in fold.metrics["controls"].get(ridge, {}) for seeds in folds for fold in seeds):
            scores = tuple(_mean_scores(seeds, metric, ridge) for seeds in folds)
            found.append(AgainstRidge(label, ridge, metric, scores, tuple(run.label for run in group)))
    return found


def _mean_scores(seeds: Sequence[FoldResult], metric: str, ridge: str) -> FoldScores:
    """The scores of one fold, mean over seeds; its number is that of the first."""
    own = [fold.metrics["pooled"] for fold in seeds]
    other = [fold.metrics["controls"][ridge] for fold in seeds]
    pcc, ridge_pcc = (float(np.mean([values[metric] for values in of])) for of in (own, other))
    mse, ridge_mse = (float(np.mean([values["mse"] for values in of])) for of in (own, other))
    return FoldScores(seeds[0].number, pcc, ridge_pcc, mse, ridge_mse)
