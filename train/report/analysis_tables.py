"""Tables beside the paper's main ones: significance, slides, genes (table 11), regions (table 12)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from train.report.analysis import improvement, region_gains
from train.report.paper_tables import group_name
from train.report.results import Results, RunResult
from train.report.significance import NOTE, compare, references
from train.report.table import HIGHER, LOWER, Cell, Column, Row, Table, metric_order, number, over_folds, p_text, slug

if TYPE_CHECKING:
    import pandas as pd

EMBEDDINGS = {
    "image_spot": "image, spot",
    "image_niche": "image, niche",
    "gene_spot": "gene, spot",
    "gene_niche": "gene, niche",
}
GENES_LISTED = 15  # as many as table 11 has, about


def significance_table(results: Results, runs: Sequence[RunResult], against: str | None = None) -> Table | None:
    """The difference of each of `runs` to its reference, and the p-values of both tests; None where there is none."""
    chosen = references(results, against)
    frame = results.metrics
    metrics = metric_order(set(frame[frame["scope"] == "pooled"]["metric"]))
    rows = []
    for run in runs:
        if run.label not in chosen:
            continue
        found = [compare(results, run, chosen[run.label], m) for m in metrics]
        n = max(f.n for f in found)
        label = f"{run.label} − {chosen[run.label].label}, {n} pair{'s' * (n != 1)}"
        rows.append(Row(label, "run", tuple(signed(f.difference) for f in found)))
        rows.append(Row("p, paired t-test", "p", tuple(Cell(p_text(f.p_t), f.p_t) for f in found)))
        rows.append(Row("p, Wilcoxon", "p", tuple(Cell(p_text(f.p_wilcoxon), f.p_wilcoxon) for f in found)))
    if not rows:
        return None
    columns = tuple(Column(m.upper(), HIGHER if m.startswith("pcc") else LOWER) for m in metrics)
    group = group_name(runs[0])
    return Table(slug(f"significance {group}"), "Difference to the reference", columns, tuple(rows), (NOTE,))


def slide_table(results: Results, runs: list[RunResult], metric: str) -> Table:
    """A metric slide by slide: rows slides, columns runs; mean over the folds that test the slide."""
    frame = results.metrics[results.metrics["metric"] == metric]
    slides = sorted({slide for run in runs for fold in run.folds for slide in fold.metrics["slides"]})
    rows = []
    for slide in slides:
        cells: list[Cell] = []
        for run in runs:
            values = frame[(frame["run"] == run.label) & (frame["scope"] == slide)]
            cells += over_folds(values, [metric])
        rows.append(Row(slide, "run", tuple(cells)))
    better = HIGHER if metric.startswith("pcc") else LOWER
    notes = (f"{metric.upper()} of each test slide by itself; ± is over the folds that test it",)
    columns = tuple(Column(run.label, better) for run in runs)
    group = group_name(runs[0])
    return Table(
        slug(f"slides {group}"), f"{metric.upper()} slide by slide, {group}", columns, tuple(rows), notes, "slide"
    )


def gene_table(correlations: Mapping[str, pd.Series], name: str) -> Table:
    """PCC of every gene in every run (label -> its digest's correlations); the first run's best gene first."""
    first = next(iter(correlations.values()))
    genes = list(first.sort_values(ascending=False, kind="stable").index)
    genes += sorted({g for series in correlations.values() for g in series.index} - set(genes))
    rows = [Row(g, "run", tuple(number(_of(series, g)) for series in correlations.values())) for g in genes]
    columns = tuple(Column(label, HIGHER) for label in correlations)
    notes = ("PCC over the pooled test spots, mean over folds; an undefined one counts as 0",)
    return Table(slug(f"genes {name}"), f"PCC gene by gene, {name}", columns, tuple(rows), notes, "gene")


def improvement_table(run: str, other: str, correlations: Mapping[str, pd.Series]) -> Table:
    """Table 11: the genes on which `run` gains most over `other`."""
    gains = improvement(correlations[run], correlations[other])
    rows = [
        Row(str(gene), "run", (number(g["first"]), number(g["second"]), signed(g["difference"])))
        for gene, g in gains.head(GENES_LISTED).iterrows()
    ]
    better, total = int((gains["difference"] > 0).sum()), len(gains)
    notes = (f"the {len(rows)} largest of {total} genes; {run} is better on {better} of them, worse on "
             f"{int((gains['difference'] < 0).sum())}",)  # fmt: skip
    columns = (Column(f"PCC, {run}", HIGHER), Column(f"PCC, {other}", HIGHER), Column("improvement", HIGHER))
    name = slug(f"gains {run} over {other}")
    return Table(name, f"Genes that {run} predicts better than {other}", columns, tuple(rows), notes, "gene")


def radius_table(radii: Mapping[str, pd.DataFrame], group: str) -> Table:
    """Mean distance from the origin of the four embeddings (label -> its digest's radii), mean over folds."""
    rows = []
    for label, frame in radii.items():
        cells = []
        for name in EMBEDDINGS:
            values = frame[name].dropna().to_numpy() if name in frame else np.empty(0)
            spread = float(values.std(ddof=1)) if len(values) > 1 else None
            cells.append(number(float(values.mean()), spread) if len(values) else Cell("–"))
        rows.append(Row(label, "run", tuple(cells)))
    notes = (
        "mean over test spots, ± over folds; in curvature radii where the geometry is hyperbolic, else Euclidean. "
        "Entailment asks for images nearer the origin than genes and spots nearer than niches",
    )
    columns = tuple(Column(name) for name in EMBEDDINGS.values())
    return Table(slug(f"radii {group}"), "Distance from the origin", columns, tuple(rows), notes)


def region_table(frames: Mapping[str, pd.DataFrame], column: str) -> Table:
    """Each region in each run (label -> `run_regions`): PCC, MSE, MAE of named genes and of all, mean over folds."""
    import pandas as pd

    every = pd.concat(frames.values())
    rows = []
    for (gene, region), cell in every.groupby(["gene", "region"], sort=False):
        for label in frames:
            mine = cell[cell["run"] == label]
            if len(mine):
                values = [mine[m] for m in ("pcc", "mse", "mae")]
                spots = Cell(f"{mine['n_spots'].mean():.0f}", float(mine["n_spots"].mean()))
                cells = [number(float(v.mean()), float(v.std(ddof=1)) if len(v) > 1 else None) for v in values]
                rows.append(Row(f"{region}, {gene}, {label}", "run", (spots, *cells)))
    columns = (Column("spots"), Column("PCC", HIGHER), Column("MSE", LOWER), Column("MAE", LOWER))
    notes = (f"regions: obs[{column!r}]; mean ± std over the folds that test the region; regions of fewer than 3 spots "
             "are left out",)  # fmt: skip
    return Table(slug(f"regions {column}"), f"By region: {column}", columns, tuple(rows), notes, "region, gene, run")


def region_gain_table(run: str, baselines: list[str], frames: Mapping[str, pd.DataFrame], column: str) -> Table:
    """Table 12: percent by which `run` improves on each baseline, with p across regions."""
    rows = []
    for baseline in baselines:
        for gain in region_gains(frames[run], frames[baseline]):
            percent = (gain.percent[m] for m in ("mae", "mse", "pcc"))
            cells = tuple(Cell("–") if v is None else Cell(f"{v:+.2f} %".replace("-", "−"), v) for v in percent)
            rows.append(Row(f"{gain.gene}, over {baseline}", "run", cells))
            p = tuple(Cell(p_text(gain.p[m]), gain.p[m]) for m in ("mae", "mse", "pcc"))
            rows.append(Row(f"p, paired t-test over {gain.n_regions} regions", "p", p))
    columns = tuple(Column(f"{m} improvement", HIGHER) for m in ("MAE", "MSE", "PCC"))
    notes = (
        "percent of the baseline's mean over regions, positive where the run is better (as the paper's table 4 "
        "counts; its table 12 has errors improved by more than 100 %, which cannot be of the baseline); regions "
        "of one tissue are not independent, so that p is too small",
    )
    return Table(
        slug(f"region gains {column}"),
        f"{run} over the others by region: {column}",
        columns,
        tuple(rows),
        notes,
        "gene",
    )


def signed(value: float | None) -> Cell:
    if value is None:
        return Cell("–")
    text = f"{value:+.3f}".replace("-", "−")
    return Cell("0.000" if text in ("+0.000", "−0.000") else text, float(value))


def _of(series: pd.Series, gene: str) -> float | None:
    return float(series[gene]) if gene in series.index else None
