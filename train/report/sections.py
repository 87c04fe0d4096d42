"""The report of a study: one page that needs nothing else, with the tables as files beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hist_cache.console import progress
from hist_cache.errors import InputError
from hist_cache.files import write_text
from train.report.figures import Drawer
from train.report.page import Section, render
from train.report.paper_tables import cost_table, group_name, grouped, metrics_table
from train.report.results import Results, RunResult
from train.report.table import Table, over_folds, slug, to_csv, to_latex

if TYPE_CHECKING:
    from train.report.analysis import Digest


@dataclass(frozen=True)
class Wishes:
    """What a report may be asked for."""

    against: str | None = None
    genes: tuple[str, ...] = ()
    region: str | None = None
    data_root: Path | None = None
    table: int | None = None


def write_report(results: Results, folder: Path, wishes: Wishes) -> Path:
    """Write `report.html`, `tables/` and `figures/` into `folder`; returns the page's path.

    `InputError` for a reference, gene or region that is not there, before anything is written.
    """
    from train.report.analysis import digest

    check_genes(results, wishes)
    sections = region_sections(results, wishes) if wishes.region else []
    with progress("reading", len(results.runs), "runs") as meter:
        digests: dict[str, Digest] = {}
        for run in results.runs:
            digests[run.label] = digest(run)
            meter.advance(note=run.label)
    groups = grouped(results)
    sections = [
        section for runs in groups for section in group_sections(results, runs, digests, folder, wishes)
    ] + sections
    sections.append(Section("Memory and time", tables=[cost_table(results, wishes.table)]))
    for section in sections:
        for table in all_tables(section):
            write_tables(folder / "tables", table)
    page = folder / "report.html"
    write_text(page, render(results, sections))
    return page


def group_sections(
    results: Results, runs: list[RunResult], digests: dict[str, Digest], folder: Path, wishes: Wishes
) -> list[Section]:
    """All about the runs that predict one dataset."""
    from train.report import analysis_tables as more_tables

    group = group_name(runs[0])
    several = f", {group}" if len(grouped(results)) > 1 else ""
    drawer = Drawer(results, runs, folder / "figures", slug(group))
    main = metrics_table(results, runs, "", wishes.against, wishes.table)
    scopes = [
        metrics_table(results, runs, "", wishes.against, wishes.table, s) for s in ("slide_mean", "complete_niches")
    ]
    scopes = [table for table in scopes if any(c.value is not None for row in table.rows for c in row.cells)]
    significance = more_tables.significance_table(results, runs, wishes.against)
    correlations = {run.label: digests[run.label].correlations for run in runs}
    radii = {run.label: digests[run.label].radii for run in runs}
    lead = lead_of(results, runs, wishes.against)
    others = [r.label for r in runs if r is not lead]
    ordered = {lead.label: correlations[lead.label]} | correlations
    gains = [more_tables.improvement_table(lead.label, other, correlations) for other in others]
    metric = "pcc@50" if "pcc@50" in lead.folds[0].metrics["pooled"] else next(iter(lead.folds[0].metrics["pooled"]))
    return [
        Section(
            f"Metrics{several}",
            in_brief(results, runs, metric),
            [main],
            drawer.ablation(main),
            [("Slide by slide, and spots with a complete niche", scopes)] if scopes else [],
        ),
        *([Section(f"Significance{several}", tables=[significance])] if significance else []),
        Section(f"Maps{several}", pictures=drawer.genes(lead, wishes.genes, correlations), more=drawer.maps()),
        Section(
            f"Geometry{several}",
            tables=[more_tables.radius_table(radii, group)],
            pictures=drawer.geometry_pair(),
            more=drawer.geometry(),
        ),
        Section(
            f"Genes{several}",
            tables=[more_tables.gene_table(ordered, group)],
            pictures=[*drawer.distributions(correlations), *drawer.panel(lead)],
            more=[(f"Genes on which {lead.label} gains most (table 11)", gains)] if gains else [],
        ),
        Section(f"Slides{several}", tables=[more_tables.slide_table(results, runs, metric)]),
        Section(f"Training{several}", pictures=drawer.training(lead), more=drawer.training_of_others(lead)),
    ]


def lead_of(results: Results, runs: list[RunResult], against: str | None) -> RunResult:
    """The run that the others are compared with; the first where there is none."""
    from train.report.significance import references

    chosen = references(results, against)
    return next((chosen[r.label] for r in runs if r.label in chosen), runs[0])


def check_genes(results: Results, wishes: Wishes) -> None:
    for runs in grouped(results):
        lead = lead_of(results, runs, wishes.against)
        if missing := [gene for gene in wishes.genes if gene not in lead.folds[0].fold.panel]:
            raise InputError(f"--genes-to-plot {', '.join(missing)}: not in the gene panel of {lead.label}")


def in_brief(results: Results, runs: list[RunResult], metric: str) -> str:
    """The first sentence of the page: how the best run stands to what it must beat."""
    pooled = results.metrics[results.metrics["scope"] == "pooled"]
    found = [(over_folds(pooled[pooled["run"] == run.label], [metric])[0], run) for run in runs]
    cell, best = max(found, key=lambda pair: pair[0].value or 0.0)
    controls = results.controls[results.controls["run"] == best.label]
    beat = {
        name: over_folds(controls[controls["control"] == name], [metric])[0].text
        for name in dict.fromkeys(controls["control"])
    }
    against = ", ".join(f"{name.replace('_', ' ')} {text}" for name, text in beat.items())
    first = (
        f"Highest {metric.upper()}: {best.label}, {cell.text}." if len(runs) > 1 else f"{metric.upper()} {cell.text}."
    )
    return f"{first} What it must beat, on the same data: {against}."


def region_sections(results: Results, wishes: Wishes) -> list[Section]:
    """Table 12, and the regions one by one."""
    from train.report.analysis import run_regions
    from train.report.analysis_tables import region_gain_table, region_table
    from train.report.significance import references

    column = str(wishes.region)
    frames = {run.label: run_regions(run, column, list(wishes.genes), wishes.data_root) for run in results.runs}
    chosen = references(results, wishes.against)
    gains = []
    for lead in dict.fromkeys(run.label for run in chosen.values()):
        others = [label for label, run in chosen.items() if run.label == lead]
        gains.append(region_gain_table(lead, others, frames, column))
    return [Section(f"Regions: {column}", tables=[*gains, region_table(frames, column)])]


def all_tables(section: Section) -> list[Table]:
    hidden = [item for _, items in section.more for item in items if isinstance(item, Table)]
    return [*section.tables, *hidden]


def write_tables(folder: Path, table: Table) -> None:
    write_text(folder / f"{table.name}.csv", to_csv(table))
    write_text(folder / f"{table.name}.tex", to_latex(table))
