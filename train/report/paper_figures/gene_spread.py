"""PCC over genes, for a paper: how many genes each run predicts how well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from train.figures import BLUE
from train.report.paper_figures.style import (
    EDGE,
    LINE,
    MIDDLE,
    ONE_COLUMN,
    SMALL,
    TEXT,
    axes_at,
    paper_figure,
    plain_axes,
    text_at,
    text_width,
    wrapped_labels,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

ROW_HEIGHT_OF_GENES = 4.6  # mm, for a label of one line
LABEL_CHARACTERS = 30  # in one line
ABOVE, BELOW, AT_RIGHT = 3.5, 6.5, 8.0  # mm around the axes
TICK = 0.28  # of a row: half the height of a gene's tick


def draw_gene_spread(correlations: Mapping[str, pd.Series]) -> Figure:
    """Draw the PCC of every gene as a tick, the quartiles as a bar and the median as a dot and a number, by run.

    Args:
        correlations: label of a run -> PCC of each gene; the highest median comes first.
    """
    ordered = sorted(correlations.items(), key=lambda pair: -float(pair[1].median()))
    wrapped, heights = wrapped_labels([label for label, _ in ordered], LABEL_CHARACTERS, ROW_HEIGHT_OF_GENES)
    middles = np.cumsum(heights) - heights / 2
    figure = paper_figure(ONE_COLUMN, ABOVE + heights.sum() + BELOW)
    left = EDGE + 1.5 + max(text_width(figure, label, fontsize=TEXT) for label in wrapped)
    ax = axes_at(figure, left, ABOVE, ONE_COLUMN - left - AT_RIGHT, heights.sum())
    for label, (_, series), middle in zip(wrapped, ordered, middles, strict=True):
        values = series.to_numpy()
        half = TICK * ROW_HEIGHT_OF_GENES
        ax.vlines(values, middle - half, middle + half, color=BLUE, alpha=0.25, linewidth=LINE)
        low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
        ax.plot([low, high], [middle, middle], color="k", linewidth=2.5 * LINE, solid_capstyle="butt")
        ax.plot(median, middle, "o", color="k", markerfacecolor="white", markersize=3.4, markeredgewidth=1.5 * LINE)
        text_at(figure, left - 1.5, ABOVE + middle, label, fontsize=TEXT, ha="right", va="center_baseline")
        number = f"{median:.3f}".replace("-", "−")
        text_at(figure, ONE_COLUMN - 0.5, ABOVE + middle, number, fontsize=SMALL, ha="right", va="center_baseline")
    text_at(figure, ONE_COLUMN - 0.5, ABOVE - 0.8, "median", fontsize=SMALL, ha="right", va="bottom", color=MIDDLE)
    ax.axvline(0, color="0.8", linewidth=LINE, zorder=0)
    ax.set(ylim=(heights.sum(), 0), yticks=[])
    ax.spines["left"].set_visible(False)
    plain_axes(ax)
    ax.set_xlabel("PCC of a gene, mean over folds")
    return figure
