"""Tables as plain data: what is in a cell, a row, a table, before it is text."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import rich.table

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


NOTE_WIDTH = 110
ARROWS = {HIGHER: "↑", LOWER: "↓"}
LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": "$<$",
    ">": "$>$",
    "–": "--",
    "−": "$-$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
}


def to_rich(table: Table) -> rich.table.Table:
    """For `console.out.print`: rows under a run are indented and dim, the best values bold."""
    from rich.markup import escape
    from rich.table import Table as RichTable

    notes = "\n".join(textwrap.fill(note, NOTE_WIDTH, subsequent_indent="  ") for note in table.notes)
    shown = RichTable(title=escape(table.title), caption=escape(notes) or None, caption_justify="left")
    shown.add_column(escape(table.head), no_wrap=True)
    for column in table.columns:
        shown.add_column(escape(heading(column.title, column.better)), justify="right", no_wrap=True)
    last = None
    for row in table.rows:
        if row.kind == "control" and last not in (None, "control"):
            shown.add_section()
        last = row.kind
        cells = [f"[bold]{escape(c.text)}[/bold]" if c.best else escape(c.text) for c in row.cells]
        shown.add_row(escape(indented(row)), *cells, style="dim" if row.kind in UNDER else None)
    return shown


def to_csv(table: Table) -> str:
    """Full precision, a line a row; `row` says what it is, `X std` follows every number that has a spread."""
    spread = [any(row.cells[i].spread is not None for row in table.rows) for i in range(len(table.columns))]
    head = [table.head or "run", "row"]
    for column, has in zip(table.columns, spread, strict=True):
        head += [column.title, f"{column.title} std"] if has else [column.title]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    run = ""
    for row in table.rows:
        run = run if row.kind in UNDER else row.label
        line: list[float | str] = [run, row.label if row.kind in UNDER else row.kind]
        for cell, has in zip(row.cells, spread, strict=True):
            value: float | str = cell.value if cell.value is not None else ("" if cell.text == "–" else cell.text)
            line += [value, "" if cell.spread is None else cell.spread] if has else [value]
        writer.writerow(line)
    return text.getvalue()


def to_latex(table: Table) -> str:
    """A `table` with booktabs rules: needs \\usepackage{booktabs}; the notes stand below it, small."""
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex(table.title)}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
        " & ".join([latex(table.head), *(latex(heading(c.title, c.better)) for c in table.columns)]) + r" \\",
        r"\midrule",
    ]
    last = None
    for row in table.rows:
        if row.kind == "control" and last not in (None, "control"):
            lines.append(r"\midrule")
        last = row.kind
        cells = [rf"\textbf{{{latex(c.text)}}}" if c.best else latex(c.text) for c in row.cells]
        label = latex(row.label)
        lines.append(" & ".join([rf"\quad {label}" if row.kind in UNDER else label, *cells]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\smallskip{{\footnotesize {latex(note)}.}}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}", ""])


def heading(title: str, better: int) -> str:
    return f"{title} {ARROWS[better]}" if better in ARROWS else title


def indented(row: Row) -> str:
    return f"  {row.label}" if row.kind in UNDER else row.label


def latex(text: str) -> str:
    """Escaped for LaTeX."""
    return "".join(LATEX.get(c, c) for c in text)
