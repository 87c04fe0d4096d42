"""Figures of a study: its variants side by side, the gene panel, PCC over genes, one gene's maps in every run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from train.figures import draw_spots, draw_tissue, new_figure, save
from train.metrics import gene_pcc
from train.report.results import Results, RunResult

if TYPE_CHECKING:
    import anndata
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "0.45"  # Okabe and Ito's, told apart by the colour-blind
RUN_HEIGHT = 0.32  # inch
LABELLED = 14  # genes with their names
ACROSS = 4  # maps in a row


def plot_ablation(path: Path, results: Results, runs: Sequence[RunResult], metrics: Sequence[str]) -> None:
    """Bars of each metric's mean, whiskers of one std, the folds as points; beside each, ridge on the same data.

    A bar starts at 0, unless all values lie so close together that nothing could be seen: then the axis says so.
    """
    height = 1.1 + RUN_HEIGHT * len(runs)
    figure, axes = new_figure(len(metrics), 1, 2.5 if len(metrics) > 2 else 4.0, height)
    frame = results.metrics[results.metrics["scope"] == "pooled"]
    place = np.arange(len(runs))[::-1]
    for ax, metric in zip(axes[0], metrics, strict=True):
        values = [
            frame.loc[(frame["run"] == run.label) & (frame["metric"] == metric), "value"].to_numpy() for run in runs
        ]
        means = np.array([v.mean() if len(v) else np.nan for v in values])
        spread = np.array([v.std(ddof=1) if len(v) > 1 else 0.0 for v in values])
        control = results.controls[(results.controls["control"] == "ridge") & (results.controls["metric"] == metric)]
        ridge = np.array([control.loc[control["run"] == run.label, "value"].mean() for run in runs])
        colors = [BLUE if run.variant == "full" else "#8fb8d4" for run in runs]
        ax.barh(place, means, height=0.66, color=colors, xerr=spread, error_kw={"elinewidth": 1, "ecolor": "0.25"})
        for y, v in zip(place, values, strict=True):
            ax.plot(
                v, np.full(len(v), y), "o", markersize=3.2, color="white", markeredgecolor="0.2", markeredgewidth=0.7
            )
        ax.vlines(ridge, place - 0.42, place + 0.42, color=ORANGE, linewidth=1.6)
        every = np.concatenate([*values, means - spread, means + spread, ridge])
        start = _start(ax, every[np.isfinite(every)])
        ax.set_title(metric.upper() + (" ↑" if metric.startswith("pcc") else " ↓"), fontsize=11)
        ax.set_xlabel(f"axis starts at {start:g}" if start else " ", fontsize=8, color=GREY)
        _quiet(ax)
        ax.set_yticks(place, [run.label for run in runs] if ax is axes[0][0] else [])
        ax.tick_params(axis="y", length=0, labelsize=10)
    figure.suptitle("mean ± std over folds, points are folds; orange: ridge on the same data", fontsize=9, color=GREY)
    save(figure, path)


def _start(ax: Axes, values: np.ndarray) -> float:
    """Set the axis; returns where it starts."""
    low, high = float(values.min()), float(values.max())
    room = 0.08 * (high - low or abs(high) or 1)
    start = 0.0
    if low > 0 and high - low < 0.35 * high:
        step = 10.0 ** math.floor(math.log10(max(high - low, 1e-6)))
        start = max(round(math.floor((low - room) / step) * step, 6), 0.0)
    ax.set_xlim(min(start, low - room) if low < 0 else start, high + room)
    ax.locator_params(axis="x", nbins=4)
    return start


def plot_gene_distributions(path: Path, correlations: Mapping[str, pd.Series]) -> None:
    """PCC of all genes in each run (label -> genes' PCC): their density, quartiles, and the median in figures."""
    figure, axes = new_figure(1, 1, 7.5, 1.2 + 1.35 * RUN_HEIGHT * len(correlations))
    ax = axes[0, 0]
    place = np.arange(len(correlations))[::-1]
    values = [series.to_numpy() for series in correlations.values()]
    if all(np.ptp(v) > 0 for v in values):  # a density needs values that differ
        bodies: Any = ax.violinplot(values, place, orientation="horizontal", widths=0.85, showextrema=False)["bodies"]
        for body in bodies:
            body.set(facecolor="#8fb8d4", edgecolor="none", alpha=0.9)
    for y, v in zip(place, values, strict=True):
        low, middle, high = np.quantile(v, [0.25, 0.5, 0.75])
        ax.plot([low, high], [y, y], color=BLUE, linewidth=4, solid_capstyle="butt")
        ax.plot(middle, y, "o", color="white", markeredgecolor=BLUE, markersize=6)
        ax.annotate(f"{middle:.3f}", (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=9, color=GREY)
    ax.set_yticks(place, list(correlations))
    ax.tick_params(axis="y", length=0, labelsize=10)
    ax.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    ax.set_xlabel("PCC of a gene, mean over folds", fontsize=9)
    ax.set_title("PCC over genes: density, quartiles and median (also at the right)", fontsize=10)
    _quiet(ax)
    save(figure, path)


def plot_gene_panel(path: Path, table: anndata.AnnData, title: str) -> None:
    """The panel's genes by mean and variance over the test spots, coloured by PCC; the best predicted have names."""
    truth = np.asarray(table.layers["truth"], dtype=np.float64)
    pcc = np.nan_to_num(gene_pcc(np.asarray(table.X), truth), nan=0.0)
    mean, variance = truth.mean(0), truth.var(0)
    figure, axes = new_figure(1, 1, 7.5, 5.0)
    ax = axes[0, 0]
    order = np.argsort(pcc)  # the best on top
    dots = ax.scatter(
        mean[order], variance[order], c=pcc[order], cmap="cividis", s=26, linewidths=0.3, edgecolors="0.3"
    )
    bar = figure.colorbar(dots, ax=ax, pad=0.02)
    bar.set_label("PCC", fontsize=9)
    ax.set_xlabel(f"mean, {table.uns['expression']}", fontsize=9)
    ax.set_ylabel("variance over test spots", fontsize=9)
    ax.set_title(title, fontsize=10)
    ax.margins(0.08)
    _quiet(ax, grid="both")
    names = [(str(table.var_names[i]), mean[i], variance[i]) for i in order[::-1][:LABELLED]]
    _label(figure, ax, names, np.column_stack([mean, variance]))
    save(figure, path)


def _label(figure: Figure, ax: Axes, names: Sequence[tuple[str, float, float]], dots: np.ndarray) -> None:
    """Names beside their points, in the first of eight places that covers no name and the fewest points."""
    figure.draw_without_rendering()
    points = ax.transData.transform(dots)
    taken: list[Any] = []
    sides = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)]
    align = {1: "left", 0: "center", -1: "right"}, {1: "bottom", 0: "center", -1: "top"}
    for name, x, y in names:
        best: tuple[float, Any, Any] | None = None
        for dx, dy in sides:
            text = ax.annotate(
                name, (x, y), (6 * dx, 6 * dy), textcoords="offset points", fontsize=8, ha=align[0][dx], va=align[1][dy]
            )
            box = text.get_window_extent()
            covered = int(box.padded(1).count_contains(points))
            covered += 100 * sum(box.overlaps(other) for other in taken)
            text.remove()
            if best is None or covered < best[0]:
                best = (covered, (dx, dy), box)
        assert best is not None
        if best[0] >= 100:
            continue  # no place: unnamed rather than unreadable
        dx, dy = best[1]
        ax.annotate(
            name, (x, y), (6 * dx, 6 * dy), textcoords="offset points", fontsize=8, ha=align[0][dx], va=align[1][dy]
        )
        taken.append(best[2].padded(2))


def plot_gene(path: Path, tables: Mapping[str, anndata.AnnData], gene: str, slide: str) -> None:
    """One gene on one slide: the H&E, what was measured, and what each run predicts (label -> predictions).

    All maps share a scale, that of the measured values between their 1st and 99th percentiles.
    """
    first = next(iter(tables.values()))
    rows = (first.obs["slide"] == slide).to_numpy()
    coords, picture = first.obsm["spatial"][rows], first.uns["spatial"][slide]
    tall = np.ptp(coords[:, 1]) / max(np.ptp(coords[:, 0]), 1.0)
    across = min(ACROSS, 2 + len(tables))
    down = math.ceil((2 + len(tables)) / across)
    figure, axes = new_figure(across, down, 2.9, 0.45 + 2.6 * min(max(tall, 0.5), 1.6))
    panels = list(axes.ravel())
    draw_tissue(panels[0], picture, coords)
    panels[0].set_title(f"{slide}, H&E", fontsize=10)
    j = list(first.var_names).index(gene)
    truth = np.asarray(first.layers["truth"])[rows, j]
    low, high = np.quantile(truth, [0.01, 0.99])
    high = high if high > low else low + 1
    for ax, label in zip(panels[1:], ["measured", *tables], strict=False):
        if label == "measured":
            values, title = truth, f"{gene}, measured"
        else:
            table = tables[label]
            mine = (table.obs["slide"] == slide).to_numpy()
            j = list(table.var_names).index(gene)
            values = np.asarray(table.X)[mine, j]
            pcc = gene_pcc(values[:, None], np.asarray(table.layers["truth"])[mine, j][:, None])[0]
            title = f"{label}, PCC {pcc:.2f}" if np.isfinite(pcc) else f"{label}, PCC undefined"
            coords = table.obsm["spatial"][mine]
        draw_tissue(ax, picture, coords)
        drawn = draw_spots(ax, picture, coords, values)
        drawn.set_clim(low, high)
        ax.set_title(title, fontsize=10)
    for i, ax in enumerate(panels):
        ax.axis("off" if i >= 2 + len(tables) else "on")
        for side in ax.spines.values():
            side.set_color("0.85")
    figure.colorbar(drawn, ax=panels, shrink=0.6, pad=0.01, aspect=30).set_label(first.uns["expression"], fontsize=9)
    save(figure, path)


def _quiet(ax: Axes, grid: str = "x") -> None:
    """Few lines: a light grid, no box."""
    for side in ("top", "right", "left") if grid == "x" else ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color("0.7")
    ax.grid(axis=grid, color="0.92", linewidth=0.8)  # type: ignore[arg-type]
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=9, color="0.7")
