"""Figures of a run: maps of true and predicted expression on the H&E, and the training curve with its geometry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hist_cache.cache import CachedSlide
from hist_cache.files import written_aside
from train.metrics import gene_pcc

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


def _figure(columns: int, rows: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """A figure of its own, without pyplot's global state, so that threads and notebooks are left alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, np.atleast_2d(figure.subplots(rows, columns, squeeze=False))


def _save(figure: Figure, path: Path) -> None:
    with written_aside(path) as aside:
        figure.savefig(aside, dpi=110, format="png")


def plot_maps(
    path: Path, table: anndata.AnnData, slides: dict[str, CachedSlide], genes: list[str] | None = None
) -> None:
    """For the first test slides: the H&E, then true above predicted expression of each gene (default: best PCC)."""
    truth = np.asarray(table.layers["truth"])
    predicted = np.asarray(table.X)
    if genes is None:
        pcc = np.nan_to_num(gene_pcc(predicted, truth), nan=-1.0)
        genes = [str(table.var_names[i]) for i in np.argsort(-pcc, kind="stable")[:GENES_SHOWN]]
    shown = list(slides)[:SLIDES_SHOWN]
    tall = max(np.ptp(slides[s].coords[:, 1]) / max(np.ptp(slides[s].coords[:, 0]), 1.0) for s in shown)
    figure, axes = _figure(1 + len(genes), 2 * len(shown), 3.0, 0.5 + 2.6 * min(max(tall, 0.5), 1.6))
    for r, name in enumerate(shown):
        rows = (table.obs["slide"] == name).to_numpy()
        above, below = axes[2 * r], axes[2 * r + 1]
        slide = slides[name]
        _tissue(above[0], slide)
        above[0].set_title(name, fontsize=10)
        below[0].axis("off")
        pcc = gene_pcc(predicted[rows], truth[rows])
        for k, gene in enumerate(genes):
            j = list(table.var_names).index(gene)
            for ax, values, word in (
                (above[k + 1], truth, "measured"),
                (below[k + 1], predicted, "predicted"),
            ):
                _tissue(ax, slide)
                drawn = _spots(ax, slide, values[rows, j])
                figure.colorbar(drawn, ax=ax, shrink=0.75, pad=0.02).ax.tick_params(labelsize=7)
                score = f"  PCC {pcc[j]:.2f}" if word == "predicted" else ""
                ax.set_title(f"{gene} {word}{score}", fontsize=9)
    figure.suptitle("Expression, log2(1 + count); each map has its own scale", fontsize=10)
    _save(figure, path)


def _tissue(ax: Axes, slide: CachedSlide) -> None:
    ax.imshow(slide.thumbnail)
    ax.set_xticks([])
    ax.set_yticks([])
    x, y = (slide.coords / float(slide.attributes["thumbnail_downsample"])).T
    margin = 0.08 * max(np.ptp(x), np.ptp(y), 1)
    ax.set_xlim(x.min() - margin, x.max() + margin)
    ax.set_ylim(y.max() + margin, y.min() - margin)


def _spots(ax: Axes, slide: CachedSlide, values: np.ndarray):  # type: ignore[no-untyped-def]
    """Discs of the spots' true size on the tissue."""
    from matplotlib.collections import EllipseCollection

    scale = float(slide.attributes["thumbnail_downsample"])
    diameter = float(slide.attributes["spot_um"]) / float(slide.attributes["um_per_px"]) / scale
    size = np.full(len(values), 1.25 * diameter)  # a little more, for the eye
    discs = EllipseCollection(
        size,
        size,
        np.zeros(len(values)),
        units="xy",
        offsets=slide.coords / scale,
        transOffset=ax.transData,
        array=values,
        cmap="magma",
        alpha=0.9,
        linewidths=0,
    )
    return ax.add_collection(discs)


def plot_training(path: Path, history: pd.DataFrame, best_epoch: int) -> None:
    """Six panels over epochs: losses, alignment, radii, cones, curvature, temperature."""
    figure, axes = _figure(3, 2, 4.2, 2.9)
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
    _save(figure, path)
