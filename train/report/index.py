"""The report of runs: one page where they are few, else pages of some of them each, and an index of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hist_cache.console import progress, size
from hist_cache.errors import InputError
from hist_cache.files import write_text
from train.report.against_ridge import averaged_groups
from train.report.context import cache_fingerprints, descriptions
from train.report.ensemble_tables import ensemble_tables
from train.report.index_tables import index_table, index_text, index_warnings, settings_overview
from train.report.page import Origin, Section, Site, render_page
from train.report.paper_tables import group_name, run_groups
from train.report.results import Results, RunResult
from train.report.sections import ReportRequest, check_gene_names, tested_slides, write_page, write_tables
from train.report.significance import REFERENCE
from train.report.table import Cell, Column, Row, Table

PAGE = "report.html"
MAX_RUNS = 24  # of a page


@dataclass(frozen=True)
class ReportPart:
    """The runs of one page.

    Attributes:
        runs: Those that the page is for.
        leaders: What they are tested against, of a group that has several pages: a run, or its seeds. They are on
            each of its pages.
    """

    runs: tuple[RunResult, ...]
    leaders: tuple[RunResult, ...] = ()

    @property
    def results(self) -> Results:
        """All runs on the page, with the labels that they have among all runs."""
        own = {run.folder for run in self.runs}
        return Results((*(run for run in self.leaders if run.folder not in own), *self.runs))

    def against(self, name: str) -> str:
        """What its runs are tested against: the method `name`, where all runs of it are leaders, else the first one."""
        named = {run.folder for run in self.results.runs if run.method == name}
        is_method = len(self.leaders) > 1 and named == {run.folder for run in self.leaders}
        return name if is_method else self.leaders[0].label


def is_paged(results: Results) -> bool:
    """Whether the runs are too many for one page."""
    return len(results.runs) > MAX_RUNS


def write_report(results: Results, folder: Path, request: ReportRequest) -> Path:
    """Write `report.html`, `tables/` and `figures/` into a folder; of many runs also `report-001.html`, ...

    Args:
        results: the runs.
        folder: made if it is not there.
        request: what the report shows.

    Returns:
        Path of the page, or of the index.

    Raises:
        InputError: A reference, gene, region or gene set is not there.
    """
    if not is_paged(results):
        return write_page(results, folder / PAGE, request)
    if request.against and not any(_is(run, request.against) for run in results.runs):
        raise InputError(f"--against {request.against}: no run has this label or method")
    if request.slide is not None and request.slide not in tested_slides(results):
        raise InputError(f"--slide {request.slide}: no run tests it")
    ensembles = ensemble_tables(results) if request.ensemble else []
    parts = page_parts(results, request.against)
    requests = [_request_of(part, request) for part in parts]
    for part, own in zip(parts, requests, strict=True):
        check_gene_names(part.results, own)
    files = [f"report-{i:03d}.html" for i in range(1, 1 + len(parts))]
    with progress("writing", len(parts), "pages") as meter:
        for i, (part, own) in enumerate(zip(parts, requests, strict=True)):
            pages = [("All runs", PAGE)]
            pages += [("Page before", files[i - 1])] if i else []
            pages += [("Next page", files[i + 1])] if i + 1 < len(files) else []
            write_page(part.results, folder / files[i], own, Site(pages, folder=f"{i + 1:03d}"))
            meter.advance(note=files[i])
    return _write_index(results, parts, [folder / file for file in files], ensembles)


def _request_of(part: ReportPart, request: ReportRequest) -> ReportRequest:
    """What one page is asked for; `--against` holds where the page has such a run."""
    has_own = any(_is(run, request.against) for run in part.results.runs)
    alone = request.against if has_own else None
    against = part.against(request.against or REFERENCE) if part.leaders else alone
    slide = request.slide if request.slide in tested_slides(part.results) else None
    return replace(request, against=against, ensemble=False, slide=slide)


def _is(run: RunResult, name: str | None) -> bool:
    return name in (run.label, run.method)


def page_parts(results: Results, against: str | None = None) -> list[ReportPart]:
    """The runs in pages: groups that fit are kept together, and a larger one has pages of its own, seeds side by side.

    Args:
        results: all runs.
        against: method or label of the run that the others are tested against (default: full).
    """
    parts: list[ReportPart] = []
    small: list[RunResult] = []
    for runs in run_groups(results):
        if len(runs) > MAX_RUNS:
            leaders = _leaders(runs, against or REFERENCE)
            parts += [ReportPart(tuple(page), leaders) for page in _pages(runs)]
        else:
            if len(small) + len(runs) > MAX_RUNS:
                parts.append(ReportPart(tuple(small)))
                small = []
            small += runs
    return [*parts, ReportPart(tuple(small))] if small else parts


def _leaders(runs: list[RunResult], name: str) -> tuple[RunResult, ...]:
    """The first run of this label or method, of a method with its other seeds; () where there is none."""
    first = next((run for run in runs if _is(run, name)), None)
    if first is None:
        return ()
    seeds = next((group for group in averaged_groups(runs) if first in group), [first])
    return tuple(seeds) if name == first.method and len(seeds) < MAX_RUNS else (first,)


def _pages(runs: list[RunResult]) -> list[list[RunResult]]:
    """The runs in order on pages, seeds that are averaged on the same one; more seeds than a page has are divided."""
    seeds = {group[0].folder: group for group in averaged_groups(runs)}
    later = {run.folder for group in seeds.values() for run in group[1:]}
    pages: list[list[RunResult]] = [[]]
    for run in runs:
        group = [] if run.folder in later else seeds.get(run.folder, [run])
        for start in range(0, len(group), MAX_RUNS):
            together = group[start : start + MAX_RUNS]
            if len(pages[-1]) + len(together) > MAX_RUNS:
                pages.append([])
            pages[-1] += together
    return pages


def _write_index(
    results: Results, parts: Sequence[ReportPart], files: Sequence[Path], ensembles: Sequence[Table]
) -> Path:
    """Write the page of all runs, with links to the pages that have more of them; returns its path."""
    groups = run_groups(results)
    text = (
        f"{len(results.runs):,} runs are on {len(files)} pages of {MAX_RUNS} runs at most, with p-values, maps and "
        "figures; a run that others are tested against is on each of their pages."
    )
    sections = [Section("Pages", text, [_pages_table(parts, files)])]
    for runs in groups:
        title = f"Metrics, {group_name(runs[0])}" if len(groups) > 1 else "Metrics"
        table = index_table(runs)
        sections.append(Section(title, index_text(table), [table]))
    sections += [Section("Ensemble", tables=ensembles)] if ensembles else []
    page = files[0].parent / PAGE
    write_tables(sections, page.parent / "tables")
    links = {run.label: file.name for part, file in zip(parts, files, strict=True) for run in part.runs}
    links |= {file.name: file.name for file in files}
    names = ", ".join(dict.fromkeys(group_name(runs[0]) for runs in groups))
    made = Origin(settings_overview(results), descriptions(results), cache_fingerprints(results))
    site = Site(rows=links, max_rows=len(results.runs) + len(files) + 1000)
    subtitle = f"{len(results.runs):,} runs on {len(files)} pages"
    write_text(page, render_page(names, subtitle, sections, index_warnings(results), made, site))
    return page


def _pages_table(parts: Sequence[ReportPart], files: Sequence[Path]) -> Table:
    rows = []
    for part, file in zip(parts, files, strict=True):
        n_bytes = file.stat().st_size
        count = Cell(f"{len(part.runs)}", len(part.runs))
        ends = Cell(part.runs[0].label), Cell(part.runs[-1].label)
        rows.append(Row(file.name, "run", (count, *ends, Cell(size(n_bytes), n_bytes))))
    columns = tuple(map(Column, ("runs", "first", "last", "size")))
    return Table("pages", "Pages", columns, tuple(rows), (), "page")
