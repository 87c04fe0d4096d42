"""The mean of the predictions of several runs, over recipes, seeds or models: what an ensemble of them would reach."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from hist_cache.errors import InputError
from hist_cache.runs import Fold
from train.metrics import summarize
from train.report.against_ridge import shared_folds
from train.report.alike import truth_differences
from train.report.paper_tables import group_name, run_groups
from train.report.results import Results, RunResult
from train.report.table import Row, Table, mark_best, mean_cells, metric_columns, ordered_metrics, slug


def ensemble_tables(results: Results) -> list[Table]:
    """A table for each group of runs that predict the same spots and genes.

    Raises:
        InputError: No two runs do.
    """
    tables = []
    for runs in run_groups(results):
        alike = [run for run in runs if not truth_differences(runs[0], run)]
        folds = [[result.fold for result in same] for same in shared_folds(alike)]
        if len(alike) > 1 and folds:
            tables.append(ensemble_table(alike, folds, group_name(runs[0])))
    if not tables:
        raise InputError("--ensemble: no two of the runs have folds on the same slides, spots and genes")
    return tables


def mean_metrics(folds: Sequence[Fold]) -> list[dict[str, float]]:
    """Metrics of the same fold in several runs, and last those of the mean of their predictions.

    Raises:
        InputError: A run predicts other spots or genes than the first one, or in another order.
    """
    tables = [fold.predictions for fold in folds]
    for fold, table in zip(folds, tables, strict=True):
        if list(table.obs_names) != list(tables[0].obs_names) or list(table.var_names) != list(tables[0].var_names):
            raise InputError(f"{fold.folder}: predicts other spots or genes than {folds[0].folder}")
    predicted = [np.asarray(table.X, dtype=np.float64) for table in tables]
    truth = np.asarray(tables[0].layers["truth"])
    return [summarize(values, truth) for values in (*predicted, np.mean(predicted, axis=0))]


def ensemble_table(runs: Sequence[RunResult], folds: Sequence[Sequence[Fold]], group: str) -> Table:
    """Pooled metrics of each run and of the mean of all, on the folds that all of them have.

    Args:
        runs: They predict the same.
        folds: Each fold that all runs have, as the files of every run, in the order of the runs.
        group: Name of the group of runs.
    """
    leaking = [run.label for run in runs if run.leaks]
    mean = f"mean of these {len(runs)}{', LEAK' if leaking else ''}"
    labels = [*(run.label for run in runs), mean]
    values = [dict(zip(labels, mean_metrics(fold), strict=True)) for fold in folds]
    metrics = ordered_metrics({name for fold in values for row in fold.values() for name in row})
    rows = []
    for label in labels:
        cells = [(name, value) for fold in values for name, value in fold[label].items()]
        rows.append(Row(label, "run", mean_cells(pd.DataFrame(cells, columns=["metric", "value"]), metrics)))
    columns = metric_columns(metrics)
    rows = mark_best(rows, columns, [*leaking, mean] if leaking else [])
    notes = [
        f"mean ± std over the {len(folds)} folds that all {len(runs)} runs have; the last row is another model than "
        "each of them: the mean of their predictions, spot by spot"
    ]
    notes += [f"LEAK: {run.label}: {leak}" for run in runs for leak in run.leaks]
    title = f"Mean of the predictions of {len(runs)} runs, {group}"
    return Table(slug(f"ensemble {group}"), title, columns, tuple(rows), tuple(notes))
