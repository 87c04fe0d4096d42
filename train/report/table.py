"""Tables as plain data, and the same as CSV, LaTeX and Markdown; `train.report.terminal` shows them."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hist_cache.files import write_text

if TYPE_CHECKING:
    import pandas as pd

HIGHER, LOWER, NEITHER = 1, -1, 0  # which values of a column are better
BASELINE = "control"  # kind of a baseline's row; CSV files have had this word since version 0.1
METHOD = "method"  # kind of the row of a method that others have published
OVER_SEEDS = "seeds"  # kind of the row of standard deviations over seeds, which CSV files have in columns of their own
SUBROW_KINDS = (OVER_SEEDS, "p", "published")  # kinds of rows that belong to the run above them
CENTERED_MSE = "centered_mse"  # MSE after each gene's mean over a slide is taken from prediction and truth
METRIC_TITLES = {CENTERED_MSE: "MSE, centred"}  # of others the name in capitals
ROUNDING = 1e-6  # values that differ by a smaller share are equal: the same model in another order of sums
ARROWS = {HIGHER: "↑", LOWER: "↓"}
MARKDOWN_SPECIAL = re.compile(r"[\\`*_{}\[\]<>#|~$&]")
LATEX_ESCAPES = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "|": r"\textbar{}",
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


@dataclass(frozen=True)
class Column:
    """The head of a column."""

    title: str
    better: int = NEITHER
    """HIGHER, LOWER or NEITHER."""


@dataclass(frozen=True)
class Cell:
    """What is shown, and the number that it is sorted and written to CSV by, if it is one."""

    text: str
    value: float | None = None
    spread: float | None = None
    """Standard deviation."""
    best: bool = False


@dataclass(frozen=True)
class Row:
    """A line of a table."""

    label: str
    kind: str
    """"run", `BASELINE`, `METHOD`, or one of `SUBROW_KINDS`."""
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """A table with its title and notes."""

    name: str
    """Of its files."""
    title: str
    columns: tuple[Column, ...]
    """Without the column of the rows' labels."""
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    head: str = ""
    """Above the rows' labels."""


def number_cell(mean: float | None, std: float | None = None, digits: int = 3) -> Cell:
    """`0.720 ± 0.020`, `0.720` without a standard deviation, and a dash where there is no number."""
    if mean is None:
        return Cell("–")
    if std is None:
        return Cell(f"{mean:.{digits}f}", mean)
    return Cell(f"{mean:.{digits}f} ± {std:.{digits}f}", mean, std)


def mean_cell(values: pd.Series) -> Cell:
    """Mean and, of several values, sample standard deviation."""
    if not len(values):
        return number_cell(None)
    return number_cell(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None)


def mean_cells(frame: pd.DataFrame, metrics: list[str]) -> tuple[Cell, ...]:
    """Mean and sample standard deviation of each metric.

    Args:
        frame: a value a row, with the columns `metric` and `value`.
        metrics: one for each cell.
    """
    return tuple(mean_cell(frame.loc[frame["metric"] == metric, "value"]) for metric in metrics)


def p_text(p: float | None) -> str:
    """A p-value as text; a dash where there is none."""
    if p is None:
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def mark_best(rows: list[Row], columns: tuple[Column, ...], without: Collection[str] = ()) -> list[Row]:
    """The rows with the best of each column marked, among runs and baselines alike.

    Several are marked where they are equal but for rounding, and none where there is a single row. Rows whose labels
    are in `without` do not take part.
    """
    rivals = [row for row in rows if row.kind in ("run", BASELINE) and row.label not in without]
    if len(rivals) < 2:
        return rows
    best: dict[int, float] = {}
    for i, column in enumerate(columns):
        values = [v for v in (row.cells[i].value for row in rivals) if v is not None]
        if values and column.better != NEITHER:
            best[i] = max(values) if column.better == HIGHER else min(values)

    def is_best(i: int, cell: Cell) -> bool:
        return i in best and cell.value is not None and math.isclose(cell.value, best[i], rel_tol=ROUNDING)

    def marked(row: Row) -> Row:
        return replace(row, cells=tuple(replace(cell, best=is_best(i, cell)) for i, cell in enumerate(row.cells)))

    return [marked(row) if row in rivals else row for row in rows]


def ordered_metrics(metrics: set[str]) -> list[str]:
    """PCC@k by k, then MSE and MAE."""
    top = sorted((m for m in metrics if m.startswith("pcc@")), key=lambda m: int(m[4:]))
    return top + [m for m in ("mse", "mae") if m in metrics]


def metric_columns(metrics: list[str]) -> tuple[Column, ...]:
    """A column for each metric: a higher PCC is better, and a lower error."""
    return tuple(Column(METRIC_TITLES.get(m, m.upper()), HIGHER if m.startswith("pcc") else LOWER) for m in metrics)


def slug(text: str) -> str:
    """A text as part of a file name or of an anchor: letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def to_csv(table: Table) -> str:
    """The table as CSV, numbers in full precision.

    The column `row` holds the kind of a run's or baseline's row, and the label of a row under a run. A column with
    standard deviations over folds is followed by one for them, `<title> std`, and by `<title> std over seeds` where a
    run has several.
    """
    columns = range(len(table.columns))
    has_spread = [any(row.cells[i].spread is not None for row in table.rows) for i in columns]
    has_seeds = any(row.kind == OVER_SEEDS for row in table.rows)
    head = [table.head or "run", "row"]
    for column, spread in zip(table.columns, has_spread, strict=True):
        head += [column.title, *[f"{column.title} std"] * spread, *[f"{column.title} std over seeds"] * has_seeds]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    run = ""
    for i, row in enumerate(table.rows):
        if row.kind == OVER_SEEDS:
            continue
        run = run if row.kind in SUBROW_KINDS else row.label
        below = table.rows[i + 1] if table.rows[i + 1 : i + 2] and table.rows[i + 1].kind == OVER_SEEDS else None
        line: list[float | str] = [run, row.label if row.kind in SUBROW_KINDS else row.kind]
        for k, cell in enumerate(row.cells):
            value: float | str = cell.value if cell.value is not None else ("" if cell.text == "–" else cell.text)
            line += [value, "" if cell.spread is None else cell.spread] if has_spread[k] else [value]
            over_seeds = below.cells[k].value if below else None
            line += ["" if over_seeds is None else over_seeds] * has_seeds
        writer.writerow(line)
    return text.getvalue()


def to_latex(table: Table) -> str:
    r"""The table as a LaTeX `table` with booktabs rules, which needs \usepackage{booktabs}; its notes stand below."""
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape_latex(table.title)}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
        " & ".join([escape_latex(table.head), *(escape_latex(heading(c)) for c in table.columns)]) + r" \\",
        r"\midrule",
    ]
    for i, row in enumerate(table.rows):
        if starts_part(table.rows, i):
            lines.append(r"\midrule")
        cells = [rf"\textbf{{{escape_latex(c.text)}}}" if c.best else escape_latex(c.text) for c in row.cells]
        label = escape_latex(row.label)
        label = f"{{}}{label}" if label.startswith(("[", "*")) else label  # else the line break before reads it
        lines.append(" & ".join([rf"\quad {label}" if row.kind in SUBROW_KINDS else label, *cells]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\smallskip{{\footnotesize {escape_latex(note)}.}}" for note in table.notes]
    return "\n".join([*lines, r"\end{table}", ""])


def to_markdown(table: Table) -> str:
    """The table as Markdown with a heading, as GitHub and pandoc read it; its notes are a list below."""
    head = [table.head or "run", *(heading(column) for column in table.columns)]
    lines = [
        f"### {escape_markdown(table.title)}",
        "",
        f"| {' | '.join(map(escape_markdown, head))} |",
        f"| :-- |{' --: |' * len(table.columns)}",
    ]
    for row in table.rows:
        label = f"&nbsp;&nbsp;{escape_markdown(row.label)}" if row.kind in SUBROW_KINDS else escape_markdown(row.label)
        cells = [f"**{escape_markdown(c.text)}**" if c.best else escape_markdown(c.text) for c in row.cells]
        lines.append(f"| {' | '.join([label, *cells])} |")
    lines += ["", *(f"- {escape_markdown(note)}." for note in table.notes)] if table.notes else []
    return "\n".join([*lines, ""])


def starts_part(rows: tuple[Row, ...], i: int) -> bool:
    """Whether row i is the first baseline, or the first of other methods: a line separates it from rows before it."""
    return i > 0 and rows[i].kind in (BASELINE, METHOD) and rows[i - 1].kind != rows[i].kind


def heading(column: Column) -> str:
    """A column's title, with an arrow that says which values are better."""
    return f"{column.title} {ARROWS[column.better]}" if column.better in ARROWS else column.title


def escape_latex(text: str) -> str:
    """The text with the characters replaced that LaTeX would read as commands."""
    return "".join(LATEX_ESCAPES.get(c, c) for c in text)


def escape_markdown(text: str) -> str:
    """The text with a backslash before the characters that Markdown would read as marks."""
    return MARKDOWN_SPECIAL.sub(r"\\\g<0>", text)


def write_table_files(folder: Path, table: Table) -> None:
    """Write a table into a folder as CSV, LaTeX and Markdown."""
    for ending, text in (("csv", to_csv(table)), ("tex", to_latex(table)), ("md", to_markdown(table))):
        write_text(folder / f"{table.name}.{ending}", text)
