"""Figures over several runs: their metrics side by side, PCC over genes, the gene panel, maps of one gene."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from train.figures import (
    BLUE,
    GREY,
    ORANGE,
    PALE_BLUE,
    draw_spots,
    draw_tissue,
    new_figure,
    quiet_axes,
    save_figure,
    spot_aspect,
)
from train.metrics import gene_pcc
from train.report.results import Results, RunResult
from train.report.significance import REFERENCE

if TYPE_CHECKING:
    import anndata
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RUN_HEIGHT = 0.32  # inches that one run takes
N_NAMED_GENES = 14  # in the figure of the gene panel
MAP_COLUMNS = 4
OVERLAP_COST = 100  # a name over another name counts as much as one over this many points
SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1))  # of a point, where its name may stand
HORIZONTAL = {1: "left", 0: "center", -1: "right"}
VERTICAL = {1: "bottom", 0: "center", -1: "top"}


def plot_ablation(path: Path, results: Results, runs: Sequence[RunResult], metrics: Sequence[str]) -> None:
    """Draw bars of each metric's mean, with whiskers of one standard deviation and the folds as points.

    A line across each bar is ridge on the same data. All bars start at 0, and correlations share one axis, so that
    lengths compare. The label below an axis says what it spans.

    Args:
        path: the PNG to write.
        results: holds the metrics of the runs.
        runs: drawn from top to bottom.
        metrics: drawn from left to right, such as `pcc@50`.
    """
    figure, axes = new_figure(len(metrics), 1, 2.5 if len(metrics) > 2 else 4.0, 1.1 + RUN_HEIGHT * len(runs))
    values = {metric: _bar_values(results, runs, metric) for metric in metrics}
    together = [of_metric for metric, of_metric in values.items() if metric.startswith("pcc")]
    for ax, metric in zip(axes[0], metrics, strict=True):
        _draw_bars(ax, values[metric], runs, metric)
        _set_range(ax, together if metric.startswith("pcc") else [values[metric]])
        rows = np.arange(len(runs))[::-1]
        ax.set_yticks(rows, [run.label for run in runs] if ax is axes[0][0] else [], parse_math=False)
        ax.tick_params(axis="y", length=0, labelsize=10)
    figure.suptitle("mean ± std over folds, points are folds; orange: ridge on the same data", fontsize=9, color=GREY)
    save_figure(figure, path)


class BarValues(NamedTuple):
    """One metric of several runs, `(runs,)` each; NaN where a run has none."""

    folds: list[np.ndarray]
    """Of each run: its folds' values."""
    means: np.ndarray
    stds: np.ndarray
    """0 of a single fold."""
    ridge: np.ndarray


def _bar_values(results: Results, runs: Sequence[RunResult], metric: str) -> BarValues:
    frame = results.metrics[(results.metrics["scope"] == "pooled") & (results.metrics["metric"] == metric)]
    ridge_rows = (results.baselines["baseline"] == "ridge") & (results.baselines["metric"] == metric)
    baseline = results.baselines[ridge_rows]
    folds = [frame.loc[frame["run"] == run.label, "value"].to_numpy() for run in runs]
    return BarValues(
        folds,
        np.array([v.mean() if len(v) else np.nan for v in folds]),
        np.array([v.std(ddof=1) if len(v) > 1 else 0.0 for v in folds]),
        np.array([baseline.loc[baseline["run"] == run.label, "value"].mean() for run in runs]),
    )


def _draw_bars(ax: Axes, values: BarValues, runs: Sequence[RunResult], metric: str) -> None:
    rows = np.arange(len(runs))[::-1]
    colors = [BLUE if run.method == REFERENCE else PALE_BLUE for run in runs]
    whiskers = {"elinewidth": 1, "ecolor": "0.25"}
    ax.barh(rows, values.means, height=0.66, color=colors, xerr=values.stds, error_kw=whiskers)
    places = np.repeat(rows, [len(v) for v in values.folds])
    points = np.concatenate(values.folds)
    ax.plot(points, places, "o", markersize=3.2, color="white", markeredgecolor="0.2", markeredgewidth=0.7)
    ax.vlines(values.ridge, rows - 0.42, rows + 0.42, color=ORANGE, linewidth=1.6)
    ax.set_title(metric.upper() + (" ↑" if metric.startswith("pcc") else " ↓"), fontsize=11)
    quiet_axes(ax, grid="x")


def _set_range(ax: Axes, drawn: Sequence[BarValues]) -> None:
    """Let an axis span 0 and all that is drawn on it and on those that share it, and say so below it."""
    every = np.concatenate([part for v in drawn for part in (*v.folds, v.means - v.stds, v.means + v.stds, v.ridge)])
    every = every[np.isfinite(every)]
    low, high = min(float(every.min()), 0.0), max(float(every.max()), 0.0)
    room = 0.04 * (high - low or 1)
    ax.set_xlim(low - room if low < 0 else 0.0, high + room if high > 0 else 0.0)
    ax.locator_params(axis="x", nbins=4)
    ax.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    ax.set_xlabel(f"{ax.get_xlim()[0]:.2g} to {ax.get_xlim()[1]:.2g}", fontsize=8, color=GREY)


def plot_gene_distributions(path: Path, correlations: Mapping[str, pd.Series]) -> None:
    """Draw the PCC of all genes in each run: its density, its quartiles, and its median as a number.

    Args:
        path: the PNG to write.
        correlations: label of a run -> PCC of each gene.
    """
    figure, axes = new_figure(1, 1, 7.5, 1.2 + 1.35 * RUN_HEIGHT * len(correlations))
    ax = axes[0, 0]
    rows = np.arange(len(correlations))[::-1]
    values = [series.to_numpy() for series in correlations.values()]
    if all(np.ptp(v) > 0 for v in values):  # a density needs values that differ
        bodies: Any = ax.violinplot(values, rows, orientation="horizontal", widths=0.85, showextrema=False)["bodies"]
        for body in bodies:
            body.set(facecolor=PALE_BLUE, edgecolor="none", alpha=0.9)
    for y, v in zip(rows, values, strict=True):
        low, middle, high = np.quantile(v, [0.25, 0.5, 0.75])
        ax.plot([low, high], [y, y], color=BLUE, linewidth=4, solid_capstyle="butt")
        ax.plot(middle, y, "o", color="white", markeredgecolor=BLUE, markersize=6)
        ax.annotate(f"{middle:.3f}", (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=9, color=GREY)
    ax.set_yticks(rows, list(correlations), parse_math=False)
    ax.tick_params(axis="y", length=0, labelsize=10)
    ax.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    ax.set_xlabel("PCC of a gene, mean over folds", fontsize=9)
    ax.set_title("PCC over genes: density, quartiles and median (also at the right)", fontsize=10)
    quiet_axes(ax, grid="x")
    save_figure(figure, path)


def plot_gene_panel(path: Path, table: anndata.AnnData, title: str) -> None:
    """Draw the panel's genes by mean and variance over the test spots, coloured by PCC; the best have names.

    Args:
        path: the PNG to write.
        table: predictions of a fold.
        title: of the figure.
    """
    truth = np.asarray(table.layers["truth"], dtype=np.float64)
    pcc = np.nan_to_num(gene_pcc(np.asarray(table.X), truth), nan=0.0)
    mean, variance = truth.mean(0), truth.var(0)
    figure, axes = new_figure(1, 1, 7.5, 5.0)
    ax = axes[0, 0]
    order = np.argsort(pcc)  # the best are drawn last, on top of the others
    dots = ax.scatter(
        mean[order], variance[order], c=pcc[order], cmap="cividis", s=26, linewidths=0.3, edgecolors="0.3"
    )
    figure.colorbar(dots, ax=ax, pad=0.02).set_label("PCC", fontsize=9)
    ax.set_xlabel(f"mean, {table.uns['expression']}", fontsize=9)
    ax.set_ylabel("variance over test spots", fontsize=9)
    ax.set_title(title, fontsize=10, parse_math=False)
    ax.margins(0.08)
    quiet_axes(ax)
    names = [(str(table.var_names[i]), mean[i], variance[i]) for i in order[::-1][:N_NAMED_GENES]]
    _name_points(figure, ax, names, np.column_stack([mean, variance]))
    save_figure(figure, path)


def _name_points(figure: Figure, ax: Axes, names: Sequence[tuple[str, float, float]], dots: np.ndarray) -> None:
    """Write names beside their points, each on the side where it covers no other name and the fewest points.

    A name that would cover another on every side is left out, because both would be unreadable.

    Args:
        figure: is drawn once, so that positions in px are known.
        ax: where the points are.
        names: name, x and y.
        dots: (N, 2) all points.
    """
    figure.draw_without_rendering()
    points = ax.transData.transform(dots)
    boxes: list[Any] = []
    for name, x, y in names:
        candidates = []
        for side in SIDES:
            text = _annotate(ax, name, x, y, side)
            box = text.get_window_extent()
            text.remove()
            overlaps = sum(box.overlaps(other) for other in boxes)
            candidates.append((int(box.padded(1).count_contains(points)) + OVERLAP_COST * overlaps, side, box))
        cost, side, box = min(candidates, key=lambda candidate: candidate[0])
        if cost < OVERLAP_COST:
            _annotate(ax, name, x, y, side)
            boxes.append(box.padded(2))


def _annotate(ax: Axes, name: str, x: float, y: float, side: tuple[int, int]) -> Any:
    dx, dy = side
    alignment: dict[str, Any] = {"ha": HORIZONTAL[dx], "va": VERTICAL[dy]}
    xy, place = (6 * dx, 6 * dy), "offset points"
    return ax.annotate(name, (x, y), xy, textcoords=place, fontsize=8, parse_math=False, **alignment)


def plot_gene(path: Path, tables: Mapping[str, anndata.AnnData], gene: str, slide: str) -> None:
    """Draw one gene on one slide: the H&E, the measured expression, and the prediction of each run.

    All maps share a scale: that of the measured values between their 1st and 99th percentiles.

    Args:
        path: the PNG to write.
        tables: label of a run -> its predictions; all have this gene and slide, with the same spots.
        gene: its name.
        slide: its id.
    """
    on_slide = {label: table[(table.obs["slide"] == slide).to_numpy(), gene] for label, table in tables.items()}
    first = next(iter(on_slide.values()))
    picture, coords = first.uns["spatial"][slide], first.obsm["spatial"]
    truth = np.asarray(first.layers["truth"])[:, 0]
    maps = [(f"{gene}, measured", coords, truth)]
    for label, table in on_slide.items():
        values = np.asarray(table.X)
        pcc = gene_pcc(values, np.asarray(table.layers["truth"]))[0]
        title = f"{label}, PCC {pcc:.2f}" if np.isfinite(pcc) else f"{label}, PCC undefined"
        maps.append((title, table.obsm["spatial"], values[:, 0]))

    columns = min(MAP_COLUMNS, 1 + len(maps))
    figure, axes = new_figure(columns, math.ceil((1 + len(maps)) / columns), 2.9, 0.45 + 2.6 * spot_aspect(coords))
    panels = list(axes.ravel())
    draw_tissue(panels[0], picture, coords)
    panels[0].set_title(f"{slide}, H&E", fontsize=10, parse_math=False)
    low, high = np.quantile(truth, [0.01, 0.99])
    for ax, (title, spots, values) in zip(panels[1:], maps, strict=False):
        draw_tissue(ax, picture, spots)
        discs = draw_spots(ax, picture, spots, values)
        discs.set_clim(low, high if high > low else low + 1)
        ax.set_title(title, fontsize=10, parse_math=False)
    for i, ax in enumerate(panels):
        ax.axis("off" if i > len(maps) else "on")
        for side in ax.spines.values():
            side.set_color("0.85")
    figure.colorbar(discs, ax=panels, shrink=0.6, pad=0.01, aspect=30).set_label(first.uns["expression"], fontsize=9)
    save_figure(figure, path)
