"""Rows of a user's own beside those of this program: datasets, encoders, variants, protocols, recipes, search spaces.

A command reads them from one file when it starts (`hist_cache.own_file`). Whoever looks a name up in a table of the
program looks here too. They are kept for the process, as the program's own tables are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

TableRows = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class OwnTables:
    """TableRows by the names of their tables, in the form of the program's TOML files.

    Attributes:
        source: What they were read from, for messages; "" where there are none.
        rows: Table -> name -> row.
    """

    source: str = ""
    rows: Mapping[str, TableRows] = field(default_factory=dict)

    def place(self, table: str, name: str) -> str:
        """Where a row stands, for messages: `hist.toml: [variants.mine]`."""
        return f"{self.source}: [{table}.{name}]"


_current = [OwnTables()]


def own_tables() -> OwnTables:
    """The tables of this process."""
    return _current[0]


def own_rows(table: str) -> dict[str, dict[str, Any]]:
    """TableRows of a table by name; {} where the user has none."""
    return {name: dict(row) for name, row in own_tables().rows.get(table, {}).items()}


def set_own_tables(tables: OwnTables) -> None:
    """Replace the tables of this process."""
    _current[0] = tables


def add_own_row(table: str, name: str, row: Mapping[str, Any], source: str) -> None:
    """Add a row, in place of one of the same name.

    Args:
        table: Its table.
        name: Its name.
        row: In the form of the program's TOML file.
        source: What it was read from, where the process has no rows yet.
    """
    before = own_tables()
    rows = {**before.rows, table: {**before.rows.get(table, {}), name: row}}
    set_own_tables(replace(before, source=before.source or source, rows=rows))
