"""hist-report: finished runs as tables, figures and one page."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hist_cache.console import out, say, warn
from hist_cache.errors import InputError, keeping
from hist_cache.options import CommandOptions, all_option_names, flag, folder_option, option, parse, positional, run
from hist_cache.values import COUNT, Interval
from train.fit.config import SEEDS
from train.report.published import GENE_TABLE, P_VALUE_TABLE, REGION_TABLE, STATUS_TABLE

if TYPE_CHECKING:
    from train.report.paper_figures.style import Format
    from train.report.results import Results
    from train.report.sections import ReportRequest
    from train.report.table import Table

PAPER_DPI = Interval(72, 2400)
DESCRIPTION = """Lay finished runs out as the paper does, with its numbers beside and p-values against one of them, and
write a report: one page with tables, figures, configuration and warnings, which needs nothing else to be read."""


@dataclass(frozen=True)
class ReportOptions(CommandOptions):
    """The options of hist-report."""

    runs: tuple[str, ...] = positional(
        "folders: of a run, of a dataset, or of all runs; with --classify CSV files of hist-predict --pseudobulk",
        "RUNS",
    )
    out: str | None = option(
        None,
        "where to write report.html, tables/, figures/ (default: <dataset's runs>/report; with --classify: classify/ "
        "beside the first file)",
        "DIR",
        group="output",
    )
    format: Literal["rich", "csv", "latex", "markdown"] = option("rich", "of the tables printed")
    figures: str | None = option(
        None, "also figures for a paper into figures/, in these formats: any of svg, pdf, png, with commas", "FORMATS"
    )
    dpi: int = option(
        300, "of the PNG files of --figures, and of what SVG and PDF hold as pictures", "N", within=PAPER_DPI
    )
    table: int | None = option(
        None, "only the runs and tables of this table of the paper", "N", within=COUNT, group="content"
    )
    against: str | None = option(None, "the variant or run to test the others against (default: full)", "VARIANT")
    genes_to_plot: str | None = option(
        None, "genes on the maps and by region, such as COL1A1,FN1 (default: the best)", "NAMES"
    )
    slide: str | None = option(None, "test slide on which the genes are drawn (default: the first)", "ID")
    region: str | None = option(
        None, "metrics (with --table 11: genes) by this column of obs: of the predictions, else of the slides", "COLUMN"
    )
    pathways: str | None = option(
        None, "gene sets as GMT: a table of how well their scores are predicted (mean z-scores of their genes)", "FILE"
    )
    ensemble: bool = option(False, "also the mean of the predictions of all runs, over recipes, seeds or models")
    data_root: str | None = option(None, "folder that holds the slides' st/ (default: $HIST_DATA)", "D")
    classify: str | None = option(
        None,
        "how well predicted expression tells classes of slides apart (table 2), with CSV files instead of runs: FILE "
        "has the columns slide, label and, where known, patient",
        "FILE",
        group="classes of slides",
    )
    seed: int = option(42, "of --classify: forests, folds, permutations and draws", "N", within=SEEDS)
    debug: bool = option(False, "show a traceback for every error", group="running")


def main(argv: Sequence[str] | None = None) -> int:
    """Run hist-report; returns the exit code."""
    options = parse(ReportOptions, "hist-report", DESCRIPTION, argv)
    return run(make_report, options, options.debug)


def make_report(options: ReportOptions) -> int:
    """Print the tables and warnings, and write the report; returns the exit code."""
    from train.report.context import result_warnings
    from train.report.index import is_paged, write_report
    from train.report.index_tables import index_warnings
    from train.report.paper_figures.style import figure_formats
    from train.report.reading import read_results
    from train.report.selection import runs_of_table

    check_report_options(options)
    formats = figure_formats(options.figures) if options.figures is not None else ()
    if options.classify is not None:
        return report_classes(options)
    results = read_results(options.runs)
    if options.table not in (None, STATUS_TABLE, P_VALUE_TABLE, GENE_TABLE, REGION_TABLE):
        results = runs_of_table(results, int(options.table or 0))
    request = report_request(options)
    print_tables(terminal_tables(results, request), options.format)
    for sentence in index_warnings(results) if is_paged(results) else result_warnings(results):
        warn(sentence)
    folder = Path(options.out) if options.out else results.runs[0].folder.parent / "report"
    with output_beside_tables(options.format), keeping(lambda: "all runs"):
        page = write_report(results, folder, request)
        say(f"{page} ({page.stat().st_size / 1e6:.1f} MB); {folder / 'tables'}: the same as CSV, LaTeX and Markdown")
        if formats:
            write_figures(results, folder / "figures", options, formats)
    return 0


def write_figures(results: Results, folder: Path, options: ReportOptions, formats: tuple[Format, ...]) -> None:
    """Write the figures for a paper, and say what they are and which cannot be drawn."""
    from train.report.paper_figures.written import PaperRequest, write_paper_figures

    asked = report_request(options)
    request = PaperRequest(formats, options.dpi, asked.against, asked.genes, asked.slide, asked.data_root)
    paths, remarks = write_paper_figures(results, folder, request)
    for sentence in remarks:
        warn(sentence)
    say(f"{folder}: {len(paths)} figures for a paper ({', '.join(formats)}), and their captions")


def output_beside_tables(format: str) -> AbstractContextManager[Any]:
    """Where lines go that are no table: standard error where a program reads the tables from standard output."""
    return nullcontext() if format == "rich" else redirect_stdout(sys.stderr)


def report_classes(options: ReportOptions) -> int:
    """Classify slides by predicted expression, print the tables and write the files; returns the exit code."""
    from train.report.classify import ClassifySettings, classify_cohort
    from train.report.classify_data import read_cohort
    from train.report.classify_output import CLASSIFY_FOLDER, classification_tables, write_classification

    label_file, settings = Path(options.classify or ""), ClassifySettings(seed=options.seed)
    with output_beside_tables(options.format):
        cohort = read_cohort(label_file, [Path(path) for path in options.runs], settings.folds)
        for sentence in cohort.remarks:
            say(sentence)
        for sentence in cohort.warnings:
            warn(sentence)
        found = classify_cohort(cohort, settings)
    print_tables(classification_tables(cohort, found, settings), options.format)
    first_file = next(iter(cohort.files.values()))
    folder = Path(options.out) if options.out else first_file.parent / CLASSIFY_FOLDER
    with output_beside_tables(options.format), keeping(lambda: "the tables above"):
        page = write_classification(folder, cohort, found, settings, label_file)
        say(f"{page}; beside it probabilities, areas and genes as CSV, settings and seeds as JSON, the figure as PNG")
    return 0


def check_report_options(options: ReportOptions) -> None:
    """`InputError` for a table that is not there, and for options that nothing of what is asked for would read."""
    from train.options import TABLES
    from train.report.paper_tables import COST_TABLE

    if options.classify is not None:
        of_both = {"runs", "out", "format", "classify", "seed", "debug"}
        if others := [flag(name) for name in all_option_names(ReportOptions) if name in options.given - of_both]:
            raise InputError(f"{', '.join(others)}: not with --classify, which reads no runs; leave it out")
    elif "seed" in options.given:
        raise InputError(f"--seed {options.seed}: is of --classify; tables of runs draw nothing")
    known = sorted({*map(int, TABLES.split(", ")), STATUS_TABLE, P_VALUE_TABLE, GENE_TABLE, REGION_TABLE})
    if options.table is not None and options.table not in known:
        raise InputError(f"--table {options.table}: there are {', '.join(map(str, known))}")
    if options.table == COST_TABLE and options.against is not None:
        raise InputError(f"--against {options.against}: --table {COST_TABLE} compares nothing; leave it out")
    if options.table == REGION_TABLE and options.region is None:
        raise InputError("--table 12 needs --region COLUMN, a column of obs that names each spot's region")
    if options.data_root is not None and options.region is None and options.figures is None:
        raise InputError(
            f"--data-root {options.data_root}: is where --region looks for its column, and --figures for the size of "
            "a pixel; give one of them too"
        )
    if "dpi" in options.given and options.figures is None:
        raise InputError(f"--dpi {options.dpi}: is of the figures for a paper; give --figures svg,pdf,png too")


def report_request(options: ReportOptions) -> ReportRequest:
    """What the options ask of the report."""
    from train.report.sections import ReportRequest

    has_data = options.data_root or "HIST_DATA" in os.environ
    data_root = folder_option(options.data_root, "HIST_DATA", "") if has_data else None
    genes = tuple(dict.fromkeys(g.strip() for g in (options.genes_to_plot or "").split(",") if g.strip()))
    pathways = Path(options.pathways) if options.pathways is not None else None
    return ReportRequest(
        *(options.against, genes, options.region, data_root, options.table, pathways, options.ensemble, options.slide)
    )


def terminal_tables(results: Results, request: ReportRequest) -> list[Table]:
    """The tables to print: those of the table asked for, else metrics, ridge and cost; then what else was asked for.

    Raises:
        InputError: The table needs another option, or runs that are not there.
    """
    from train.report.ensemble_tables import ensemble_tables
    from train.report.index import is_paged
    from train.report.index_tables import index_table
    from train.report.paper_tables import cost_table, results_tables, run_groups, status_table
    from train.report.pathway_tables import pathway_tables
    from train.report.ridge_table import ridge_tables

    if request.table == STATUS_TABLE:
        return [status_table()]
    if request.table == GENE_TABLE:
        return gene_tables(results, request)
    if request.table == REGION_TABLE:
        tables = []
    elif request.table == P_VALUE_TABLE:
        tables = significance_tables(results, request)
    elif is_paged(results):
        tables = [index_table(runs) for runs in run_groups(results)]
    else:
        tables = results_tables(results, request.against, request.table)
    if request.table is None and not is_paged(results):
        tables += [*ridge_tables(results), cost_table(results)]
    tables += ensemble_tables(results) if request.ensemble else []
    tables += pathway_tables(results, request.pathways) if request.pathways is not None else []
    return tables + (region_tables(results, request) if request.region is not None else [])


def significance_tables(results: Results, request: ReportRequest) -> list[Table]:
    """Table 4: differences and p-values for each group of runs; `InputError` where no runs can be compared."""
    from train.report.analysis_tables import significance_table
    from train.report.paper_tables import run_groups

    tables = [significance_table(results, runs, request.against) for runs in run_groups(results)]
    if not any(tables):
        raise InputError("--table 4: no two runs that can be compared; give runs of full and of another variant")
    return [table for table in tables if table is not None]


def gene_tables(results: Results, request: ReportRequest) -> list[Table]:
    """Table 11: each run's reference over it, gene by gene, in each region where `--region` is given.

    Raises:
        InputError: No two runs can be compared, or there is no such region.
    """
    from train.report.analysis import summarize_regions, summarize_run
    from train.report.analysis_tables import improvement_table
    from train.report.significance import references

    chosen = references(results, request.against)
    labels = {*chosen, *(r.label for r in chosen.values())}
    runs = [r for r in results.runs if r.label in labels]
    if request.region is None:
        by_region = {"": {r.label: summarize_run(r) for r in runs}}
    else:
        of_runs = {r.label: summarize_regions(r, request.region, request.data_root) for r in runs}
        names = sorted({name for of_run in of_runs.values() for name in of_run})
        by_region = {name: {label: s[name] for label, s in of_runs.items() if name in s} for name in names}
    tables = [
        improvement_table(chosen[run.label], run, summaries, region)
        for region, summaries in by_region.items()
        for run in runs
        if run.label in chosen and {run.label, chosen[run.label].label} <= summaries.keys()
    ]
    if not any(tables):
        raise InputError("--table 11: no two runs that can be compared; give runs of full and of another variant")
    return [table for table in tables if table is not None]


def region_tables(results: Results, request: ReportRequest) -> list[Table]:
    """Table 12: gains by region, and the regions one by one; `InputError` as from `region_sections`."""
    from train.report.sections import region_sections

    return [table for section in region_sections(results, request) for table in section.tables]


def print_tables(tables: Sequence[Table], format: str) -> None:
    """Print tables for people ("rich"), or for a program, with nothing else on standard output."""
    from train.report.table import to_csv, to_latex, to_markdown
    from train.report.terminal import to_rich

    writers = {"csv": to_csv, "latex": to_latex, "markdown": to_markdown}
    for i, table in enumerate(tables):
        if format == "rich":
            out.print(to_rich(table))
        else:
            sys.stdout.write(("\n" if i else "") + writers[format](table))
    sys.stdout.flush()
