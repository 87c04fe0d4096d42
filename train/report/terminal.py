"""A table for a terminal of any width: numbers get shorter, then lines take the place of columns; nothing is cut."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hist_cache.console import out
from train.report.table import OVER_SEEDS, SUBROW_KINDS, Cell, Column, Row, Table, heading, number_cell, starts_part

if TYPE_CHECKING:
    import rich.table
    from rich.box import Box
    from rich.console import RenderableType

NOTE_WIDTH = 110  # characters of a note's line at most
LABEL_WIDTH = 12  # characters of a label in one line at least; a longer label takes several lines
FEWER_DIGITS = 2


@dataclass(frozen=True)
class _Layout:
    """How a table's columns are laid out.

    Attributes:
        tight: Without lines between columns, without spaces around ±, and with titles in several lines.
        digits: Decimals of the numbers; None leaves them as they are.
    """

    tight: bool = False
    digits: int | None = None

    @property
    def gap(self) -> int:
        """Characters between two columns."""
        return 2 if self.tight else 3

    def cell(self, cell: Cell, row: Row) -> Cell:
        """A cell as this layout shows it."""
        is_number = cell.value is not None and cell.text == number_cell(cell.value, cell.spread).text
        if self.digits is not None and is_number and row.kind not in (OVER_SEEDS, "p"):
            cell = replace(cell, text=number_cell(cell.value, cell.spread, self.digits).text)
        return replace(cell, text=cell.text.replace(" ± ", "±")) if self.tight else cell

    def title(self, column: Column, widest: int) -> str:
        """The title of a column whose cells are so wide."""
        text = heading(column)
        if not self.tight:
            return text
        words = text.replace(" ↑", "\u00a0↑").replace(" ↓", "\u00a0↓")  # an arrow does not begin a line
        return "\n".join(textwrap.wrap(words, max(widest, 8), break_long_words=False))


ARRANGEMENTS = (_Layout(), _Layout(tight=True), _Layout(tight=True, digits=FEWER_DIGITS))


def to_rich(table: Table, width: int | None = None) -> RenderableType:
    """The table for `console.out.print`: rows under a run are indented and dim, the best values bold.

    Where the columns do not fit, numbers are written more tightly, then with fewer digits, then each in a line.

    Args:
        table: The table.
        width: In characters (default: that of the terminal).
    """
    from rich.console import Group
    from rich.text import Text

    width = out.width if width is None else width
    laid_out = next((found for layout in ARRANGEMENTS if (found := _columns(table, layout, width))), None)
    parts: list[RenderableType] = [laid_out or _lines(table, width)]
    if table.notes:
        notes = [textwrap.fill(note, min(NOTE_WIDTH, width), subsequent_indent="  ") for note in table.notes]
        parts.append(Text("\n".join(notes), style="dim italic"))
    return Group(*parts)


def _columns(table: Table, layout: _Layout, width: int) -> rich.table.Table | None:
    """The table with a column for each of its own; None where that is too wide."""
    from rich import box

    rows = [replace(row, cells=tuple(layout.cell(cell, row) for cell in row.cells)) for row in table.rows]
    widest = [max((len(row.cells[i].text) for row in rows), default=0) for i in range(len(table.columns))]
    titles = [layout.title(column, widest[i]) for i, column in enumerate(table.columns)]
    needed = [max(widest[i], *map(len, titles[i].split("\n"))) + layout.gap for i in range(len(titles))]
    label_width = min(LABEL_WIDTH, max((len(row.label) for row in rows), default=0))
    label_width = max(label_width, *map(len, table.head.split(" ")))
    if label_width + sum(needed) + (0 if layout.tight else 4) > width:
        return None
    grid = _grid(table, width, box.SIMPLE_HEAD if layout.tight else None)
    grid.add_column(_safe(table.head), min_width=label_width, overflow="fold")
    for title in titles:
        grid.add_column(_safe(title), justify="right", no_wrap=True)
    for i, row in enumerate(rows):
        if starts_part(table.rows, i):
            grid.add_section()
        under = row.kind in SUBROW_KINDS
        label = f"  {row.label}" if under else row.label
        grid.add_row(_safe(label), *map(_text, row.cells), style="dim" if under else None)
    return grid


def _lines(table: Table, width: int) -> rich.table.Table:
    """The table with a line for each number, below the label of its row."""
    from rich import box

    grid = _grid(table, width, box.SIMPLE_HEAD)
    grid.add_column(_safe(table.head), overflow="fold")
    grid.add_column("", overflow="fold", justify="right")
    for row in table.rows:
        indent, style = ("  ", "dim") if row.kind in SUBROW_KINDS else ("", None)
        if not indent:
            grid.add_section()
        grid.add_row(_safe(f"{indent}{row.label}"), "", style=style)
        for column, cell in zip(table.columns, row.cells, strict=True):
            grid.add_row(_safe(f"{indent}  {heading(column)}"), _text(cell), style=style)
    return grid


def _grid(table: Table, width: int, box: Box | None) -> rich.table.Table:
    """An empty table with the title, which takes several lines where it is long."""
    from rich.table import Table as RichTable

    title = textwrap.fill(table.title, width)
    if box is None:
        return RichTable(title=_safe(title))
    return RichTable(
        title=_safe(title),
        title_justify="left",
        box=box,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )


def _text(cell: Cell) -> str:
    return f"[bold]{_safe(cell.text)}[/bold]" if cell.best else _safe(cell.text)


def _safe(text: str) -> str:
    from rich.markup import escape

    return escape(text)
