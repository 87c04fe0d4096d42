"""Many runs in tables of one line for each, from the metrics of their folds alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from train.report.alike import same_tests
from train.report.baseline_rows import BASELINE_TITLES, LEAK, PERMUTED, RIDGE, RIDGE_TUNED, has_leak
from train.report.context import (
    patient_warnings,
    protocol_warnings,
    run_warnings,
    setting_texts,
    weight_warnings,
    within_warnings,
)
from train.report.paper_tables import BEST_NOTE, NO_BEST_NOTE, SCOPES, group_name
from train.report.results import Results, RunResult
from train.report.table import (
    BASELINE,
    Cell,
    Column,
    Row,
    Table,
    mark_best,
    metric_columns,
    number_cell,
    ordered_metrics,
    slug,
)

MAX_BASELINES = 6  # rows of one baseline, whose numbers differ with the data that the runs read
MAIN_TITLE = "PCC@50"  # of the column that the text is about, where there is one
MAX_BEST = 3  # runs that are the best alike
MAX_VALUES = 8  # of a setting that are named


def index_table(runs: list[RunResult]) -> Table:
    """Mean and standard deviation over folds of each run, then of what any model must beat.

    Args:
        runs: of one group.
    """
    metrics = ordered_metrics({name for run in runs for fold in run.folds for name in fold.metrics["pooled"]})
    columns = metric_columns(metrics)
    rows = [Row(run.label, "run", _cells([f.metrics["pooled"] for f in run.folds], metrics)) for run in runs]
    baselines = [row for name in BASELINE_TITLES if name != PERMUTED for row in _baseline_rows(runs, name, metrics)]
    rows += baselines
    marks = same_tests(runs)
    if marks:
        leaking = [run.label for run in runs if run.leaks] + [row.label for row in baselines if has_leak(row)]
        rows = mark_best(rows, columns, leaking)
    notes = (f"mean ± std over folds, {SCOPES['pooled']}", BEST_NOTE if marks else NO_BEST_NOTE)
    group = group_name(runs[0])
    return Table(slug(f"metrics pooled {group}"), f"Metrics, {group}", columns, tuple(rows), notes)


def index_text(table: Table) -> str:
    """Which run of an `index_table` is the best, or which baseline is; "" where none is marked."""
    titles = [column.title for column in table.columns]
    i = titles.index(MAIN_TITLE) if MAIN_TITLE in titles else 0
    best = [row for row in table.rows if row.cells[i].best]
    count = sum(row.kind == "run" for row in table.rows)
    named = "; ".join(f"{row.label}, {row.cells[i].text}" for row in best[:MAX_BEST])
    if not best:
        return ""
    if any(row.kind == "run" for row in best):
        return f"Highest {titles[i]} of {count:,} runs: {named}."
    return f"No run is above a baseline in {titles[i]}: {named}."


def _cells(folds: Sequence[dict[str, float]], metrics: Sequence[str]) -> tuple[Cell, ...]:
    """Mean and, of several folds, sample standard deviation of each metric."""
    values = ([fold[name] for fold in folds if name in fold] for name in metrics)
    return tuple(
        number_cell(float(np.mean(v)), float(np.std(v, ddof=1)) if len(v) > 1 else None) if v else number_cell(None)
        for v in values
    )


def _baseline_rows(runs: Sequence[RunResult], name: str, metrics: Sequence[str]) -> list[Row]:
    """One baseline, once for each of its numbers; where these are many, the best one alone."""
    title = BASELINE_TITLES[name]
    rows: dict[tuple[float | None, ...], Row] = {}
    for run in runs:
        folds = [fold.metrics["controls"][name] for fold in run.folds if name in fold.metrics["controls"]]
        if not folds:
            continue
        cells = _cells(folds, metrics)
        leak = LEAK if run.leaks and name in (RIDGE, RIDGE_TUNED) else ""
        label = ", ".join(filter(None, (title, leak, f"data of {run.label}")))
        rows.setdefault(tuple(cell.value and round(cell.value, 6) for cell in cells), Row(label, BASELINE, cells))
    honest = [row for row in rows.values() if not has_leak(row)]
    if len(rows) == 1 and honest:
        return [Row(title, BASELINE, honest[0].cells)]
    if len(rows) <= MAX_BASELINES or not honest:
        return list(rows.values())[:MAX_BASELINES]
    best = max(honest, key=lambda row: row.cells[0].value or 0.0)
    return [Row(f"{title}, the best in {metrics[0].upper()} of {len(rows)} on different data", BASELINE, best.cells)]


def index_warnings(results: Results) -> list[str]:
    """What makes numbers of many runs doubtful, in general; of single runs it is said how many have warnings."""
    warnings = [*weight_warnings(results), *within_warnings(results), *patient_warnings(results)]
    leaking = [run.label for run in results.runs if run.leaks]
    if leaking:
        warnings.insert(0, f"LEAK: {len(leaking)} runs are tested on slides that their embeddings' adapter has seen")
    own = {sentence.partition(": ")[0] for sentence in (*results.incomplete, *results.meaningless)}
    own |= {run.label for run in results.runs if run_warnings(run)}
    if own:
        warnings.append(f"{len(own)} of {len(results.runs)} runs have warnings of their own: on their pages")
    return list(dict.fromkeys([*warnings, *protocol_warnings(results)]))


def settings_overview(results: Results) -> Table:
    """The settings of many runs, a setting a row: its value, or several; those that differ come first."""
    texts = [setting_texts(run) for run in results.runs]
    values: dict[str, dict[str, int]] = {}
    for of_run in texts:
        for key, value in of_run.items():
            counts = values.setdefault(key, {})
            counts[value] = counts.get(value, 0) + 1
    rows = [Row(key, "run", (_overview_cell(counts),)) for key, counts in values.items()]
    rows.sort(key=lambda row: len(values[row.label]) == 1)
    return Table("configuration", "Settings", (Column("all runs"),), tuple(rows), (), "setting")


def _overview_cell(counts: dict[str, Any]) -> Cell:
    if len(counts) == 1:
        return Cell(next(iter(counts)))
    named = list(counts)[:MAX_VALUES]
    more = f", and {len(counts) - len(named)} more" if len(counts) > len(named) else ""
    return Cell(f"{len(counts)} values: {', '.join(named)}{more}")
