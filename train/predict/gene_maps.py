"""A figure of chosen genes on a predicted slide, beside its H&E."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from train.figures import draw_scale_bar, draw_spots, draw_tissue, new_figure, save_figure, spot_aspect
from train.metrics import gene_pcc
from train.predict.predicted import (
    MEASURED,
    gene_columns,
    gene_values,
    predicted_slide,
    stored_picture,
    um_per_px,
    value_range,
)

if TYPE_CHECKING:
    import anndata
    from matplotlib.axes import Axes

MAPS_A_ROW = 4  # with the H&E
MAP_INCHES = 2.6  # width of a map without its colour bar


def write_gene_maps(path: Path, table: anndata.AnnData, genes: Sequence[str]) -> Path:
    """Draw the H&E and a map of each gene; where the slide was measured, that above the prediction in the same colours.

    The colours of a gene run from the 2nd to the 98th percentile of its values, measured and predicted together.

    Args:
        path: the PNG.
        table: of one slide; X may be a file.
        genes: names of the genes, in this order.

    Returns:
        The PNG.

    Raises:
        InputError: A gene was not predicted.
    """
    columns = gene_columns(table, genes)
    kinds = [None, *([MEASURED] if MEASURED in table.layers else [])][::-1]  # of expression, from top to bottom
    picture, coords = table.uns["spatial"][predicted_slide(table)], np.asarray(table.obsm["spatial"])
    across = min(MAPS_A_ROW, 1 + len(columns))
    bands = math.ceil((1 + len(columns)) / across)
    height = 0.55 + MAP_INCHES * spot_aspect(coords)
    figure, axes = new_figure(across, bands * len(kinds), MAP_INCHES + 0.7, height)
    for ax in axes.ravel():
        ax.axis("off")
    panels = [
        axes[len(kinds) * (i // across) : len(kinds) * (i // across + 1), i % across] for i in range(1 + len(columns))
    ]
    _draw_background(panels[0][0], picture, coords)
    panels[0][0].set_title(f"{predicted_slide(table)}, H&E", fontsize=10, parse_math=False)
    draw_scale_bar(panels[0][0], um_per_px(table) * stored_picture(table).downsample)
    expression = [gene_values(table, columns, kind) for kind in kinds]
    for k, (column, maps) in enumerate(zip(columns, panels[1:], strict=True)):
        values = [part[:, k] for part in expression]
        low, high = value_range(np.concatenate(values))
        for ax, kind, part in zip(maps, kinds, values, strict=True):
            _draw_background(ax, picture, coords)
            discs = draw_spots(ax, picture, coords, part)
            discs.set_clim(low, high if high > low else low + 1)
            if len(kinds) > 1:
                ax.set_xlabel("predicted" if kind is None else "measured", fontsize=9)
        if len(kinds) > 1:
            pcc = gene_pcc(values[1][:, None], values[0][:, None])[0]
            maps[1].set_xlabel(
                f"predicted, PCC {pcc:.2f}" if np.isfinite(pcc) else "predicted, PCC undefined", fontsize=9
            )
        maps[0].set_title(str(table.var_names[column]), fontsize=10, fontstyle="italic", parse_math=False)
        bar = figure.colorbar(discs, ax=list(maps), shrink=0.7, pad=0.02, aspect=24 * len(kinds))
        bar.set_label(str(table.uns["expression"]), fontsize=8, parse_math=False)
        bar.ax.tick_params(labelsize=7)
    save_figure(figure, path)
    return path


def _draw_background(ax: Axes, picture: dict[str, Any], coords: np.ndarray) -> None:
    """Draw the tissue in a light frame."""
    ax.axis("on")
    draw_tissue(ax, picture, coords)
    for side in ax.spines.values():
        side.set_color("0.85")
