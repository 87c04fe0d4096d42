"""Tables as plain data: what is in a cell, a row, a table, before it is text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

HIGHER, LOWER, NEITHER = 1, -1, 0
UNDER = ("p", "published")  # rows that belong to the run above them


@dataclass(frozen=True)
class Column:
    title: str
    better: int = NEITHER
    """HIGHER, LOWER or NEITHER."""


@dataclass(frozen=True)
class Cell:
    """What is shown, and the number it is sorted and written to CSV by, if it is one."""

    text: str
    value: float | None = None
    spread: float | None = None
    """Standard deviation."""
    best: bool = False


@dataclass(frozen=True)
class Row:
    """kind is "run"; "p" or "published", which belong to the run above them; or "control"."""

    label: str
    kind: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    name: str
    """Of its files."""
    title: str
    columns: tuple[Column, ...]
    """Without that of the rows' labels."""
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    head: str = ""
    """Over the rows' labels."""


def over_folds(frame: pd.DataFrame, metrics: list[str]) -> tuple[Cell, ...]:
    """Mean and sample standard deviation of each metric over the folds in `frame`."""
    cells = []
    for metric in metrics:
        values = frame.loc[frame["metric"] == metric, "value"]
        mean, std = (float(values.mean()), float(values.std(ddof=1))) if len(values) else (None, None)
        cells.append(number(mean, std if len(values) > 1 else None))
    return tuple(cells)


def number(mean: float | None, std: float | None = None, digits: int = 3) -> Cell:
    if mean is None:
        return Cell("–")
    if std is None:
        return Cell(f"{mean:.{digits}f}", mean)
    return Cell(f"{mean:.{digits}f} ± {std:.{digits}f}", mean, std)


def p_text(p: float | None) -> str:
    if p is None:
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def with_best(rows: list[Row], columns: tuple[Column, ...]) -> list[Row]:
    """The best run in each column marked; ties all are, and nothing is where there is one run."""
    runs = [row for row in rows if row.kind == "run"]
    if len(runs) < 2:
        return rows
    best: dict[int, float] = {}
    for i, column in enumerate(columns):
        values = [v for v in (row.cells[i].value for row in runs) if v is not None]
        if values and column.better != NEITHER:
            best[i] = max(values) if column.better == HIGHER else min(values)
    return [
        Row(row.label, row.kind, tuple(_mark(c, best.get(i)) for i, c in enumerate(row.cells)))
        if row.kind == "run"
        else row
        for row in rows
    ]


def _mark(cell: Cell, best: float | None) -> Cell:
    return Cell(cell.text, cell.value, cell.spread, best is not None and cell.value == best)


def metric_order(metrics: set[str]) -> list[str]:
    """PCC@k by k, then MSE, MAE."""
    top = sorted((m for m in metrics if m.startswith("pcc@")), key=lambda m: int(m[4:]))
    return top + [m for m in ("mse", "mae") if m in metrics]


def slug(text: str) -> str:
    """For the names of files and anchors: letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
