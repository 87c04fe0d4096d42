"""Whether a run is better than another by more than chance: paired tests over the splits that both were run on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hist_cache.errors import InputError
from train.report.alike import fold_pairs, setting_differences, truth_differences
from train.report.results import Results, RunResult

if TYPE_CHECKING:
    import pandas as pd

REFERENCE = "full"  # the method that others are compared with, unless another is named
P_NOTE = (
    "p: paired over splits, two-sided, not corrected for the number of comparisons unless it says Holm. Repeated "
    "splits share slides and are not independent, so that p is too small; with 5 splits the Wilcoxon test cannot go "
    "below 0.0625"
)
HOLM_NOTE = (
    "p, Holm: that of the paired t-test, corrected by Holm's method for all {count} tests of this table, over runs and "
    "metrics"
)


@dataclass(frozen=True)
class Paired:
    """Two samples compared pair by pair."""

    n: int
    difference: float | None
    """Mean of first minus second; None without a pair."""
    p_t: float | None
    """Paired t-test; None for fewer than two pairs, or where the differences do not vary."""
    p_wilcoxon: float | None
    """Signed-rank test; None for fewer than two pairs, or where all differences are 0."""


def paired(first: np.ndarray, second: np.ndarray) -> Paired:
    """Compare two samples, both (N,), pair by pair."""
    from scipy.stats import ttest_rel, wilcoxon

    d = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    n = len(d)
    if n < 2 or not d.any():
        return Paired(n, float(d.mean()) if n else None, None, None)
    rounding = 1e-12 * max(np.abs(first).max(), np.abs(second).max())
    varies = np.ptp(d) > rounding
    p_t = float(ttest_rel(first, second).pvalue) if varies else None
    return Paired(n, float(d.mean()), p_t, float(wilcoxon(d).pvalue))


def holm(p: Sequence[float | None]) -> list[float | None]:
    """P-values corrected for their number by Holm's method, which keeps the chance of any false finding.

    Args:
        p: of all comparisons; None where there was no test, which does not count.

    Returns:
        The corrected p-values in the same order, 1 at most; None where there was no test.
    """
    tested = sorted((value, i) for i, value in enumerate(p) if value is not None)
    corrected: list[float | None] = [None] * len(p)
    highest = 0.0
    for rank, (value, i) in enumerate(tested):
        highest = max(highest, min(1.0, value * (len(tested) - rank)))
        corrected[i] = highest
    return corrected


def compare(results: Results, run: RunResult, reference: RunResult, metric: str, scope: str = "pooled") -> Paired:
    """Compare a run with another on the splits that both were run on, which are those of `fold_pairs`.

    Args:
        results: holds the metrics of both.
        run: the first sample.
        reference: the second sample.
        metric: such as `pcc@50`.
        scope: one of the scopes of `Results.metrics`.
    """
    pairs = paired_values(results, run, reference, metric, scope).values()
    return paired(np.array([a for a, _ in pairs]), np.array([b for _, b in pairs]))


def paired_values(
    results: Results, run: RunResult, reference: RunResult, metric: str, scope: str = "pooled"
) -> dict[int, tuple[float, float]]:
    """A metric of a run and of another, by number of the run's fold, on the splits that both were run on."""
    own, others = (results.fold_values(r.label, metric, scope) for r in (run, reference))
    return {i: (own[i], others[j]) for i, j in fold_pairs(run, reference).items() if i in own and j in others}


def references(results: Results, against: str | None = None) -> dict[str, RunResult]:
    """The run that each run is compared with.

    Only runs that predict the same truth are compared, and none on test slides that its adapter has seen. Of several
    runs of the reference method, the one that differs in the fewest settings is taken. Runs of that method themselves
    are compared with the one among them that differs least from the others, the first of several.

    Args:
        results: the runs.
        against: a method or the label of a run (default: `REFERENCE`, if there is one).

    Returns:
        The reference by the label of the run; a run that has none is left out.

    Raises:
        InputError: `against` is given, and none of the runs.
    """
    candidates = _candidates(results, against)
    if against and not candidates:
        names = dict.fromkeys([r.method for r in results.runs] + [r.label for r in results.runs])
        raise InputError(f"--against {against}: not among the runs; there are {'; '.join(names)}")
    chosen = {}
    central: dict[tuple[str, ...], RunResult] = {}
    for run in results.runs:
        comparable = [c for c in candidates if _are_alike(c, run)]
        if run in comparable:
            group = tuple(c.label for c in comparable)
            central[group] = central.get(group) or _central(comparable)
            comparable = [central[group]]
        if comparable and (nearest := min(comparable, key=lambda c: _distance(run, c))) is not run:
            chosen[run.label] = nearest
    return chosen


def _candidates(results: Results, against: str | None) -> list[RunResult]:
    return [run for run in results.runs if (against or REFERENCE) in (run.label, run.method)]


def without_reference(results: Results, runs: Sequence[RunResult], against: str | None = None) -> list[str]:
    """Why runs of a table have no p-value, a sentence each; nothing of possible references themselves.

    Args:
        results: all runs; references are chosen among them.
        runs: those in the table.
        against: a method or the label of a run (default: `REFERENCE`).
    """
    candidates, chosen = _candidates(results, against), references(results, against)
    if not candidates:
        return [f"no p: no run of {against or REFERENCE} to test against"] if len(runs) > 1 else []
    reasons = []
    for run in runs:
        if run.label not in chosen and run not in candidates:
            nearest = min(candidates, key=lambda c: _distance(run, c))
            reasons.append(f"{run.label}: no p against {nearest.label}: {_why_unlike(run, nearest)}")
    return reasons


def _why_unlike(run: RunResult, other: RunResult) -> str:
    """Why two runs are not compared."""
    for one in (run, other):
        if one.leaks:
            return f"the adapter of {one.label} has seen test slides"
    if names := [name.replace("_", " ") for name in truth_differences(run, other)]:
        return f"what is predicted differs in {', '.join(names)}"
    if run.is_within != other.is_within:
        return f"{(run if run.is_within else other).label} is within slices"
    return f"{(run if run.is_tuned else other).label} has embeddings of a tuned encoder"


def _central(runs: list[RunResult]) -> RunResult:
    """The run that differs from the others in the fewest settings; the first of several."""
    return min(runs, key=lambda run: sum(len(setting_differences(run, other)) for other in runs))


def _are_alike(one: RunResult, other: RunResult) -> bool:
    """Whether they predict the same truth, and compare.

    Both or neither are on encoders that were fine-tuned before, both or neither are within slices, and neither saw a
    test slide through its encoder.
    """
    honest = not one.leaks and not other.leaks
    same_kind = (one.is_tuned, one.is_within) == (other.is_tuned, other.is_within)
    return honest and same_kind and not truth_differences(one, other)


def _distance(run: RunResult, other: RunResult) -> tuple[bool, int]:
    """Of a run from a possible reference: whether no split is common, and how many settings differ."""
    return not fold_pairs(run, other), len(setting_differences(run, other))


def comparisons(results: Results, metrics: list[str], against: str | None = None) -> pd.DataFrame:
    """Compare every run that has a reference with it, in every metric.

    Args:
        results: the runs.
        metrics: such as `pcc@50`.
        against: a method or the label of a run (default: `REFERENCE`).

    Returns:
        A comparison a row: run, reference, metric, n, difference, p_t, p_wilcoxon.
    """
    import pandas as pd

    chosen = references(results, against)
    rows = [
        (run.label, chosen[run.label].label, metric, *vars(compare(results, run, chosen[run.label], metric)).values())
        for run in results.runs
        if run.label in chosen
        for metric in metrics
    ]
    columns = ["run", "reference", "metric", "n", "difference", "p_t", "p_wilcoxon"]
    return pd.DataFrame(rows, columns=columns).astype({"difference": object, "p_t": object, "p_wilcoxon": object})
