"""The report's page: sections of tables and figures in one HTML file, with its style and script in it."""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.report.context import cache_facts, caveats, configuration_table, origin, variant_lines
from train.report.figures import Picture
from train.report.paper_tables import group_name
from train.report.results import Results
from train.report.table import ARROWS, UNDER, Cell, Table, slug

TEMPLATE, STYLE, SCRIPT = "report.html.jinja", "report.css", "report.js"
GENES_ON_PAGE = 300  # rows; the file has all
LONG = 60  # rows: more scroll in a box of their own


@dataclass(frozen=True)
class Section:
    """A heading, then tables and figures; `more` are those behind a fold, by its summary."""

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    more: Sequence[tuple[str, Sequence[Table | Picture]]] = ()

    @property
    def anchor(self) -> str:
        return slug(f"part {self.title}")  # tables have their own names


def render(results: Results, sections: list[Section], title: str = "", warnings: Sequence[str] = ()) -> str:
    """The page, called by the runs' datasets unless it has a title; `warnings` come before the runs' own.

    Its policy lets nothing in but its own style, script and pictures.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    home = Path(__file__).parent
    style, script = ((home / name).read_text(encoding="utf-8") for name in (STYLE, SCRIPT))
    environment = Environment(
        loader=FileSystemLoader(home), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    folds = sorted({len(run.folds) for run in results.runs})
    names = ", ".join(dict.fromkeys(group_name(run) for run in results.runs))
    return environment.get_template(TEMPLATE).render(
        title=title or names,
        subtitle=f"{_count(len(results.runs), 'run')} of {' or '.join(map(str, folds))} folds",
        date=time.strftime("%Y-%m-%d"),
        sections=sections,
        warnings=[*warnings, *caveats(results)],
        variants=variant_lines(results),
        configuration=configuration_table(results),
        caches=cache_facts(results),
        origins=[(run.label, str(run.folder), origin(run)) for run in results.runs],
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        arrows=ARROWS,
        under=UNDER,
        blocks=blocks,
        rows_on_page=GENES_ON_PAGE,
        long=LONG,
        is_table=lambda item: isinstance(item, Table),
        sort_value=sort_value,
        anchor=slug,
    )


def blocks(table: Table) -> list[list[Any]]:
    """Rows that stay together when sorted: a run's, with those under it."""
    found: list[list[Any]] = []
    for row in table.rows:
        if row.kind in UNDER and found:
            found[-1].append(row)
        else:
            found.append([row])
    return found


def sort_value(cell: Cell) -> str:
    return "" if cell.value is None else repr(float(cell.value))


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _count(n: int, thing: str) -> str:
    return f"{n} {thing}{'s' * (n != 1)}"
