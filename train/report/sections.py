"""The page of several runs, which needs no other file; its tables and figures are also files beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hist_cache.console import progress, size
from hist_cache.errors import InputError
from hist_cache.files import write_text
from train.report.against_ridge import RIDGE_NAMES, against_ridge
from train.report.alike import same_tests
from train.report.analysis import RunSummary, run_regions, summarize_run
from train.report.analysis_tables import (
    gene_table,
    improvement_table,
    radius_table,
    region_gain_table,
    region_table,
    significance_table,
    slide_table,
)
from train.report.baseline_rows import RIDGE_TUNED
from train.report.checklist import checklist_table
from train.report.effects_table import effects_table
from train.report.ensemble_tables import ensemble_tables
from train.report.figures import ReportFigures
from train.report.map_data import map_picker
from train.report.model_table import model_table
from train.report.page import ONE_PAGE, Section, Site, render
from train.report.paper_tables import cost_table, group_name, metrics_table, run_groups, status_table
from train.report.pathway_tables import pathway_tables
from train.report.results import Results, RunResult
from train.report.ridge_table import ridge_table, ridge_text
from train.report.seeds import over_seeds
from train.report.significance import references
from train.report.table import Table, mean_cells, slug, write_table_files

MAX_REPORT_BYTES = 20_000_000  # that a page has with its maps, of which there are fewer where its figures are larger
TEXT_BYTES = 1_500_000  # left for a page's tables and texts
MAPS_TITLE = "Maps"
STATUS_DATASET = "colorectum"  # that table 2's models were trained on
MAIN_METRIC = "pcc@50"  # of the summary and of the slides, where the panel is large enough


@dataclass(frozen=True)
class ReportRequest:
    """What a report can be asked for."""

    against: str | None = None
    """Method or label of the run that the others are tested against (default: full)."""
    genes: tuple[str, ...] = ()
    """Drawn on the tissue; the best predicted where none are named."""
    region: str | None = None
    """Column of `obs` with the region of each spot."""
    data_root: Path | None = None
    """Folder that holds the slides' `st/`, for regions that the predictions do not have."""
    table: int | None = None
    """Number of a table of the paper."""
    pathways: Path | None = None
    """GMT file of gene sets, whose scores are compared."""
    ensemble: bool = False
    """Whether the mean of the predictions of all runs is shown."""
    slide: str | None = None
    """Test slide on which genes are drawn; the first where none is named."""


def write_page(results: Results, page: Path, request: ReportRequest, site: Site = ONE_PAGE) -> Path:
    """Write a page of runs, and beside it `tables/` and `figures/`.

    Args:
        results: the runs.
        page: the HTML file, whose folder is made if it is not there.
        request: what the page shows.
        site: the pages beside it.

    Returns:
        Path of the page.

    Raises:
        InputError: A reference, gene, region or gene set is not there; nothing is written then.
    """
    check_gene_names(results, request)
    regions = region_sections(results, request) if request.region else []
    pathways = pathway_tables(results, request.pathways) if request.pathways else []
    ensembles = ensemble_tables(results) if request.ensemble else []
    summaries: dict[str, RunSummary] = {}
    with progress("reading", len(results.runs), "runs") as meter:
        for run in results.runs:
            summaries[run.label] = summarize_run(run)
            meter.advance(note=run.label)
    sections = [
        section
        for runs in run_groups(results)
        for section in group_sections(results, runs, summaries, page.parent / "figures" / site.folder, request)
    ]
    sections += [Section("Ensemble", tables=ensembles)] if ensembles else []
    sections += [Section("Pathways", tables=pathways)] if pathways else []
    checklist = checklist_table(results, request.against, bool(pathways))
    sections.append(Section("What reviewers ask for", tables=[checklist]))
    models = model_table(results.runs)
    sections += [Section("Models", tables=[models])] if models else []
    sections += [*regions, Section("Memory and time", tables=[cost_table(results, request.table)])]
    if any(run.setting.dataset == STATUS_DATASET for run in results.runs):
        sections.append(Section("Published only", tables=[status_table()]))
    write_tables(sections, page.parent / "tables" / site.folder)
    sections = with_maps(results, sections, summaries, request)
    write_text(page, render(results, sections, site=site))
    return page


def write_tables(sections: Sequence[Section], folder: Path) -> None:
    """Write the tables of a page's sections as CSV, LaTeX and Markdown."""
    for section in sections:
        for table in _all_tables(section):
            write_table_files(folder, table)


def with_maps(
    results: Results, sections: Sequence[Section], summaries: dict[str, RunSummary], request: ReportRequest
) -> list[Section]:
    """The sections of maps with those of all genes and folds, as many as the figures leave room for on the page."""
    groups = run_groups(results)
    used = sum(len(picture.uri) for section in sections for picture in section.every_picture)
    room = (MAX_REPORT_BYTES - TEXT_BYTES - used) / len(groups)
    pickers = {}
    for runs in groups:
        main = main_run(results, runs, request.against)
        pickers[f"{MAPS_TITLE}{_suffix(results, runs)}"] = map_picker(
            runs, main, summaries[main.label].correlations, request.genes, room
        )
    no_room = f"There is no room for maps of further genes: this page has {size(MAX_REPORT_BYTES)} at most."
    filled = []
    for section in sections:
        picker = pickers.get(section.title)
        is_short = section.title in pickers and picker is None
        filled.append(replace(section, maps=picker, text=no_room if is_short else section.text))
    return filled


def _suffix(results: Results, runs: list[RunResult]) -> str:
    """After the titles of a group's sections, where the page has several groups."""
    return f", {group_name(runs[0])}" if len(run_groups(results)) > 1 else ""


def check_gene_names(results: Results, request: ReportRequest) -> None:
    """Check that the genes and the slide to draw are there; `InputError` names what is not."""
    tested = tested_slides(results)
    if request.slide is not None and request.slide not in tested:
        raise InputError(f"--slide {request.slide}: no run tests it; they test {', '.join(sorted(tested))}")
    for runs in run_groups(results):
        main = main_run(results, runs, request.against)
        fold = next((fold for fold in main.folds if request.slide in (None, *fold.pictured)), main.folds[0])
        if missing := [gene for gene in request.genes if gene not in fold.fold.panel]:
            where = f"{main.label}, fold {fold.number}" if fold is not main.folds[0] else main.label
            raise InputError(f"--genes-to-plot {', '.join(missing)}: not in the gene panel of {where}")


def tested_slides(results: Results) -> set[str]:
    """IDs of all slides that a run tests."""
    return {slide for run in results.runs for fold in run.folds for slide in fold.pictured}


def main_run(results: Results, runs: list[RunResult], against: str | None) -> RunResult:
    """The run that the others of a group are compared with; the first where there is none."""
    chosen = references(results, against)
    return next((chosen[r.label] for r in runs if r.label in chosen), runs[0])


def group_sections(
    results: Results, runs: list[RunResult], summaries: dict[str, RunSummary], folder: Path, request: ReportRequest
) -> list[Section]:
    """Everything about one group of runs; a section for which no run has data is left out.

    Args:
        results: all runs.
        runs: the group.
        summaries: by label of the run.
        folder: to draw figures into.
        request: what the report shows.
    """
    group = group_name(runs[0])
    suffix = _suffix(results, runs)
    figures = ReportFigures(results, runs, folder, slug(group))
    main = main_run(results, runs, request.against)
    metrics = main.folds[0].metrics["pooled"]
    metric = MAIN_METRIC if MAIN_METRIC in metrics else next(iter(metrics))
    correlations = {run.label: summaries[run.label].correlations for run in runs}
    significance = [significance_table(results, runs, request.against), effects_table(results, runs, request.against)]
    sections = [
        _metrics_section(results, runs, metric, figures, request),
        _ridge_section(runs, figures),
        Section("Significance", tables=[table for table in significance if table is not None]),
        Section(MAPS_TITLE, pictures=figures.genes(main, request.genes, correlations, request.slide)),
        _geometry_section({run.label: summaries[run.label] for run in runs}, group, figures),
        _genes_section(main, runs, summaries, group, figures),
        Section("Slides", tables=[slide_table(results, runs, metric)]),
        Section("Training", pictures=figures.training(main), more=figures.other_training(main)),
    ]
    return [replace(s, title=f"{s.title}{suffix}") for s in sections if not s.is_empty or s.title == MAPS_TITLE]


def _metrics_section(
    results: Results, runs: list[RunResult], metric: str, figures: ReportFigures, request: ReportRequest
) -> Section:
    pooled, *others = (
        metrics_table(results, runs, "", request.against, request.table, scope)
        for scope in ("pooled", "slide_mean", "complete_niches")
    )
    others = [table for table in others if any(c.value is not None for row in table.rows for c in row.cells)]
    return Section(
        "Metrics",
        summary_text(results, runs, metric),
        [pooled],
        figures.ablation(pooled),
        [("Slide by slide, and spots with a complete niche", others)] if others else [],
    )


def _ridge_section(runs: list[RunResult], figures: ReportFigures) -> Section:
    found = against_ridge(runs)
    table = ridge_table(runs, found)
    if table is None:
        return Section("Against ridge")
    text = ridge_text(found)
    table = replace(table, notes=tuple(note for note in table.notes if note not in text))  # nothing is said twice
    return Section("Against ridge", text, [table], figures.forest(found))


def _geometry_section(summaries: dict[str, RunSummary], group: str, figures: ReportFigures) -> Section:
    radii = radius_table({label: summary.radii for label, summary in summaries.items()}, group)
    pictures, more = figures.geometry_pair(), figures.other_geometry()
    return Section("Geometry", tables=[radii] if radii else [], pictures=pictures, more=more)


def _genes_section(
    main: RunResult, runs: list[RunResult], summaries: dict[str, RunSummary], group: str, figures: ReportFigures
) -> Section:
    correlations = {run.label: summaries[run.label].correlations for run in runs}
    tables = [improvement_table(main, run, summaries) for run in runs if run.label != main.label]
    gains = [table for table in tables if table is not None]
    return Section(
        "Genes",
        tables=[gene_table({main.label: correlations[main.label]} | correlations, group)],
        pictures=[*figures.distributions(correlations), *figures.panel(main)],
        more=[(f"Genes on which {main.label} gains most (table 11)", gains)] if gains else [],
    )


def summary_text(results: Results, runs: list[RunResult], metric: str) -> str:
    """The first sentences of the page: the best run of a group, and its baselines.

    Args:
        results: holds the metrics.
        runs: the group.
        metric: such as `pcc@50`.
    """
    results, runs = over_seeds(results, runs)  # the best of several seeds is chosen by chance
    if not same_tests(runs):
        return "The runs are tested on other slides, spots or genes, so that none of them is called the best."
    pooled = results.metrics[results.metrics["scope"] == "pooled"]
    honest = [run for run in runs if not run.leaks] or runs
    cells = [(mean_cells(pooled[pooled["run"] == run.label], [metric])[0], run) for run in honest]
    cell, best = max(cells, key=lambda pair: pair[0].value or 0.0)
    own = results.baselines[results.baselines["run"] == best.label]
    baselines = {
        name: mean_cells(own[own["baseline"] == name], [metric])[0].text for name in dict.fromkeys(own["baseline"])
    }
    names = {RIDGE_TUNED: RIDGE_NAMES[RIDGE_TUNED]}
    texts = [f"{names.get(name, name.replace('_', ' '))} {text}" for name, text in baselines.items()]
    baseline_text = ", ".join(texts)
    first = (
        f"Highest {metric.upper()}: {best.label}, {cell.text}." if len(runs) > 1 else f"{metric.upper()} {cell.text}."
    )
    return f"{first} What it must beat, on the same data: {baseline_text}."


def region_sections(results: Results, request: ReportRequest) -> list[Section]:
    """Gains by region (table 12), and the regions one by one.

    Raises:
        InputError: There is no such region or gene, or the slides' tables are missing.
    """
    column = str(request.region)
    frames = {run.label: run_regions(run, column, list(request.genes), request.data_root) for run in results.runs}
    chosen = references(results, request.against)
    gains = []
    for reference in {run.label: run for run in chosen.values()}.values():
        others = [run for run in results.runs if chosen.get(run.label) is reference]
        gains.append(region_gain_table(reference, others, frames, column))
    return [Section(f"Regions: {column}", tables=[*gains, region_table(frames, column)])]


def _all_tables(section: Section) -> list[Table]:
    collapsed = [item for _, items in section.more for item in items if isinstance(item, Table)]
    return [*section.tables, *collapsed]
