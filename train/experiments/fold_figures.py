"""The figures of a fold: maps of measured and predicted expression, the learned geometry, training curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from train.figures import (
    EMBEDDING_STYLES,
    draw_scale,
    draw_spots,
    draw_tissue,
    draw_title,
    fixed_figure,
    save_figure,
    smaller_picture,
    spot_aspect,
)
from train.metrics import gene_pcc
from train.models.projection import to_disk

if TYPE_CHECKING:
    import anndata
    import pandas as pd
    from matplotlib.axes import Axes

N_GENES = 4  # on the maps, where none are named
N_SLIDES = 2  # on the maps
N_BINS = 40  # of the histogram of radii
PANEL_COLUMNS = 3  # of the training curves
AXES_MARGINS = 0.6, 0.15, 0.32, 0.46  # left, right, top and bottom of axes with ticks, in inches
MAP_MARGINS = 0.06, 0.46, 0.36, 0.06  # the same of a map, with its colour bar at the right
TITLE_ROOM = 0.25  # room for the title of a figure, in inches
RADII = "mean radius"
TRAINING_PANELS = {  # title -> column of the history -> label
    "prediction, MSE": {"mse": "train", "val_mse": "validation"},
    "alignment losses": {"hca": "contrast (HCA)", "hea": "entailment (HEA)"},
    RADII: {f"radius_{name}": style.label for name, style in EMBEDDING_STYLES.items()},
    "cones": {"violated": "share violated", "aperture": "mean aperture, rad"},
    "curvature c": {"c": ""},
    "temperature": {"tau": ""},
}


def plot_maps(path: Path, table: anndata.AnnData, genes: list[str] | None = None) -> None:
    """Draw the first test slides: the H&E, and of each gene the measured expression above the predicted.

    Args:
        path: the PNG to write.
        table: predictions of a fold, as `Fold.predictions` reads them.
        genes: names of genes (default: those with the highest PCC).
    """
    predicted, truth = np.asarray(table.X), np.asarray(table.layers["truth"])
    if genes is None:
        pcc = np.nan_to_num(gene_pcc(predicted, truth), nan=-1.0)
        genes = [str(table.var_names[i]) for i in np.argsort(-pcc, kind="stable")[:N_GENES]]
    slide = table.obs["slide"].to_numpy()
    names = list(dict.fromkeys(slide))[:N_SLIDES]
    aspect = max(spot_aspect(table.obsm["spatial"][slide == name]) for name in names)
    size = 3.0, 0.5 + 2.6 * aspect
    figure, axes = fixed_figure(1 + len(genes), 2 * len(names), size, MAP_MARGINS, TITLE_ROOM)
    for i, name in enumerate(names):
        _draw_maps_of_slide(axes[2 * i : 2 * i + 2], table[slide == name], str(name), genes)
    draw_title(figure, f"Expression, {table.uns['expression']}; each map has its own scale")
    save_figure(figure, path)


def _draw_maps_of_slide(axes: np.ndarray, table: anndata.AnnData, slide: str, genes: Sequence[str]) -> None:
    """Fill two rows of axes, (2, 1 + genes), with the spots of one slide."""
    predicted, truth = np.asarray(table.X), np.asarray(table.layers["truth"])
    picture, coords = smaller_picture(table.uns["spatial"][slide]), table.obsm["spatial"]
    pcc = gene_pcc(predicted, truth)
    draw_tissue(axes[0, 0], picture, coords)
    axes[0, 0].set_title(slide, fontsize=10, parse_math=False)  # a $ in a name is no formula
    axes[1, 0].axis("off")
    for k, gene in enumerate(genes):
        j = list(table.var_names).index(gene)
        titles = (f"{gene} measured", f"{gene} predicted  PCC {pcc[j]:.2f}")
        for ax, values, title in zip(axes[:, k + 1], (truth, predicted), titles, strict=True):
            draw_tissue(ax, picture, coords)
            discs = draw_spots(ax, picture, coords, values[:, j])
            draw_scale(ax, discs)
            ax.set_title(title, fontsize=9, parse_math=False)


def plot_geometry(path: Path, table: anndata.AnnData) -> None:
    """Draw the test spots' four embeddings in the Poincare disk (tangent PCA), and histograms of their radii.

    Args:
        path: the PNG to write.
        table: predictions of a fold, which must have `uns["plane"]`; only models with these embeddings write it.
    """
    figure, axes = fixed_figure(2, 1, (5.0, 4.6), AXES_MARGINS)
    disk, histogram = axes[0]
    hyperbolic = table.uns["plane"]["geometry"] == "lorentz"
    _draw_plane(disk, table, hyperbolic)
    _draw_radii(histogram, table)
    histogram.set_xlabel("curvature radii" if hyperbolic else "Euclidean length", fontsize=8)
    save_figure(figure, path)


def _draw_plane(ax: Axes, table: anndata.AnnData, hyperbolic: bool) -> None:
    for name, style in EMBEDDING_STYLES.items():
        points = np.asarray(table.obsm[f"plane_{name}"])
        points = to_disk(points) if hyperbolic else points
        is_spot = style.line == "-"
        color = _mix_with_white(style.color, 0.0 if is_spot else 0.35)  # niches are paler than their spots
        marker = "o" if is_spot else "^"
        ax.scatter(
            points[:, 0], points[:, 1], color=color, label=style.label, s=9, marker=marker, alpha=0.55, linewidths=0
        )
    ax.plot(0, 0, "+", color="0.2", markersize=9)
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])
    if hyperbolic:
        angle = np.linspace(0, 2 * np.pi, 256)
        ax.plot(np.cos(angle), np.sin(angle), color="0.6", linewidth=0.8)
        for side in ax.spines.values():
            side.set_visible(False)
    space, explained = "Poincare disk" if hyperbolic else "Euclidean plane", table.uns["plane"]["explained"]
    ax.set_title(f"{space}, two tangent axes with {explained:.0%} of the squared length", fontsize=9)
    ax.legend(fontsize=7, frameon=False, loc="upper right", markerscale=1.5)


def _draw_radii(ax: Axes, table: anndata.AnnData) -> None:
    radii = {name: table.obs[f"radius_{name}"].to_numpy() for name in EMBEDDING_STYLES}
    furthest = max(float(r.max()) for r in radii.values())
    bins = np.linspace(0, furthest * 1.02, N_BINS + 1).tolist()  # the same for all, from the origin
    for name, (_, color, line) in EMBEDDING_STYLES.items():
        ax.hist(radii[name], bins=bins, color=color, histtype="stepfilled", alpha=0.18 if line == "-" else 0.08)
        ax.hist(radii[name], bins=bins, histtype="step", color=color, linestyle=line, linewidth=1.5)
        ax.axvline(float(radii[name].mean()), color=color, linestyle=line, linewidth=0.8, alpha=0.6)
    ax.set_title("distance from the origin (+) in all dimensions; thin lines: means", fontsize=9)
    ax.set_ylabel("test spots", fontsize=8)
    ax.tick_params(labelsize=8)


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
    for ax in axes.ravel()[len(panels) :]:
        ax.axis("off")
    for ax, (title, lines) in zip(axes.ravel(), panels.items(), strict=False):
        for column, label in lines.items():
            style = EMBEDDING_STYLES.get(column.removeprefix("radius_"))
            look = {"color": style.color, "linestyle": style.line} if style else {}
            ax.plot(history["epoch"], history[column], label=label, **look)
        ax.axvline(best_epoch, color="0.7", linewidth=1, zorder=0)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("epoch", fontsize=8)
        ax.tick_params(labelsize=8)
        ax.margins(x=0.02)
        if any(lines.values()):
            ax.legend(fontsize=7, frameon=False)
    draw_title(figure, f"Training; the grey line marks the best epoch ({best_epoch})")
    save_figure(figure, path)
