"""The forest plot of runs against ridge: a dot and an interval for each, and a line where there is no difference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from train.figures import BLUE, GREY, ORANGE, new_figure, quiet_axes, save_figure
from train.report.against_ridge import AgainstRidge
from train.report.baseline_rows import RIDGE_TUNED

WIDTH = 6.5  # inches
ROW_HEIGHT = 0.5  # inches, with the label above the dots
LABEL_HEIGHT = 0.36  # of a row, above its dots
SHIFT = 0.11  # of a row, from the middle of its dots
FONT_SIZE = 10  # of labels, in points
LABEL_LENGTH = 90  # characters that are as wide as the figure; a longer label is in smaller letters
STYLES = {True: ("o", BLUE, "ridge on the same inputs"), False: ("s", ORANGE, "ridge, PCA-256")}


def plot_forest(path: Path, found: Sequence[AgainstRidge]) -> None:
    """Draw the difference in PCC of each comparison, from top to bottom, with its interval where it has one.

    Args:
        path: the PNG to write.
        found: the comparisons; those of one label stand in one row.
    """
    labels = list(dict.fromkeys(one.label for one in found))
    figure, axes = new_figure(1, 1, WIDTH, 1.3 + ROW_HEIGHT * len(labels))
    ax = axes[0, 0]
    ax.axvline(0, color="0.35", linewidth=1)
    for tuned, (marker, color, name) in STYLES.items():
        chosen = [one for one in found if (one.ridge == RIDGE_TUNED) == tuned]
        if not chosen:
            continue
        rows = np.array([_place(one, found, labels) for one in chosen])
        estimates = [one.pcc for one in chosen]
        means = np.array([estimate.mean for estimate in estimates])
        ends = [(e.mean if e.low is None else e.low, e.mean if e.high is None else e.high) for e in estimates]
        for y, (low, high) in zip(rows, ends, strict=True):
            ax.plot([low, high], [y, y], color=color, linewidth=1.8, solid_capstyle="butt")
        ax.plot(means, rows, marker, color=color, markersize=5.5, label=f"against {name}")
    for i, label in enumerate(reversed(labels)):
        at = ax.get_yaxis_transform()  # x as a share of the width
        size = FONT_SIZE * min(1, LABEL_LENGTH / len(label))
        text = ax.text(0, i + LABEL_HEIGHT, label, transform=at, va="center", fontsize=size, parse_math=False)
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1})  # no line crosses the label
    ax.set_yticks([])
    ax.set_ylim(-0.4, len(labels) - 0.4)
    ax.margins(x=0.08)
    metric = found[0].metric.upper()
    ax.set_xlabel(f"{metric} minus that of ridge: right of the line is better", loc="left", fontsize=9, color=GREY)
    quiet_axes(ax, grid="x")
    figure.legend(loc="outside upper left", frameon=False, fontsize=9)  # a phone shows the left part first
    save_figure(figure, path)


def _place(one: AgainstRidge, found: Sequence[AgainstRidge], labels: Sequence[str]) -> float:
    """Where a comparison stands from the bottom: in the row of its label, of two there the first one above."""
    same = [other for other in found if other.label == one.label]
    return len(labels) - 1 - labels.index(one.label) + SHIFT * (len(same) - 1) * (1 - 2 * same.index(one))
