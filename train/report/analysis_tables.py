"""Tables beside the paper's main ones: significance, slides, genes (table 11), regions (table 12), radii."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from train.figures import EMBEDDING_STYLES
from train.report.alike import comparison_label, comparison_notes, fold_pairs
from train.report.analysis import RunSummary, improvement, region_gains
from train.report.paper_tables import group_name
from train.report.published import P_VALUE_TABLE, REGION_TABLE, published_improvements
from train.report.results import Results, RunResult
from train.report.significance import HOLM_NOTE, P_NOTE, REFERENCE, compare, holm, references
from train.report.table import (
    HIGHER,
    LOWER,
    Cell,
    Column,
    Row,
    Table,
    mean_cell,
    mean_cells,
    metric_columns,
    number_cell,
    ordered_metrics,
    p_text,
    slug,
)

if TYPE_CHECKING:
    import pandas as pd

N_GENES_LISTED = 15  # about as many as table 11 has
IMPROVEMENT_NOTE = "published: HiST's improvement in percent, with its p-value; all trained end to end but Stem"


def significance_table(results: Results, runs: Sequence[RunResult], against: str | None = None) -> Table | None:
    """The difference of each run to its reference, and the p-values of both tests.

    Args:
        results: all runs; references are chosen among them.
        runs: those in the table.
        against: method or label of the reference (default: full).

    Returns:
        The table; None where no run has a reference.
    """
    chosen = references(results, against)
    frame = results.metrics
    metrics = ordered_metrics(set(frame[frame["scope"] == "pooled"]["metric"]))
    compared = [run for run in runs if run.label in chosen]
    if not compared:
        return None
    tests = {run.label: [compare(results, run, chosen[run.label], m) for m in metrics] for run in compared}
    corrected = iter(holm([test.p_t for of_run in tests.values() for test in of_run]))
    rows, notes = [], [P_NOTE]
    for run in compared:
        notes += comparison_notes(run, chosen[run.label])
        of_run = tests[run.label]
        n = max(test.n for test in of_run)
        label = f"{run.label} − {comparison_label(run, chosen[run.label])}, {n} pair{'s' * (n != 1)}"
        rows.append(Row(label, "run", tuple(difference_cell(test.difference) for test in of_run)))
        rows.append(_p_row_of("p, paired t-test", [test.p_t for test in of_run]))
        rows.append(_p_row_of("p, Wilcoxon", [test.p_wilcoxon for test in of_run]))
        rows.append(_p_row_of("p, Holm", list(islice(corrected, len(of_run)))))
        published = published_improvements(P_VALUE_TABLE, run.setting.dataset, run.model).get("", {})
        if published and chosen[run.label].method == REFERENCE and _is_of_table_4(run):
            rows.append(_published_row(published, metrics))
            notes += [IMPROVEMENT_NOTE]
    count = sum(test.p_t is not None for of_run in tests.values() for test in of_run)
    notes.insert(1, HOLM_NOTE.format(count=count))
    name = slug(f"significance {group_name(runs[0])}")
    notes = list(dict.fromkeys(notes))
    return Table(name, "Difference to the reference", metric_columns(metrics), tuple(rows), tuple(notes))


def _published_row(values: Mapping[str, str], metrics: Sequence[str]) -> Row:
    return Row("published: HiST over it", "published", tuple(Cell(values.get(m, "–")) for m in metrics))


def _is_of_table_4(run: RunResult) -> bool:
    """Whether a run is on data that the paper's table 4 is about."""
    s = run.setting
    return (s.genes, s.n_genes, s.test_dataset, s.transform) == ("hmhvg", 200, None, "log2") and s.split == "default"


def _p_row_of(label: str, values: Sequence[float | None]) -> Row:
    return Row(label, "p", tuple(Cell(p_text(value), value) for value in values))


def slide_table(results: Results, runs: list[RunResult], metric: str) -> Table:
    """A metric slide by slide: a slide a row, a run a column, mean over the folds that test the slide."""
    frame = results.metrics[results.metrics["metric"] == metric]
    slides = sorted({slide for run in runs for fold in run.folds for slide in fold.metrics["slides"]})
    rows = []
    for slide in slides:
        cells: list[Cell] = []
        for run in runs:
            values = frame[(frame["run"] == run.label) & (frame["scope"] == slide)]
            cells += mean_cells(values, [metric])
        rows.append(Row(slide, "run", tuple(cells)))
    better = HIGHER if metric.startswith("pcc") else LOWER
    notes = (f"{metric.upper()} of each test slide by itself; ± is over the folds that test it",)
    columns = tuple(Column(run.label, better) for run in runs)
    group = group_name(runs[0])
    title = f"{metric.upper()} slide by slide, {group}"
    return Table(slug(f"slides {group}"), title, columns, tuple(rows), notes, "slide")


def gene_table(correlations: Mapping[str, pd.Series], name: str) -> Table:
    """PCC of every gene in every run; the first run's best gene comes first.

    Args:
        correlations: label of a run -> PCC by gene.
        name: of the group of runs.
    """
    first = next(iter(correlations.values()))
    genes = list(first.sort_values(ascending=False, kind="stable").index)
    genes += sorted({g for series in correlations.values() for g in series.index} - set(genes))
    rows = [Row(g, "run", tuple(number_cell(_value(series, g)) for series in correlations.values())) for g in genes]
    columns = tuple(Column(label, HIGHER) for label in correlations)
    notes = ("PCC over the pooled test spots, mean over folds; an undefined one counts as 0",)
    return Table(slug(f"genes {name}"), f"PCC gene by gene, {name}", columns, tuple(rows), notes, "gene")


def improvement_table(
    run: RunResult, other: RunResult, summaries: Mapping[str, RunSummary], region: str = ""
) -> Table | None:
    """The genes on which one run gains most over another (table 11), over the folds that both have.

    Args:
        run: that gains.
        other: that it is compared with.
        summaries: of the runs, by label.
        region: whose spots the summaries are of; "" means all.

    Returns:
        The table; None where no fold of one run is a pair with one of the other.
    """
    gains = improvement(summaries[run.label], summaries[other.label], fold_pairs(run, other))
    if gains.empty:
        return None
    rows = [
        Row(str(gene), "run", (number_cell(g["first"]), number_cell(g["second"]), difference_cell(g["difference"])))
        for gene, g in gains.head(N_GENES_LISTED).iterrows()
    ]
    n_better, n_worse = int((gains["difference"] > 0).sum()), int((gains["difference"] < 0).sum())
    first, second = run.label, other.label
    notes = (
        f"the {len(rows)} largest of {len(gains)} genes; {first} is better on {n_better} of them, worse on {n_worse}",
        *comparison_notes(run, other),
    )
    columns = (Column(f"PCC, {first}", HIGHER), Column(f"PCC, {second}", HIGHER), Column("improvement", HIGHER))
    name = slug(f"gains {first} over {second} {region}")
    title = f"Genes that {first} predicts better than {comparison_label(run, other)}"
    title += f", region {region}" if region else ""
    return Table(name, title, columns, tuple(rows), notes, "gene")


def radius_table(radii: Mapping[str, pd.DataFrame], group: str) -> Table | None:
    """Mean distance from the origin of the four embeddings, mean over folds.

    Args:
        radii: label of a run -> `RunSummary.radii`; runs without embeddings are left out.
        group: name of the group of runs.

    Returns:
        The table; None where no run has embeddings.
    """
    rows = []
    for label, frame in radii.items():
        if not frame.columns.empty:
            cells = [mean_cell(frame[e].dropna()) if e in frame else number_cell(None) for e in EMBEDDING_STYLES]
            rows.append(Row(label, "run", tuple(cells)))
    if not rows:
        return None
    notes = (
        "mean over test spots, ± over folds; in curvature radii where the geometry is hyperbolic, else Euclidean. "
        "Entailment asks for images nearer the origin than genes and spots nearer than niches",
    )
    columns = tuple(Column(style.label) for style in EMBEDDING_STYLES.values())
    return Table(slug(f"radii {group}"), "Distance from the origin", columns, tuple(rows), notes)


def region_table(frames: Mapping[str, pd.DataFrame], column: str) -> Table:
    """PCC, MSE and MAE in each region for each run, mean over folds.

    Args:
        frames: label of a run -> its `run_regions`.
        column: that the regions are from.
    """
    import pandas as pd

    rows = []
    for (gene, region), cell in pd.concat(frames.values()).groupby(["gene", "region"], sort=False):
        for label in frames:
            of_run = cell[cell["run"] == label]
            if len(of_run):
                n_spots = float(of_run["n_spots"].mean())
                cells = [mean_cell(of_run[m]) for m in ("pcc", "mse", "mae")]
                rows.append(Row(f"{region}, {gene}, {label}", "run", (Cell(f"{n_spots:.0f}", n_spots), *cells)))
    columns = (Column("spots"), *metric_columns(["pcc", "mse", "mae"]))
    notes = (
        f"regions: obs[{column!r}]; mean ± std over the folds that test the region; regions of fewer than 3 spots "
        "are left out",
    )
    return Table(slug(f"regions {column}"), f"By region: {column}", columns, tuple(rows), notes, "region, gene, run")


def region_gain_table(
    run: RunResult, others: list[RunResult], frames: Mapping[str, pd.DataFrame], column: str
) -> Table:
    """Percent by which a run improves on other runs, with p-values across regions (table 12).

    Args:
        run: that gains.
        others: that it is compared with.
        frames: label of a run -> its `run_regions`.
        column: that the regions are from.
    """
    metrics = ("mae", "mse", "pcc")
    rows = []
    for other in others:
        label = comparison_label(run, other)
        for gain in region_gains(frames[run.label], frames[other.label], fold_pairs(run, other)):
            rows.append(Row(f"{gain.gene}, over {label}", "run", tuple(percent_cell(gain.percent[m]) for m in metrics)))
            p = tuple(Cell(p_text(gain.p[m]), gain.p[m]) for m in metrics)
            rows.append(Row(f"p, paired t-test over {gain.n_regions} regions", "p", p))
            published = published_improvements(REGION_TABLE, other.setting.dataset, other.model).get(gain.gene)
            if published and run.method == REFERENCE and not run.is_within:
                rows.append(_published_row(published, metrics))
    columns = tuple(Column(f"{m.upper()} improvement", HIGHER) for m in metrics)
    notes = (
        "percent of the baseline's mean over regions, positive where the run is better (as the paper's table 4 "
        "counts; its table 12 has errors improved by more than 100 %, which cannot be of the baseline); regions "
        "of one tissue are not independent, so that p is too small",
        *(note for other in others for note in comparison_notes(run, other)),
    )
    title = f"{run.label} over the others by region: {column}"
    return Table(slug(f"region gains {column}"), title, columns, tuple(rows), notes, "gene")


def difference_cell(value: float | None) -> Cell:
    """A number with its sign, such as `+0.013`; a dash where there is none."""
    if value is None:
        return Cell("–")
    text = f"{value:+.3f}".replace("-", "−")
    return Cell("0.000" if text in ("+0.000", "−0.000") else text, float(value))


def percent_cell(value: float | None) -> Cell:
    """A percentage with its sign, such as `+1.30 %`; a dash where there is none."""
    return Cell("–") if value is None else Cell(f"{value:+.2f} %".replace("-", "−"), value)


def _value(series: pd.Series, gene: str) -> float | None:
    return float(series[gene]) if gene in series.index else None
