"""The maps of a fold: measured and predicted expression of the best predicted genes on the tissue."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from train.experiments.quick_axes import TITLE_ROOM, QuickAxes, fixed_figure, tick_labels, write_title
from train.figures import SPOT_ENLARGEMENT, save_figure, spot_aspect
from train.metrics import gene_pcc

if TYPE_CHECKING:
    import anndata

N_GENES = 4  # where none are named
N_SLIDES = 2
MARGINS = 0.06, 0.46, 0.36, 0.06  # left, right, top and bottom of a map, with its colour bar at the right, in inches
SCALE_BAR = (1.03, 1.07, 0.12, 0.88)  # left, right, bottom and top of a colour bar, as shares of its map
SCALE_FONT = 7
SCALE_TICKS = 5  # at most
COLORS = "magma"
TISSUE_MARGIN = 0.08  # around the outermost spots, as a share of what they span


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
    columns = [table.var_names.get_loc(gene) for gene in genes]
    slide = table.obs["slide"].to_numpy()
    names = list(dict.fromkeys(slide))[:N_SLIDES]
    aspect = max(spot_aspect(table.obsm["spatial"][slide == name]) for name in names)
    size = 3.0, 0.5 + 2.6 * aspect
    figure, axes = fixed_figure(1 + len(genes), 2 * len(names), size, MARGINS, TITLE_ROOM)
    for i, name in enumerate(names):
        rows = slide == name
        tissue = TissueMap(table.uns["spatial"][name], table.obsm["spatial"][rows])
        values = truth[np.ix_(rows, columns)], predicted[np.ix_(rows, columns)]
        _draw_slide(axes[2 * i : 2 * i + 2], tissue, str(name), genes, *values)
    write_title(figure, f"Expression, {table.uns['expression']}; each map has its own scale")
    save_figure(figure, path)


def _draw_slide(
    axes: Sequence[Sequence[QuickAxes]],
    tissue: TissueMap,
    slide: str,
    genes: Sequence[str],
    truth: np.ndarray,
    predicted: np.ndarray,
) -> None:
    """Fill two rows of 1 + genes axes with the spots of one slide; expression is `(spots, genes)`."""
    measured_row, predicted_row = axes
    tissue.draw(measured_row[0])
    measured_row[0].title(slide, 10)
    pcc = gene_pcc(predicted, truth)
    for k, gene in enumerate(genes):
        titles = (f"{gene} measured", f"{gene} predicted  PCC {pcc[k]:.2f}")
        for ax, values, title in zip(
            (measured_row[k + 1], predicted_row[k + 1]), (truth, predicted), titles, strict=True
        ):
            tissue.draw(ax)
            tissue.draw_spots(ax, values[:, k])
            ax.title(title, 9)


class TissueMap:
    """A slide's thumbnail, cut to the area of its spots, and the spots as discs on it.

    Args:
        picture: the slide's entry of `uns["spatial"]`: thumbnail and scale.
        coords: `(N, 2)` centres of the spots, x and y, in px of the full resolution.
    """

    def __init__(self, picture: dict[str, Any], coords: np.ndarray) -> None:
        scale = picture["scalefactors"]["tissue_lowres_scalef"]
        self.image = Image.fromarray(picture["images"]["lowres"]).convert("RGBA")
        self.spots = coords * scale
        self.diameter = SPOT_ENLARGEMENT * picture["scalefactors"]["spot_diameter_fullres"] * scale
        low, high = self.spots.min(0), self.spots.max(0)
        margin = TISSUE_MARGIN * max(*(high - low), 1)
        self.low, self.high = low - margin, high + margin
        self._scaled: dict[tuple[int, int], np.ndarray] = {}

    def draw(self, ax: QuickAxes) -> None:
        """Draw the tissue in the middle of the axes, whose data are then px of the thumbnail."""
        width, height = self.high - self.low
        zoom = min(ax.box.width / width, ax.box.height / height)
        size = np.round((width * zoom, height * zoom))
        left, bottom = np.round((ax.box.p0 + ax.box.p1 - size) / 2)
        ax.move(left, bottom, *size)
        ax.limit((self.low[0], self.high[0]), (self.high[1], self.low[1]))
        first, last = np.maximum(self.low, 0), np.minimum(self.high, self.image.size)  # of the thumbnail, in view
        (x0, y1), (x1, y0) = np.round(ax.to_px.transform([first, last])).astype(int).tolist()
        if x1 > x0 and y1 > y0:
            if (x1 - x0, y1 - y0) not in self._scaled:
                part = self.image.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR, box=(*first, *last))
                self._scaled[x1 - x0, y1 - y0] = np.asarray(part)
            ax.picture(self._scaled[x1 - x0, y1 - y0], x0, y0)
        ax.frame()

    def draw_spots(self, ax: QuickAxes, values: np.ndarray) -> None:
        """Draw spots where `draw` has drawn, coloured by `(N,)` values, and the scale of the colours beside them."""
        from matplotlib import colormaps
        from matplotlib.collections import EllipseCollection

        colors, low, high = colormaps[COLORS], float(values.min()), float(values.max())
        size = np.full(len(values), self.diameter * ax.box.width / (self.high[0] - self.low[0]) / ax.figure.dpi)
        discs = EllipseCollection(
            size,
            size,
            np.zeros(len(values)),
            units="inches",
            offsets=self.spots,
            offset_transform=ax.to_px,
            facecolors=colors((values - low) / (high - low or 1)),
            alpha=0.9,
            linewidths=0,
        )
        discs.set_clip_box(ax.box)
        ax.figure.add_artist(discs)
        left, right, bottom, top = SCALE_BAR
        x0, x1 = (round(ax.box.x0 + share * ax.box.width) for share in (left, right))
        y0, y1 = (round(ax.box.y0 + share * ax.box.height) for share in (bottom, top))
        bar = colors(np.linspace(1, 0, y1 - y0), bytes=True)[:, None].repeat(x1 - x0, axis=1)
        ax.picture(bar, x0, y0)
        for value, label in tick_labels(low, high, SCALE_TICKS):
            at = y0 + (y1 - y0) * ((value - low) / (high - low) if high > low else 0.5)
            ax.text(x1 + 0.02 * ax.box.width, at, label, SCALE_FONT, va="center_baseline")
