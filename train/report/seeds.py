"""Runs that differ by their seed alone, as one: means over the seeds in each fold, and how much the seeds differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from train.report.against_ridge import averaged_groups, shared_folds
from train.report.results import Results, RunResult, with_labels
from train.report.table import OVER_SEEDS, Cell, Row


def over_seeds(results: Results, runs: Sequence[RunResult]) -> tuple[Results, list[RunResult]]:
    """The results with the runs of several seeds as one.

    Only runs that are the same in all but the seed of training, and whose folds are all the same, are taken together.

    Args:
        results: all runs.
        runs: some of them.

    Returns:
        The results, in which a run of several seeds stands at the place of the first and has their means as metrics;
        and those runs that stand for some of `runs`.
    """
    merged = {group[0].folder: _mean_run(group) for group in averaged_groups(results.runs) if _same_folds(group)}
    later = {seed.folder for run in merged.values() for seed in run.seeds[1:]}
    chosen = [merged.get(run.folder, run) for run in results.runs if run.folder not in later]
    if not merged:
        return results, list(runs)
    labelled = with_labels(chosen)
    folders = {run.folder for run in runs}
    taken = [r for r in labelled if folders & {r.folder, *(seed.folder for seed in r.seeds)}]
    return Results(tuple(labelled)), taken


def _same_folds(group: Sequence[RunResult]) -> bool:
    shared = len(shared_folds(group))
    return all(len(run.folds) == shared for run in group)


def _mean_run(group: Sequence[RunResult]) -> RunResult:
    """The runs as one, in the folder of the first, whose predictions stand for all."""
    folds = tuple(
        replace(same[0], metrics=_mean([fold.metrics for fold in same]), cost=_mean([fold.cost for fold in same]))
        for same in shared_folds(group)
    )
    unfinished = tuple(dict.fromkeys(name for run in group for name in run.unfinished))
    return replace(group[0], folds=folds, unfinished=unfinished, seeds=tuple(group))


def _mean(values: Sequence[Any]) -> Any:
    """The mean of numbers, entry by entry of dictionaries; of lists all that is in them, of anything else the first."""
    first = values[0]
    if all(value == first for value in values):
        return first
    if all(isinstance(value, dict) for value in values):
        return {key: _mean([value[key] for value in values]) for key in first if all(key in value for value in values)}
    if all(isinstance(value, list) for value in values):
        return list(dict.fromkeys(text for value in values for text in value))
    is_number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return float(np.mean(values)) if is_number else first


def seed_row(run: RunResult, metrics: Sequence[str], scope: str) -> Row | None:
    """The standard deviation over seeds of the means over folds; None for a run of one seed.

    Args:
        run: one of `over_seeds`.
        metrics: one for each cell.
        scope: one of the scopes of `Results.metrics`.
    """
    if not run.seeds:
        return None
    frame = Results(run.seeds).metrics
    means = frame[frame["scope"] == scope].groupby(["run", "metric"])["value"].mean().unstack()
    spreads = {metric: float(means[metric].std(ddof=1)) for metric in metrics if metric in means}
    cells = tuple(Cell(f"± {spreads[m]:.3f}", spreads[m]) if m in spreads else Cell("–") for m in metrics)
    return Row(f"± over {len(run.seeds)} seeds", OVER_SEEDS, cells)


def seed_spread_notes(runs: Sequence[RunResult]) -> list[str]:
    """What the rows of `seed_row` are, where there are any."""
    numbers = dict.fromkeys(str(run.settings["seed"]) for run in runs if run.seeds)
    if not numbers:
        return []
    return [
        f"of several seeds (training with {'; '.join(numbers)}, on the same splits): means over the seeds in each "
        "fold, then mean ± std over folds; ± over seeds: std of the seeds' means over folds"
    ]
