"""Runs and baselines side by side, for a paper: means with intervals over folds, and differences to the reference."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from train.figures import BLUE, ORANGE
from train.models.registry import get_model
from train.report.baseline_rows import BASELINE_TITLES, INTERPOLATED, RIDGE, RIDGE_TUNED
from train.report.paper_figures.style import (
    EDGE,
    LINE,
    MIDDLE,
    SMALL,
    TEXT,
    TWO_COLUMNS,
    axes_at,
    panel_letter,
    paper_figure,
    plain_axes,
    text_at,
    text_width,
    wrapped_labels,
)
from train.report.resampling import PairedEffect, compare_corrected, corrected_effect, split_ratio
from train.report.results import Results, RunResult
from train.report.table import METRIC_TITLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RUN_ROW = 3.6  # mm, for a label of one line
ABOVE_PANELS, BELOW_PANELS, BETWEEN, LEGEND = 4.5, 10.5, 4.0, 3.5  # mm: beside the axes, between them, of the legend
LABEL_LINE = 34  # characters of a label in one line
FOLD_SHIFT = 1.1  # mm from the middle of a row down to the points of its folds
FOLD_STYLE: dict[str, Any] = {"linestyle": "", "marker": ".", "markersize": 2.4, "markeredgewidth": 0, "color": "0.5"}
STRONG_BASELINES = (RIDGE_TUNED, RIDGE, INTERPOLATED)  # the others have a PCC near 0, which would hide all differences
KIND_STYLES: dict[bool, dict[str, Any]] = {  # of a trained model and of a baseline, which is open
    False: {"marker": "o", "color": BLUE, "markerfacecolor": BLUE},
    True: {"marker": "s", "color": ORANGE, "markerfacecolor": "white"},
}


@dataclass(frozen=True)
class Compared:
    """A run or a baseline in one metric."""

    label: str
    is_baseline: bool
    """Computed at once, not trained by gradient steps."""
    folds: np.ndarray
    """(folds,) values."""
    mean: PairedEffect
    """The mean over folds with its interval; `difference` is the mean."""
    to_reference: PairedEffect | None
    """None for the reference itself, and where nothing is compared."""


def compared_in(
    results: Results, runs: Sequence[RunResult], reference: RunResult | None, metric: str
) -> list[Compared]:
    """The runs of a group and the baselines of their reference, the best first.

    Args:
        results: holds the metrics of all of them.
        runs: the group.
        reference: that the others are compared with, and whose baselines are taken; without it those of the first run.
        metric: such as `pcc@50`.
    """
    rows = []
    for run in runs:
        values = np.array(list(results.fold_values(run.label, metric, "pooled").values()))
        effect = None
        if reference is not None and run is not reference:
            effect = compare_corrected(results, run, reference, metric)
        mean = corrected_effect(values, split_ratio(run.folds))
        if len(values):
            rows.append(Compared(run.label, not get_model(run.model).learns, values, mean, effect))
    rows += _baselines(results, runs, reference, metric)
    return sorted(rows, key=lambda row: float(row.folds.mean()), reverse=metric.startswith("pcc"))


def _baselines(results: Results, runs: Sequence[RunResult], reference: RunResult | None, metric: str) -> list[Compared]:
    """The strong baselines beside the reference that are not among the runs themselves."""
    main = reference or runs[0]
    own = {fold.number: fold.metrics["pooled"].get(metric) for fold in main.folds}
    rows = []
    for name in STRONG_BASELINES:
        found = results.baselines
        found = found[(found["run"] == main.label) & (found["baseline"] == name) & (found["metric"] == metric)]
        if found.empty or any(run.model == name for run in runs):
            continue
        values, ratio = found["value"].to_numpy(), split_ratio(main.folds)
        pairs = [(value, own[fold]) for fold, value in zip(found["fold"], values, strict=True) if own[fold] is not None]
        effect = corrected_effect(np.array([a - b for a, b in pairs]), ratio) if reference is not None else None
        rows.append(Compared(BASELINE_TITLES[name], True, values, corrected_effect(values, ratio), effect))
    return rows


def draw_comparison(by_metric: dict[str, list[Compared]], reference: str | None) -> Figure:
    """Draw a panel of means for each metric, and beside it one of differences to the reference, if there is one.

    Args:
        by_metric: `compared_in` of each metric, with the same labels; rows are in the order of the first one.
        reference: label of the run that the others are compared with.
    """
    labels = [row.label for row in next(iter(by_metric.values()))]
    wrapped, heights = wrapped_labels(labels, LABEL_LINE, RUN_ROW)
    middles = np.cumsum(heights) - heights / 2
    panels = [(metric, kind) for metric in by_metric for kind in (False, True) if reference is not None or not kind]
    figure = paper_figure(TWO_COLUMNS, ABOVE_PANELS + heights.sum() + BELOW_PANELS + LEGEND)
    left = EDGE + 1.5 + max(text_width(figure, label, fontsize=TEXT, fontweight="bold") for label in wrapped)
    width = (TWO_COLUMNS - left - 2 - BETWEEN * (len(panels) - 1)) / len(panels)
    for label, lines, middle in zip(labels, wrapped, middles, strict=True):
        style: dict[str, Any] = {"fontweight": "bold"} if label == reference else {}
        text_at(
            figure, left - 1.5, ABOVE_PANELS + middle, lines, fontsize=TEXT, ha="right", va="center_baseline", **style
        )
    for i, (metric, is_difference) in enumerate(panels):
        x = left + i * (width + BETWEEN)
        ax = axes_at(figure, x, ABOVE_PANELS, width, heights.sum())
        by_label = {row.label: row for row in by_metric[metric]}
        for label, middle in zip(labels, middles, strict=True):
            if label in by_label:
                _draw_row(ax, by_label[label], middle, is_difference)
        ax.set(ylim=(heights.sum(), 0), yticks=[])
        ax.spines["left"].set_visible(False)
        plain_axes(ax)
        ax.margins(x=0.06)
        ax.locator_params(axis="x", nbins=4)
        ax.grid(axis="y", visible=False)
        _write_heads(figure, ax, metric, reference if is_difference else None, (i, x))
    _draw_legend(figure, left)
    return figure


def _draw_row(ax: Axes, row: Compared, middle: float, is_difference: bool) -> None:
    effect = row.to_reference if is_difference else row.mean
    if effect is None or effect.difference is None:
        return
    style = KIND_STYLES[row.is_baseline]
    if not is_difference:
        ax.plot(row.folds, np.full(len(row.folds), middle + FOLD_SHIFT), zorder=1, **FOLD_STYLE)
    if effect.low is not None and effect.high is not None:
        ax.plot([effect.low, effect.high], [middle, middle], color=style["color"], linewidth=2 * LINE, zorder=2)
    ax.plot(effect.difference, middle, markersize=3.2, markeredgewidth=1.5 * LINE, zorder=3, **style)


def _write_heads(figure: Figure, ax: Axes, metric: str, reference: str | None, place: tuple[int, float]) -> None:
    """Letter and axis title of a panel, which is the `place[0]`th and begins `place[1]` mm from the left."""
    number, left = place
    panel_letter(figure, number, left, 0.3)
    title = METRIC_TITLES.get(metric, metric.upper())
    arrow = "higher is better" if metric.startswith("pcc") else "lower is better"
    if reference is not None:
        ax.axvline(0, color=MIDDLE, linewidth=LINE, zorder=0)
        title, arrow = f"difference in {title}", f"to {textwrap.shorten(reference, LABEL_LINE, placeholder=' ...')}"
    ax.set_xlabel(f"{title}\n{arrow}", linespacing=1.2)


def _draw_legend(figure: Figure, left: float) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="", markersize=3.2, label="trained model", **KIND_STYLES[False]),
        Line2D([], [], linestyle="", markersize=3.2, label="baseline", **KIND_STYLES[True]),
        Line2D([], [], label="fold", **FOLD_STYLE),
        Line2D([], [], color=MIDDLE, linewidth=2 * LINE, label="95 % interval"),
    ]
    place = (left / TWO_COLUMNS, 0.0)
    figure.legend(handles=handles, loc="lower left", bbox_to_anchor=place, ncols=4, frameon=False, fontsize=SMALL)
