"""Figures of a fold: maps of true and predicted expression on the H&E, training curves, the learned geometry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hist_cache.files import atomic_write
from train.metrics import gene_pcc
from train.models.projection import to_disk

if TYPE_CHECKING:
    import anndata
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GENES_SHOWN = 4
SLIDES_SHOWN = 2
EMBEDDINGS = {
    "image_spot": ("image, spot", "#1b9e77", "-"),
    "image_niche": ("image, niche", "#1b9e77", "--"),
    "gene_spot": ("gene, spot", "#7570b3", "-"),
    "gene_niche": ("gene, niche", "#7570b3", "--"),
}


def new_figure(columns: int, rows: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """A figure of its own, without pyplot's global state, so that threads and notebooks are left alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, np.atleast_2d(figure.subplots(rows, columns, squeeze=False))


def save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as aside:
        figure.savefig(aside, dpi=110, format="png")


def plot_maps(path: Path, table: anndata.AnnData, genes: list[str] | None = None) -> None:
    """For the first test slides: the H&E, then true above predicted expression of each gene (default: best PCC)."""
    truth = np.asarray(table.layers["truth"])
    predicted = np.asarray(table.X)
    if genes is None:
        pcc = np.nan_to_num(gene_pcc(predicted, truth), nan=-1.0)
        genes = [str(table.var_names[i]) for i in np.argsort(-pcc, kind="stable")[:GENES_SHOWN]]
    slide = table.obs["slide"].to_numpy()
    shown = list(dict.fromkeys(slide))[:SLIDES_SHOWN]
    spread = [np.ptp(table.obsm["spatial"][slide == s], axis=0) for s in shown]
    tall = max(y / max(x, 1.0) for x, y in spread)
    figure, axes = new_figure(1 + len(genes), 2 * len(shown), 3.0, 0.5 + 2.6 * min(max(tall, 0.5), 1.6))
    for r, name in enumerate(shown):
        rows = slide == name
        above, below = axes[2 * r], axes[2 * r + 1]
        picture = table.uns["spatial"][name]
        coords = table.obsm["spatial"][rows]
        draw_tissue(above[0], picture, coords)
        above[0].set_title(name, fontsize=10)
        below[0].axis("off")
        pcc = gene_pcc(predicted[rows], truth[rows])
        for k, gene in enumerate(genes):
            j = list(table.var_names).index(gene)
            for ax, values, word in (
                (above[k + 1], truth, "measured"),
                (below[k + 1], predicted, "predicted"),
            ):
                draw_tissue(ax, picture, coords)
                drawn = draw_spots(ax, picture, coords, values[rows, j])
                figure.colorbar(drawn, ax=ax, shrink=0.75, pad=0.02).ax.tick_params(labelsize=7)
                score = f"  PCC {pcc[j]:.2f}" if word == "predicted" else ""
                ax.set_title(f"{gene} {word}{score}", fontsize=9)
    figure.suptitle(f"Expression, {table.uns['expression']}; each map has its own scale", fontsize=10)
    save(figure, path)


def draw_tissue(ax: Axes, picture: dict[str, Any], coords: np.ndarray) -> None:
    ax.imshow(picture["images"]["lowres"])
    ax.set_xticks([])
    ax.set_yticks([])
    x, y = (coords * picture["scalefactors"]["tissue_lowres_scalef"]).T
    margin = 0.08 * max(np.ptp(x), np.ptp(y), 1)
    ax.set_xlim(x.min() - margin, x.max() + margin)
    ax.set_ylim(y.max() + margin, y.min() - margin)


def draw_spots(ax: Axes, picture: dict[str, Any], coords: np.ndarray, values: np.ndarray):  # type: ignore[no-untyped-def]
    """Discs of the spots' true size on the tissue."""
    from matplotlib.collections import EllipseCollection

    scale = picture["scalefactors"]["tissue_lowres_scalef"]
    size = np.full(len(values), 1.25 * picture["scalefactors"]["spot_diameter_fullres"] * scale)  # more, for the eye
    discs = EllipseCollection(
        size,
        size,
        np.zeros(len(values)),
        units="xy",
        offsets=coords * scale,
        transOffset=ax.transData,
        array=values,
        cmap="magma",
        alpha=0.9,
        linewidths=0,
    )
    return ax.add_collection(discs)


def plot_geometry(path: Path, table: anndata.AnnData) -> None:
    """The test spots' four embeddings in the Poincare disk (tangent PCA), and histograms of their radii."""
    plane = table.uns["plane"]
    hyperbolic = plane["geometry"] == "lorentz"
    figure, axes = new_figure(2, 1, 5.0, 4.6)
    disk, histogram = axes[0]
    radii = {name: table.obs[f"radius_{name}"].to_numpy() for name in EMBEDDINGS}
    bins = np.linspace(0, max(r.max() for r in radii.values()) * 1.02, 41)  # from the origin, the same for all
    for name, (label, color, style) in EMBEDDINGS.items():
        points = np.asarray(table.obsm[f"plane_{name}"])
        points = to_disk(points) if hyperbolic else points
        marker = {"s": 9, "marker": "o" if style == "-" else "^", "alpha": 0.55, "linewidths": 0}
        light = 0.0 if style == "-" else 0.35  # niches paler than their spots
        disk.scatter(*points.T, color=_paler(color, light), label=label, **marker)
        fill = {"histtype": "stepfilled", "alpha": 0.18 if style == "-" else 0.08}
        histogram.hist(radii[name], bins=bins, color=color, **fill)
        histogram.hist(radii[name], bins=bins, histtype="step", color=color, linestyle=style, linewidth=1.5)
        histogram.axvline(float(radii[name].mean()), color=color, linestyle=style, linewidth=0.8, alpha=0.6)
    disk.plot(0, 0, "+", color="0.2", markersize=9)
    disk.set_aspect("equal")
    disk.set_xticks([])
    disk.set_yticks([])
    if hyperbolic:
        angle = np.linspace(0, 2 * np.pi, 256)
        disk.plot(np.cos(angle), np.sin(angle), color="0.6", linewidth=0.8)
        for side in disk.spines.values():
            side.set_visible(False)
    where = "Poincare disk" if hyperbolic else "Euclidean plane"
    disk.set_title(f"{where}, two tangent axes with {plane['explained']:.0%} of the squared length", fontsize=9)
    disk.legend(fontsize=7, frameon=False, loc="upper right", markerscale=1.5)
    unit = "curvature radii" if hyperbolic else "Euclidean length"
    histogram.set_title("distance from the origin (+) in all dimensions; thin lines: means", fontsize=9)
    histogram.set_xlabel(unit, fontsize=8)
    histogram.set_ylabel("test spots", fontsize=8)
    histogram.tick_params(labelsize=8)
    save(figure, path)


def _paler(color: str, share: float) -> tuple[float, float, float]:
    from matplotlib.colors import to_rgb

    r, g, b = to_rgb(color)
    return r + (1 - r) * share, g + (1 - g) * share, b + (1 - b) * share


def plot_training(path: Path, history: pd.DataFrame, best_epoch: int) -> None:
    """Six panels over epochs: losses, alignment, radii, cones, curvature, temperature."""
    figure, axes = new_figure(3, 2, 4.2, 2.9)
    epoch = history["epoch"]
    panels = [
        ("prediction, MSE", {"mse": "train", "val_mse": "validation"}),
        ("alignment losses", {"hca": "contrast (HCA)", "hea": "entailment (HEA)"}),
        ("mean radius", {}),
        ("cones", {"violated": "share violated", "aperture": "mean aperture, rad"}),
        ("curvature c", {"c": ""}),
        ("temperature", {"tau": ""}),
    ]
    for ax, (title, lines) in zip(axes.ravel(), panels, strict=True):
        for column, label in lines.items():
            if column in history:
                ax.plot(epoch, history[column], label=label)
        if title == "mean radius":
            for key, (label, color, style) in EMBEDDINGS.items():
                ax.plot(epoch, history[f"radius_{key}"], color=color, linestyle=style, label=label)
        ax.axvline(best_epoch, color="0.7", linewidth=1, zorder=0)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("epoch", fontsize=8)
        ax.tick_params(labelsize=8)
        ax.margins(x=0.02)
        if any(line.get_label() and not str(line.get_label()).startswith("_") for line in ax.get_lines()):
            ax.legend(fontsize=7, frameon=False)
    figure.suptitle(f"Training; the grey line marks the best epoch ({best_epoch})", fontsize=10)
    save(figure, path)
