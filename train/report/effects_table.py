"""The table of tests: each run against its reference, a metric a row, with corrected p-values and effect sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from train.report.alike import comparison_label, comparison_notes
from train.report.analysis_tables import difference_cell
from train.report.paper_tables import group_name, unit_of
from train.report.resampling import PairedEffect, compare_corrected
from train.report.results import Results, RunResult
from train.report.significance import compare, holm, references
from train.report.table import METRIC_TITLES, Cell, Column, Row, Table, ordered_metrics, p_text, slug

if TYPE_CHECKING:
    import pandas as pd

EFFECT_COLUMNS = tuple(
    Column(title)
    for title in (
        *("metric", "splits", "difference", "95 % low", "95 % high", "p, paired t", "p, paired t, Holm"),
        *("p, corrected t", "p, corrected t, Holm", "Hedges' g", "g, 95 % low", "g, 95 % high"),
    )
)
CORRECTED_NOTE = (
    "p, corrected t: the corrected resampled t-test of Nadeau and Bengio, two-sided, which takes the variance of the "
    "mean over n splits as (1/n + test/train) times that of the differences, because splits share training data; the "
    "interval of the difference is its interval. Test and train are counted in slides: {ratios}. It was derived for "
    "random splits; for cross-validation, whose test sets do not overlap, it is an approximation"
)
PAIRED_NOTE = (
    "p, paired t: the test that the paper reports. It takes the splits as independent, which they are not, so that it "
    "is too small"
)
HOLM_COLUMNS_NOTE = "Holm: corrected for all {count} tests of this table, over runs and metrics"
EFFECT_NOTE = (
    "Hedges' g: the mean difference in standard deviations of the differences over splits, corrected for few splits, "
    "with an interval by the noncentral t distribution of the corrected test. How much the difference varies depends "
    "on the splits, so that g compares only where these are the same"
)


def effects_table(results: Results, runs: Sequence[RunResult], against: str | None = None) -> Table | None:
    """The tests of each run against its reference, by metrics pooled over the test spots.

    Args:
        results: all runs; references are chosen among them.
        runs: those in the table, one of the `run_groups`.
        against: method or label of the reference (default: full).

    Returns:
        The table; None where no two splits of a run and of its reference can be compared.
    """
    chosen = references(results, against)
    pooled = results.metrics[results.metrics["scope"] == "pooled"]
    pairs = [(run, chosen[run.label], m) for run in runs if run.label in chosen for m in _metrics_of(pooled, run.label)]
    effects = [compare_corrected(results, *pair) for pair in pairs]
    if all(effect.p is None for effect in effects):
        return None
    paired_p = [compare(results, *pair).p_t for pair in pairs]
    corrected_p = [effect.p for effect in effects]
    rows = [
        Row(f"{run.label} − {comparison_label(run, reference)}", "run", _cells(metric, effect, *p))
        for (run, reference, metric), effect, *p in zip(
            pairs, effects, paired_p, holm(paired_p), corrected_p, holm(corrected_p), strict=True
        )
    ]
    ratios = sorted({f"{effect.ratio:.3g}" for effect in effects if effect.n})
    notes = [
        f"run minus reference, mean over splits, pooled over test spots; MSE and MAE in {unit_of(runs[0])}",
        CORRECTED_NOTE.format(ratios=", ".join(ratios)),
        PAIRED_NOTE,
        HOLM_COLUMNS_NOTE.format(count=sum(p is not None for p in corrected_p)),
        EFFECT_NOTE,
    ]
    notes += dict.fromkeys(n for run, reference, _ in pairs for n in comparison_notes(run, reference))
    group = group_name(runs[0])
    return Table(slug(f"tests {group}"), f"Tests, {group}", EFFECT_COLUMNS, tuple(rows), tuple(notes))


def _metrics_of(pooled: pd.DataFrame, label: str) -> list[str]:
    return ordered_metrics(set(pooled.loc[pooled["run"] == label, "metric"]))


def _cells(metric: str, effect: PairedEffect, *p_values: float | None) -> tuple[Cell, ...]:
    return (
        Cell(METRIC_TITLES.get(metric, metric.upper())),
        Cell(str(effect.n), float(effect.n)),
        *(difference_cell(value) for value in (effect.difference, effect.low, effect.high)),
        *(Cell(p_text(p), p) for p in p_values),
        *(_effect_cell(value) for value in (effect.g, effect.g_low, effect.g_high)),
    )


def _effect_cell(value: float | None) -> Cell:
    return Cell("–") if value is None else Cell(f"{value:+.2f}".replace("-", "−"), value)
