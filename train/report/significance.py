"""Is a run better than another, or is it chance: paired tests over the splits that both were run on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hist_cache.errors import InputError
from train.report.results import Results, RunResult
from train.report.run_settings import TRUTH

if TYPE_CHECKING:
    import pandas as pd

REFERENCE = "full"
NOTE = (
    "p: paired over splits, two-sided, not corrected for the number of comparisons. Repeated splits share slides and "
    "are not independent, so that p is too small; with 5 splits the Wilcoxon test cannot go below 0.0625"
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
    """Compare first with second, both (n,), pair by pair."""
    from scipy.stats import ttest_rel, wilcoxon

    d = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    n = len(d)
    if n < 2 or not d.any():
        return Paired(n, float(d.mean()) if n else None, None, None)
    rounding = 1e-12 * max(np.abs(first).max(), np.abs(second).max())
    varies = np.ptp(d) > rounding
    p_t = float(ttest_rel(first, second).pvalue) if varies else None
    return Paired(n, float(d.mean()), p_t, float(wilcoxon(d).pvalue))


def compare(results: Results, run: RunResult, reference: RunResult, metric: str, scope: str = "pooled") -> Paired:
    """A run against another, on the splits that both were tested on: same name, same slides, as many spots."""
    table = results.metrics
    table = table[(table["scope"] == scope) & (table["metric"] == metric)]
    key = ["split", "tested", "n_spots"]
    first, second = (table[table["run"] == r.label].set_index(key)["value"] for r in (run, reference))
    both = first.to_frame("first").join(second.to_frame("second"), how="inner")
    return paired(both["first"].to_numpy(), both["second"].to_numpy())


def references(results: Results, against: str | None = None) -> dict[str, RunResult]:
    """The run that each is compared with, by label; those with nothing to be compared with are left out.

    `against` is a variant or a run's label (default: full, if it is there). Of several runs of that variant it is the
    one that differs in the fewest settings; only runs that predict the same truth are compared, and a run of that
    variant itself with the first of them. `InputError` where `against` is given and none of the runs.
    """
    wanted = against or REFERENCE
    candidates = [r for r in results.runs if wanted in (r.label, r.variant)]
    if against and not candidates:
        there = dict.fromkeys([r.variant for r in results.runs] + [r.label for r in results.runs])
        raise InputError(f"--against {against}: not among the runs; there are {'; '.join(there)}")
    found = {}
    for run in results.runs:
        fair = [c for c in candidates if c.shares(run, TRUTH)]
        if fair and run in fair:
            fair = fair[:1]
        if fair and (nearest := min(fair, key=lambda c: _differ(c, run))) is not run:
            found[run.label] = nearest
    return found


def _differ(one: RunResult, other: RunResult) -> int:
    return sum(one.settings[k] != other.settings.get(k) for k in one.settings)


def comparisons(results: Results, metrics: list[str], against: str | None = None) -> pd.DataFrame:
    """run, reference, metric, n, difference, p_t, p_wilcoxon: every run that has a reference, every metric."""
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
