"""A table as text: for the terminal, as CSV, as LaTeX."""

from __future__ import annotations

import csv
import io
import textwrap
from typing import TYPE_CHECKING

from train.layout import HIGHER, LOWER, UNDER, Row, Table

if TYPE_CHECKING:
    import rich.table

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
