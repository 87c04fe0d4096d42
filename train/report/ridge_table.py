"""The table of runs against ridge, and what it says in sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from train.report.against_ridge import (
    AgainstRidge,
    Estimate,
    against_ridge,
    averaged_groups,
    decimal,
    seed_groups,
    shared_folds,
)
from train.report.baseline_rows import RIDGE, RIDGE_TUNED
from train.report.paper_tables import group_name, run_groups
from train.report.results import Results, RunResult
from train.report.table import HIGHER, LOWER, Cell, Column, Row, Table, number_cell, slug

SHORT_NAMES = {RIDGE_TUNED: "same inputs", RIDGE: "PCA-256"}
MAX_SENTENCES = 3  # at the head of the section; of more runs it says how many are above and below
NOTE = (
    "run minus ridge on the same folds, mean over folds with a 95 % interval (paired t); above: folds with a higher "
    "PCC than ridge; worst: the lowest PCC of a fold as a share of ridge's. Folds share train slides and are not "
    "independent, so that intervals are too narrow"
)
RIDGE_NOTES = {
    RIDGE_TUNED: "ridge, same inputs: reads and learns what the run does, its penalty chosen by the same rule",
    RIDGE: "ridge, PCA-256: reads 256 principal components of the cached embeddings, whatever the run reads",
}


def ridge_tables(results: Results) -> list[Table]:
    """Runs against ridge, a table for each group of runs that has any."""
    tables = [ridge_table(runs, against_ridge(runs)) for runs in run_groups(results)]
    return [table for table in tables if table is not None]


def ridge_table(runs: Sequence[RunResult], found: Sequence[AgainstRidge]) -> Table | None:
    """The comparisons of a group of runs, one a row.

    Args:
        runs: the group.
        found: its `against_ridge`.

    Returns:
        The table; None where there is nothing to compare.
    """
    if not found:
        return None
    metric = found[0].metric.upper()
    columns = (
        Column("ridge"),
        Column(metric, HIGHER),
        Column("PCC interval"),
        Column("above"),
        Column("worst", HIGHER),
        Column("MSE", LOWER),
        Column("MSE interval"),
    )
    rows = tuple(Row(one.label, "run", _cells(one)) for one in found)
    notes = [*(one.sentence for one in principal(found)), NOTE]
    notes += [text for ridge, text in RIDGE_NOTES.items() if any(one.ridge == ridge for one in found)]
    notes += seed_notes(runs, found)
    group = group_name(runs[0])
    return Table(slug(f"against ridge {group}"), f"Difference to ridge, {group}", columns, rows, tuple(notes))


def _cells(one: AgainstRidge) -> tuple[Cell, ...]:
    worst, n = one.worst, len(one.folds)
    ratio = number_cell(None)
    if worst is not None and worst.ratio is not None:
        ratio = number_cell(worst.ratio, digits=2)
    return (
        Cell(SHORT_NAMES[one.ridge]),
        _difference(one.pcc),
        _interval(one.pcc),
        Cell(f"{one.n_above} of {n}", float(one.n_above)),
        ratio,
        _difference(one.mse),
        _interval(one.mse),
    )


def _difference(estimate: Estimate) -> Cell:
    text = decimal(estimate.mean)
    return Cell(text if text.startswith("−") or text == "0.000" else f"+{text}", estimate.mean)


def _interval(estimate: Estimate) -> Cell:
    if estimate.low is None or estimate.high is None:
        return Cell("one fold")
    return Cell(f"[{decimal(estimate.low)}, {decimal(estimate.high)}]")


def principal(found: Sequence[AgainstRidge]) -> list[AgainstRidge]:
    """The comparisons put into words: with ridge on the same inputs where that is there, seeds as their mean."""
    averaged = {label for one in found if one.n_seeds > 1 for label in one.runs}
    first = {one.label: one for one in reversed(found) if one.label not in averaged}
    return list(first.values())[::-1]


def seed_notes(runs: Sequence[RunResult], found: Sequence[AgainstRidge]) -> list[str]:
    """How seeds were averaged, and which could not be."""
    notes = []
    if any(one.n_seeds > 1 for one in found):
        notes.append("mean of seeds: the mean over seeds in each fold first, then the interval over folds")
    averaged = averaged_groups(runs)
    others = [group for group in seed_groups(runs) if not any(run in group for same in averaged for run in same)]
    for group in [*averaged, *others]:
        shared = len(shared_folds(group))
        most = max(len(run.folds) for run in group)
        names = "; ".join(run.label for run in group)
        if shared < most:
            taken = "so that they are not averaged" if not shared else "the others are not averaged"
            notes.append(f"{names}: {shared} of {most} folds have the same slides and genes, {taken}")
    return notes


def ridge_text(found: Sequence[AgainstRidge]) -> str:
    """The first sentences of the section: each run's where there are few, else how many are above and below."""
    chosen = principal(found)
    if len(chosen) <= MAX_SENTENCES:
        sentences = ". ".join(one.sentence for one in chosen)
        return f"{found[0].metric.upper()} minus that of ridge, mean over folds with a 95 % interval. {sentences}."
    counts = Counter(one.verdict for one in chosen)
    words = {"above": "above ridge", "BELOW": "BELOW ridge", "no clear difference": "without a clear difference to it"}
    parts = [f"{counts[verdict]} {text}" for verdict, text in words.items() if counts[verdict]]
    parts += [f"{counts['']} of a single fold, which has no interval"] if counts[""] else []
    return f"In {found[0].metric.upper()}, of {len(chosen)} rows: {', '.join(parts)}."
