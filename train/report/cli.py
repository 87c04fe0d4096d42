"""hist-report: finished runs as tables, figures and one page."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hist_cache.console import err, out, say, warn
from hist_cache.errors import InputError
from hist_cache.options import folder_option, option, parse, positional, run

if TYPE_CHECKING:
    from train.report.results import Results
    from train.report.sections import Wishes
    from train.report.table import Table

DESCRIPTION = """Lay finished runs out as the paper does, with its numbers beside and p-values against one of them, and
write a report: one page with tables, figures, configuration and warnings, which needs nothing else to be read."""
P_VALUES, COSTS, GENES, REGIONS = 4, 5, 11, 12  # tables of the paper that are not a grid's


@dataclass(frozen=True)
class Config:
    runs: tuple[str, ...] = positional("folders: of a run, of a dataset, or of all runs", "RUNS")
    out: str | None = option(
        None, "where to write report.html, tables/, figures/ (default: <dataset's runs>/report)", "DIR"
    )
    format: Literal["rich", "csv", "latex"] = option("rich", "of the tables printed")
    table: int | None = option(None, "only the runs and tables of this table of the paper", "N")
    against: str | None = option(None, "the variant or run to test the others against (default: full)", "VARIANT")
    genes_to_plot: str | None = option(None, "genes on the maps, such as COL1A1,FN1 (default: the best)", "NAMES")
    region: str | None = option(None, "metrics by this column of obs: of the predictions, else of the slides", "COLUMN")
    data_root: str | None = option(None, "folder that holds the slides' st/ (default: $HIST_DATA)", "D")
    debug: bool = option(False, "show a traceback for every error")


def main(argv: Sequence[str] | None = None) -> int:
    config = parse(Config, "hist-report", DESCRIPTION, argv)
    return run(report, config, config.debug)


def report(config: Config) -> int:
    """Run the command; returns the exit code."""
    from train.report.context import caveats
    from train.report.results import read_results
    from train.report.sections import Wishes, write_report
    from train.report.selection import runs_of_table

    results = read_results(config.runs)
    if config.table not in (None, P_VALUES, GENES, REGIONS):
        results = runs_of_table(results, int(config.table or 0))
    data_root = (
        folder_option(config.data_root, "HIST_DATA", "") if config.data_root or "HIST_DATA" in os.environ else None
    )
    genes = tuple(dict.fromkeys(g.strip() for g in (config.genes_to_plot or "").split(",") if g.strip()))
    wishes = Wishes(config.against, genes, config.region, data_root, config.table)
    tables = printed(results, wishes)
    show(tables, config.format)
    for sentence in caveats(results):
        warn(sentence)
    folder = Path(config.out) if config.out else results.runs[0].folder.parent / "report"
    with nullcontext() if config.format == "rich" else redirect_stdout(sys.stderr):  # whose output is a program's input
        page = write_report(results, folder, wishes)
    told = f"{page} ({page.stat().st_size / 1e6:.1f} MB); {folder / 'tables'}: the same as CSV and LaTeX"
    if config.format == "rich":
        say(told)
    else:
        err.print(told, markup=False)
    return 0


def printed(results: Results, wishes: Wishes) -> list[Table]:
    """The tables for the terminal: of the paper's number, or metrics and cost."""
    from train.report.paper_tables import cost_table, grouped, results_tables

    if wishes.table == P_VALUES:
        from train.report.analysis_tables import significance_table

        found = [significance_table(results, runs, wishes.against) for runs in grouped(results)]
        if not any(found):
            raise InputError("--table 4: no two runs that can be compared; give runs of full and of another variant")
        return [table for table in found if table is not None]
    if wishes.table == GENES:
        return gene_tables(results, wishes)
    if wishes.table == REGIONS:
        from train.report.sections import region_sections

        if wishes.region is None:
            raise InputError("--table 12 needs --region COLUMN, a column of obs that names each spot's region")
        return [t for section in region_sections(results, wishes) for t in section.tables]
    tables = results_tables(results, wishes.against, wishes.table)
    if wishes.region is not None:
        from train.report.sections import region_sections

        tables += [t for section in region_sections(results, wishes) for t in section.tables]
    return tables if wishes.table is not None else [*tables, cost_table(results)]


def gene_tables(results: Results, wishes: Wishes) -> list[Table]:
    """Table 11: each run's reference over it, gene by gene."""
    from train.report.analysis import digest
    from train.report.analysis_tables import improvement_table
    from train.report.significance import references

    chosen = references(results, wishes.against)
    if not chosen:
        raise InputError("--table 11: no two runs that can be compared; give runs of full and of another variant")
    wanted = {*chosen, *(r.label for r in chosen.values())}
    correlations = {r.label: digest(r).correlations for r in results.runs if r.label in wanted}
    return [improvement_table(reference.label, label, correlations) for label, reference in chosen.items()]


def show(tables: Sequence[Table], how: str) -> None:
    """Print tables: for people, or for a program (then nothing else on standard output)."""
    from train.report.table import to_csv, to_latex, to_rich

    for i, table in enumerate(tables):
        if how == "rich":
            out.print(to_rich(table))
        else:
            text = to_csv(table) if how == "csv" else to_latex(table)
            sys.stdout.write(("\n" if i else "") + text)
    sys.stdout.flush()
