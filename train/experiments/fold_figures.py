"""The figures of how a fold was trained and of the geometry that it has learned; `fold_maps.py` draws its maps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from train.experiments.quick_axes import MARGIN, TITLE_ROOM, QuickAxes, data_limits, fixed_figure, write_title
from train.figures import EMBEDDING_STYLES, save_figure
from train.models.projection import to_disk

if TYPE_CHECKING:
    import anndata
    import pandas as pd

N_BINS = 40  # of the histogram of radii
PANEL_COLUMNS = 3  # of the training curves
AXES_MARGINS = 0.6, 0.15, 0.32, 0.46  # left, right, top and bottom of axes with ticks, in inches
LINE_COLORS = "#1f77b4", "#ff7f0e"  # of the training curves that are of no embedding
RADII = "mean radius"
TRAINING_PANELS = {  # title -> column of the history -> label
    "prediction, MSE": {"mse": "train", "val_mse": "validation"},
    "objective": {"objective": ""},
    "alignment losses": {"hca": "contrast (HCA)", "hea": "entailment (HEA)"},
    RADII: {f"radius_{name}": style.label for name, style in EMBEDDING_STYLES.items()},
    "cones": {"violated": "share violated", "aperture": "mean aperture, rad"},
    "curvature c": {"c": ""},
    "temperature": {"tau": ""},
    "latent space, a dimension": {"kl": "KL to the prior", "alignment": "distance of the experts"},
    "precision": {"coordinate_share": "share of the coordinates"},
}


def plot_geometry(path: Path, table: anndata.AnnData) -> None:
    """Draw the test spots' four embeddings in the Poincare disk (tangent PCA), and histograms of their radii.

    Args:
        path: the PNG to write.
        table: predictions of a fold, which must have `uns["plane"]`; only models with these embeddings write it.
    """
    figure, ((disk, histogram),) = fixed_figure(2, 1, (5.0, 4.6), AXES_MARGINS)
    hyperbolic = table.uns["plane"]["geometry"] == "lorentz"
    _draw_plane(disk, table, hyperbolic)
    _draw_radii(histogram, table, "curvature radii" if hyperbolic else "Euclidean length")
    save_figure(figure, path)


def _draw_plane(ax: QuickAxes, table: anndata.AnnData, hyperbolic: bool) -> None:
    points = {name: np.asarray(table.obsm[f"plane_{name}"]) for name in EMBEDDING_STYLES}
    if hyperbolic:
        points = {name: to_disk(own) for name, own in points.items()}
        reach = np.array([[-1.0, -1.0], [1.0, 1.0]])
    else:
        reach = np.concatenate([[[0.0, 0.0]], *points.values()])
    # A unit is as long in either direction.
    centre = (reach.min(0) + reach.max(0)) / 2
    span = max(float((reach.max(0) - reach.min(0)).max()), 1e-6) * (1 + 2 * MARGIN)
    half = span / 2 * np.array([ax.box.width, ax.box.height]) / min(ax.box.width, ax.box.height)
    (x0, y0), (x1, y1) = centre - half, centre + half
    ax.limit((x0, x1), (y0, y1))
    for name, style in EMBEDDING_STYLES.items():
        is_spot = style.line == "-"
        ax.line(
            *points[name].T,
            color=_mix_with_white(style.color, 0.0 if is_spot else 0.35),  # niches are paler than their spots
            label=style.label,
            linestyle="none",
            marker="o" if is_spot else "^",
            markersize=3,
            markeredgewidth=0,
            alpha=0.55,
        )
    ax.line([0], [0], linestyle="none", marker="+", color="0.2", markersize=9)
    if hyperbolic:
        angle = np.linspace(0, 2 * np.pi, 256)
        ax.line(np.cos(angle), np.sin(angle), color="0.6", linewidth=0.8)
    else:
        ax.frame()
    space, explained = "Poincare disk" if hyperbolic else "Euclidean plane", table.uns["plane"]["explained"]
    ax.title(f"{space}, two tangent axes with {explained:.0%} of the squared length", 9)
    ax.legend((1.0, 1.0), marker_scale=1.5)


def _draw_radii(ax: QuickAxes, table: anndata.AnnData, unit: str) -> None:
    from matplotlib.patches import Polygon

    radii = {name: table.obs[f"radius_{name}"].to_numpy() for name in EMBEDDING_STYLES}
    furthest = max(float(r.max()) for r in radii.values()) or 1.0
    bins = np.linspace(0, furthest * 1.02, N_BINS + 1)  # the same for all, from the origin
    counts = {name: np.histogram(r, bins)[0] for name, r in radii.items()}
    ax.limit(data_limits(bins), (0.0, (1 + MARGIN) * max(int(own.max()) for own in counts.values())))
    for name, (_, color, line) in EMBEDDING_STYLES.items():
        steps = np.stack([bins.repeat(2), np.pad(counts[name].repeat(2), 1)], axis=1)
        ax.add(Polygon(steps, color=color, alpha=0.18 if line == "-" else 0.08, linewidth=0))
        ax.line(*steps.T, color=color, linestyle=line, linewidth=1.5)
        mean = float(radii[name].mean())
        ax.line([mean, mean], ax.y, color=color, linestyle=line, linewidth=0.8, alpha=0.6)
    ax.frame()
    ax.title("distance from the origin (+) in all dimensions; thin lines: means", 9)
    ax.ticks(unit, "test spots")


def _mix_with_white(color: str, share: float) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    r, g, b = to_rgb(color)
    return r + (1 - r) * share, g + (1 - g) * share, b + (1 - b) * share


def plot_training(path: Path, history: pd.DataFrame, best_epoch: int) -> None:
    """Draw the training curves: one panel for each quantity of `TRAINING_PANELS` that the model has logged.

    Args:
        path: the PNG to write; not written where the history has none of the quantities.
        history: an epoch a row, with the column `epoch`; HiST has all quantities, other models some.
        best_epoch: marked in each panel.
    """
    panels = {
        title: {column: label for column, label in lines.items() if column in history}
        for title, lines in TRAINING_PANELS.items()
    }
    panels = {title: lines for title, lines in panels.items() if lines}
    if not panels:
        return
    columns = min(PANEL_COLUMNS, len(panels))
    figure, axes = fixed_figure(columns, math.ceil(len(panels) / columns), (4.2, 2.9), AXES_MARGINS, TITLE_ROOM)
    places = [ax for row in axes for ax in row]
    for ax, (title, lines) in zip(places, panels.items(), strict=False):
        _draw_curves(ax, history, lines, best_epoch)
        ax.title(title, 10)
    write_title(figure, f"Training; the grey line marks the best epoch ({best_epoch})")
    save_figure(figure, path)


def _draw_curves(ax: QuickAxes, history: pd.DataFrame, lines: dict[str, str], best_epoch: int) -> None:
    """Draw columns of the history, by their labels, which may be empty."""
    epochs, values = history["epoch"].to_numpy(dtype=float), history[list(lines)].to_numpy(dtype=float)
    ax.limit(data_limits(epochs, margin=0.02), data_limits(values))
    ax.line([best_epoch, best_epoch], ax.y, color="0.7", linewidth=1, zorder=0)
    for i, (column, label) in enumerate(lines.items()):
        style = EMBEDDING_STYLES.get(column.removeprefix("radius_"))
        color, dashes = (style.color, style.line) if style else (LINE_COLORS[i], "-")
        ax.line(epochs, values[:, i], label=label, color=color, linestyle=dashes, linewidth=1.5)
    ax.frame()
    ax.ticks("epoch", integer_x=True)
    if any(lines.values()):
        ax.legend()
