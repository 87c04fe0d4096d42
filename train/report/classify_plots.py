"""The figure of classified slides: ROC curves, and the areas with permuted labels beside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from train.figures import BLUE, ORANGE, new_figure, quiet_axes, save_figure
from train.report.auroc import interval_95
from train.report.classify import Classification
from train.report.classify_data import Cohort

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METHOD_COLORS = (BLUE, ORANGE, "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito's palette
GRID = np.linspace(0, 1, 401)  # rates of false positives at which curves are drawn
BIN = 0.05  # width of the control's bins


def plot_classification(path: Path, cohort: Cohort, found: Sequence[Classification]) -> None:
    """Draw ROC curves of each class, mean over repeats within their range, and the control's areas at their right.

    Of two classes the rarer one is drawn: the other's curve is the same, turned round.

    Args:
        path: the PNG to write.
        cohort: the slides.
        found: of each method.
    """
    counts = np.bincount(cohort.labels)
    classes = [int(counts.argmin())] if len(counts) == 2 else list(range(len(counts)))
    figure, axes = new_figure(2, len(classes), 4.6, 4.2)
    for (left, right), c in zip(axes, classes, strict=True):
        against = cohort.classes[1 - c] if len(counts) == 2 else "the others"
        title = f"{cohort.classes[c]} ({counts[c]}) against {against} ({counts.sum() - counts[c]})"
        left.set_title(title, fontsize=10, parse_math=False)
        _draw_curves(left, found, cohort.labels == c, c)
        right.set_title("labels permuted over patients", fontsize=10)
        _draw_control(right, found, c)
    save_figure(figure, path)


def roc_curve_at(scores: np.ndarray, positive: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """Share of positives above the threshold at which a share of negatives is above it, linear between thresholds.

    Args:
        scores: (n,).
        positive: (n,) bool.
        rates: (k,) shares of negatives, ascending.

    Returns:
        (k,) shares of positives.
    """
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(positive, scores, drop_intermediate=False)
    last = np.flatnonzero(np.diff(false, append=2))  # where the curve is vertical, its upper end
    return np.asarray(np.interp(rates, false[last], true[last]))


def _draw_curves(ax: Axes, found: Sequence[Classification], positive: np.ndarray, c: int) -> None:
    for i, one in enumerate(found):
        color = METHOD_COLORS[i % len(METHOD_COLORS)]
        curves = np.stack([roc_curve_at(p[:, c], positive, GRID) for p in one.probabilities])
        low, high = interval_95(one.drawn[:, c])
        label = f"{one.name}: {one.auroc[:, c].mean():.3f} ({low:.3f} to {high:.3f})"
        ax.fill_between(GRID, curves.min(0), curves.max(0), color=color, alpha=0.18, linewidth=0)
        rates = np.concatenate([[0], GRID])  # a curve begins in the corner
        ax.plot(rates, np.concatenate([[0], curves.mean(0)]), color=color, linewidth=1.6, label=label)
    ax.plot([0, 1], [0, 1], color="0.7", linewidth=0.8, linestyle="--", zorder=0)
    ax.set_aspect("equal")
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.02, 1.02)
    ax.set_xlabel("false positives, share of the others", fontsize=9)
    ax.set_ylabel("true positives, share of the class", fontsize=9)
    legend = ax.legend(loc="lower right", fontsize=8, frameon=False, title="AUROC (95 %), band: range over repeats")
    legend.get_title().set_fontsize(8)
    for text in legend.get_texts():
        text.set_parse_math(False)
    quiet_axes(ax)


def _draw_control(ax: Axes, found: Sequence[Classification], c: int) -> None:
    from matplotlib.ticker import MaxNLocator

    every = np.concatenate([[one.auroc[:, c].mean(), *one.permuted[:, c]] for one in found])
    low = min(0.3, np.floor(every.min() / BIN) * BIN)
    bins = np.arange(low, 1 + BIN / 2, BIN)
    colors = [METHOD_COLORS[i % len(METHOD_COLORS)] for i in range(len(found))]
    ax.hist([one.permuted[:, c] for one in found], list(bins), color=colors, alpha=0.5)
    for one, color in zip(found, colors, strict=True):
        ax.axvline(one.auroc[:, c].mean(), color=color, linewidth=1.8)
    ax.axvline(0.5, color="0.6", linewidth=0.8, linestyle="--", zorder=0)
    ax.set_xlim(low, 1.0)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("AUROC; lines: with the real labels", fontsize=9)
    ax.set_ylabel("permutations", fontsize=9)
    quiet_axes(ax)
