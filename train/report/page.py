"""The report's page: sections of tables and figures in one HTML file, which holds its style and script too."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from train.report.context import cache_fingerprints, configuration_table, descriptions, origin, result_warnings
from train.report.figures import Picture
from train.report.map_codes import map_script, script_hash
from train.report.map_data import MapPicker
from train.report.paper_tables import group_name
from train.report.results import Results
from train.report.table import ARROWS, SUBROW_KINDS, Cell, Row, Table, slug

TEMPLATE, STYLE, SCRIPT, MAPS_SCRIPT = "page.html.jinja", "page.css", "page.js", "maps.js"
MAX_ROWS = 300  # of a table on the page; its CSV file has all
MAX_VISIBLE_ROWS = 60  # a table with more scrolls in a box of its own


@dataclass(frozen=True)
class Section:
    """A heading, then tables and figures."""

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()
    more: Sequence[tuple[str, Sequence[Table | Picture]]] = ()
    """Tables and figures that are shown on a click, by the line that is clicked."""
    maps: MapPicker | None = None
    """Maps of which a reader chooses, above the figures."""

    @property
    def anchor(self) -> str:
        """What links to the section name; tables have anchors of their own."""
        return slug(f"part {self.title}")

    @property
    def every_picture(self) -> list[Picture]:
        """All figures, also those that are shown on a click."""
        return [*self.pictures, *(item for _, items in self.more for item in items if isinstance(item, Picture))]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing below the heading."""
        return not (self.text or self.tables or self.pictures or self.more or self.maps)


@dataclass(frozen=True)
class Origin:
    """How what a page shows was made.

    Attributes:
        configuration: The settings.
        descriptions: Names and descriptions of what was run.
        caches: Short hash and facts of the caches that were read.
        origins: Label, folder, and when and by what it was made.
    """

    configuration: Table
    descriptions: Sequence[tuple[str, str]] = ()
    caches: Sequence[tuple[str, str]] = ()
    origins: Sequence[tuple[str, str, str]] = ()


@dataclass(frozen=True)
class Site:
    """A page among others beside it.

    Attributes:
        pages: Titles and files of the other pages that the page names first.
        rows: Label of a table's row -> the file that has more of it.
        max_rows: Of a table on the page.
        folder: Of the page's files within `tables/` and `figures/`; "" where there is one page.
    """

    pages: Sequence[tuple[str, str]] = ()
    rows: Mapping[str, str] = field(default_factory=dict)
    max_rows: int = MAX_ROWS
    folder: str = ""


ONE_PAGE = Site()


def render(
    results: Results,
    sections: Sequence[Section],
    title: str = "",
    warnings: Sequence[str] = (),
    site: Site = ONE_PAGE,
) -> str:
    """The page of finished runs as HTML, as by `render_page`.

    Args:
        results: the runs, for the subtitle, the warnings and the settings.
        sections: from top to bottom.
        title: of the page (default: the names of the runs' groups).
        warnings: shown before those of the runs.
        site: the pages beside it.
    """
    fold_counts = sorted({len(run.folds) for run in results.runs})
    names = ", ".join(dict.fromkeys(group_name(run) for run in results.runs))
    made = Origin(
        configuration_table(results),
        descriptions(results),
        cache_fingerprints(results),
        [(run.label, str(run.folder), origin(run)) for run in results.runs],
    )
    subtitle = f"{_count(len(results.runs), 'run')} of {' or '.join(map(str, fold_counts))} folds"
    every_warning = list(dict.fromkeys([*warnings, *result_warnings(results)]))
    return render_page(title or names, subtitle, sections, every_warning, made, site)


def render_page(
    title: str,
    subtitle: str,
    sections: Sequence[Section],
    warnings: Sequence[str],
    made: Origin,
    site: Site = ONE_PAGE,
) -> str:
    """A page as HTML, whose security policy allows nothing but its own style, script and pictures.

    Args:
        title: of the page.
        subtitle: below it, beside the date.
        sections: from top to bottom.
        warnings: shown before them.
        made: shown after them.
        site: the pages beside it.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    folder = Path(__file__).parent
    style, script, maps_script = ((folder / name).read_text("utf-8") for name in (STYLE, SCRIPT, MAPS_SCRIPT))
    if any(section.maps for section in sections):
        script = f"{map_script()}{script}{maps_script}"
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(
        title=title,
        subtitle=subtitle,
        date=time.strftime("%Y-%m-%d"),
        sections=sections,
        warnings=warnings,
        descriptions=made.descriptions,
        configuration=made.configuration,
        caches=made.caches,
        origins=made.origins,
        style=Markup(style),
        script=Markup(script),
        style_hash=script_hash(style),
        script_hash=script_hash(script),
        arrows=ARROWS,
        subrow_kinds=SUBROW_KINDS,
        row_groups=row_groups,
        site=site,
        max_visible_rows=MAX_VISIBLE_ROWS,
        is_table=lambda item: isinstance(item, Table),
        sort_value=sort_value,
    )


def row_groups(table: Table) -> list[list[Row]]:
    """Rows that stay together when sorted: a run's row with those under it."""
    groups: list[list[Row]] = []
    for row in table.rows:
        if row.kind in SUBROW_KINDS and groups:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def sort_value(cell: Cell) -> str:
    """The number that the page sorts a cell by; "" where it has none."""
    return "" if cell.value is None else repr(float(cell.value))


def _count(n: int, thing: str) -> str:
    return f"{n} {thing}{'s' * (n != 1)}"
