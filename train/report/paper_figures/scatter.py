"""Predicted against measured expression of genes, for a paper: a panel a gene, equal axes, the line of identity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from train.figures import BLUE
from train.report.paper_figures.map_grid import NAME_SHIFT
from train.report.paper_figures.style import (
    GENE_NAME,
    HAIRLINE,
    LINE,
    MIDDLE,
    ONE_COLUMN,
    SMALL,
    TWO_COLUMNS,
    axes_at,
    panel_letter,
    paper_figure,
    plain_axes,
    text_at,
)
from train.report.paper_figures.tissue_maps import pcc_text, spot_colors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_POINTS = 1500  # more spots are counted in hexagons
HEXAGONS = 40  # along an axis
ROOM = 0.04  # beyond the outermost values, as a share of the axes
PANEL_LEFT, PANEL_RIGHT, PANEL_TOP, PANEL_BOTTOM = 8.0, 2.0, 5.0, 7.5  # mm around the axes of a panel
PANELS_IN_ROW = {ONE_COLUMN: 2, TWO_COLUMNS: 4}
MAX_PANELS = 16  # of a figure: more rows of four are higher than a page
COUNT_BAR = (9.0, 1.2)  # mm


def draw_scatter(
    genes: Sequence[str], measured: np.ndarray, predicted: np.ndarray, pcc: np.ndarray, unit: str
) -> Figure:
    """Draw a panel for each gene.

    Args:
        genes: names.
        measured: (N, genes).
        predicted: (N, genes).
        pcc: (genes,); NaN where it is undefined.
        unit: of the expression.
    """
    width = ONE_COLUMN if len(genes) <= PANELS_IN_ROW[ONE_COLUMN] else TWO_COLUMNS
    across = min(PANELS_IN_ROW[width], max(len(genes), PANELS_IN_ROW[ONE_COLUMN]))
    cell = width / across
    side = cell - PANEL_LEFT - PANEL_RIGHT
    height = PANEL_TOP + side + PANEL_BOTTOM
    figure = paper_figure(width, height * -(-len(genes) // across))
    for k, gene in enumerate(genes):
        left, top = k % across * cell, k // across * height
        ax = axes_at(figure, left + PANEL_LEFT, top + PANEL_TOP, side, side)
        counted = _draw_spots(ax, measured[:, k], predicted[:, k])
        if counted is not None:
            _draw_count_scale(figure, counted, left + PANEL_LEFT + side, top + PANEL_TOP + side)
        ax.set_xlabel(f"measured, {unit}", fontsize=SMALL)
        ax.set_ylabel(f"predicted, {unit}", fontsize=SMALL)
        panel_letter(figure, k, left, top + 0.3)
        text_at(figure, left + NAME_SHIFT, top + 0.5, gene, fontsize=GENE_NAME, fontstyle="italic", va="top")
        text_at(figure, left + PANEL_LEFT + side, top + 0.8, pcc_text(pcc[k]), fontsize=SMALL, ha="right", va="top")
    return figure


def _draw_spots(ax: Axes, measured: np.ndarray, predicted: np.ndarray) -> Any:
    """Draw spots on axes of one range; returns the hexagons where they are counted, None where each is a point."""
    from matplotlib.ticker import MaxNLocator

    both = np.concatenate([measured, predicted])
    room = ROOM * max(np.ptp(both), 1e-6)
    limits = float(both.min() - room), float(both.max() + room)
    ax.plot(limits, limits, color=MIDDLE, linewidth=LINE, linestyle=(0, (4, 2)), zorder=1)
    counted = None
    if len(measured) > MAX_POINTS:
        grid: dict[str, Any] = {"gridsize": HEXAGONS, "extent": (*limits, *limits), "mincnt": 1, "bins": "log"}
        counted = ax.hexbin(measured, predicted, cmap=spot_colors(), linewidths=0, rasterized=True, zorder=2, **grid)
    else:
        ax.scatter(measured, predicted, s=3, color=BLUE, alpha=0.5, linewidths=0, zorder=2)
    ax.set(xlim=limits, ylim=limits)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    plain_axes(ax)
    return counted


def _draw_count_scale(figure: Figure, counted: Any, right: float, bottom: float) -> None:
    """What the colours of hexagons mean, in the lower right corner of a panel, which is at a place in mm."""
    width, height = COUNT_BAR
    left, top = right - width - 2, bottom - height - 3.4
    bar: Any = figure.colorbar(counted, cax=axes_at(figure, left, top, width, height), orientation="horizontal")
    bar.outline.set_linewidth(HAIRLINE)
    bar.solids.set_rasterized(True)
    most = int(counted.get_array().max())
    bar.set_ticks([1, most] if most > 1 else [1], labels=["1", str(most)] if most > 1 else ["1"])
    bar.minorticks_off()
    bar.ax.tick_params(length=1, pad=0.8)
    text_at(figure, left + width / 2, top - 0.5, "spots", fontsize=SMALL, ha="center", va="bottom")
