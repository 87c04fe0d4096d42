"""What any model must beat, as rows of the tables: the baselines of the runs, once for each setting of the data."""

from __future__ import annotations

from collections.abc import Sequence

from train.report.results import Results, RunResult
from train.report.run_settings import DATA, RECIPE_SETTINGS
from train.report.significance import REFERENCE
from train.report.table import BASELINE, Row, mean_cells

PERMUTED = "permuted"  # the one baseline that depends on the run's own predictions
RIDGE = "ridge"
INTERPOLATED = "interpolated"  # within slices only: the nearest train spots, without images
RIDGE_TUNED = "ridge_tuned"  # reads what the model beside it reads, and learns what it learns
LEAK = "LEAK"  # in the label of a baseline that shares the leak of its runs
BASELINE_TITLES = {
    RIDGE: "ridge, PCA-256",
    RIDGE_TUNED: "ridge, same inputs",
    INTERPOLATED: "interpolated, places alone",
    "train_mean": "train mean",
    PERMUTED: "permuted",
}


def baseline_rows(results: Results, runs: list[RunResult], metrics: list[str]) -> list[Row]:
    """The baselines, once for each setting of the data.

    Args:
        results: holds the baselines' metrics.
        runs: those in the table.
        metrics: one for each cell.
    """
    rows = []
    recipes = {run.settings["recipe"] for run in runs}
    for baseline, title in BASELINE_TITLES.items():
        groups = _groups(runs, (*DATA, *RECIPE_SETTINGS) if baseline == RIDGE_TUNED else DATA)
        rows_by_values: dict[tuple[float | None, ...], Row] = {}
        labels: dict[str, str] = {}
        of_recipe = ""
        for group in groups:
            run = _run_with_baseline(group, baseline)
            frame = results.baselines[
                (results.baselines["run"] == run.label) & (results.baselines["baseline"] == baseline)
            ]
            if frame.empty:
                continue
            cells = mean_cells(frame, metrics)
            if baseline == PERMUTED:
                label = f"{run.label}, permuted"
            else:
                has_own = baseline == RIDGE_TUNED and len(recipes) > 1
                of_recipe = f"{run.settings['recipe']} recipe" if has_own else ""
                label = ", ".join(filter(None, [_title(baseline, group), of_recipe, run.data_label]))
            values = tuple(c.value for c in cells)
            if values not in rows_by_values and labels.setdefault(label, run.label) != run.label:
                label = f"{title}, data of {run.label}"  # the label of its data is that of other data too
            rows_by_values.setdefault(values, Row(label, BASELINE, cells))
        if len(rows_by_values) == 1 and baseline != PERMUTED:  # the same for any seed or neighbourhood
            label = ", ".join(filter(None, [_title(baseline, runs), of_recipe]))
            rows += [Row(label, BASELINE, row.cells) for row in rows_by_values.values()]
        else:
            rows += rows_by_values.values()
    return [row for row in rows if any(c.value is not None for c in row.cells)]


def _groups(runs: list[RunResult], keys: Sequence[str]) -> list[list[RunResult]]:
    """The runs with the same values of these settings together, in order."""
    groups: list[list[RunResult]] = []
    for run in runs:
        group = next((g for g in groups if run.shares(g[0], keys)), None)
        if group is None:
            groups.append([run])
        else:
            group.append(run)
    return groups


def _title(baseline: str, runs: list[RunResult]) -> str:
    """What a baseline is called; ridge reads the runs' embeddings, so it shares their leaks."""
    title = BASELINE_TITLES[baseline]
    return f"{title}, {LEAK}" if baseline in (RIDGE, RIDGE_TUNED) and any(run.leaks for run in runs) else title


def has_leak(row: Row) -> bool:
    """Whether a row of a baseline is of embeddings that have seen test slides."""
    return LEAK in row.label.split(", ")


def _run_with_baseline(group: list[RunResult], baseline: str) -> RunResult:
    """The run whose baseline stands for its group: for permuted the reference, else the run with the most folds."""
    if baseline == PERMUTED:
        return next((r for r in group if r.method == REFERENCE), group[0])
    return max(group, key=lambda r: len(r.folds))
