"""Measured and predicted expression on greyed tissue, for a paper: a panel a gene, with one colour scale."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from train.figures import SPOT_ENLARGEMENT, round_length
from train.report.paper_figures.map_grid import (
    CLIPPED,
    COLOR_BAR,
    NAME_SHIFT,
    STACKED,
    MapGrid,
    SlideMaps,
    color_limits,
    decimal_text,
)
from train.report.paper_figures.style import (
    EDGE,
    GENE_NAME,
    HAIRLINE,
    INK,
    LINE_HEIGHT,
    SMALL,
    TEXT,
    axes_at,
    panel_letter,
    paper_figure,
    text_at,
    text_width,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import EllipseCollection
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

SPOT_COLOR_MAP, LIGHTEST = "plasma", 0.9  # evenly rising in lightness; its yellow end, which is left out, is near white
DARKEST_GREY = 0.78  # of the tissue, where white is 1: no colour of a spot comes near, for all kinds of colour vision
MAPS_ACROSS = 6  # maps in a row of two columns' width, half as many in one column's
BAR_SHARE, BAR_HEIGHT = 0.4, 0.6  # of the scale bar: of a map's width at most, and in mm
MAX_VECTOR_SPOTS = 1500  # a map with more is a picture in SVG and PDF too


def draw_maps(maps: SlideMaps, width: float, cells: int, dpi: int) -> Figure:
    """Draw the H&E with a scale bar, then for each gene the measured and the predicted expression.

    Args:
        maps: what is drawn.
        width: of the figure, in mm.
        cells: maps in a row.
        dpi: of the picture of the tissue.
    """
    grid = MapGrid(maps, width, cells)
    figure = paper_figure(width, grid.total_height)
    pictures = [grid.picture(picture, dpi) for picture in (maps.thumbnail, grey_tissue(maps.thumbnail))]
    for cell in grid.cells:
        left, top = grid.place(cell)
        ax = axes_at(figure, left, top + grid.title_height, grid.side, grid.height)
        _draw_background(ax, *pictures[cell.gene is not None], grid.window)
        if cell.gene is None:
            title = grid.tissue_title
            _draw_scale_bar(figure, maps, grid)
        else:
            title = grid.titles[cell.number]
            title += f"\n{pcc_text(maps.pcc[cell.number - 1, cell.gene])}" if cell.number else ""
            discs = _draw_spots(ax, maps, cell.gene, cell.number)
            if cell.number == 0:
                _draw_header(figure, maps, cell.gene, discs, grid)
        if cell.number == 0:
            panel_letter(figure, 0 if cell.gene is None else 1 + cell.gene, left, top - grid.header + 0.3)
        for i, line in enumerate(reversed(title.split("\n"))):
            text_at(figure, left, top + grid.title_height - 1.0 - i * LINE_HEIGHT, line, fontsize=SMALL)
    return figure


def spot_colors() -> Colormap:
    """The colours of expression, from low to high."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps[SPOT_COLOR_MAP](np.linspace(0, LIGHTEST, 256)), name="expression")


def grey_tissue(thumbnail: np.ndarray) -> np.ndarray:
    """A thumbnail (H, W, 3) uint8 in pale greys, of the same shape, its darkest and lightest parts at the ends."""
    light = thumbnail.astype(np.float64) @ (0.299, 0.587, 0.114)
    low, high = np.quantile(light, CLIPPED)
    share = np.clip((light - low) / max(high - low, 1.0), 0, 1)
    grey = np.round(255 * (DARKEST_GREY + (1 - DARKEST_GREY) * share)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def pcc_text(pcc: float) -> str:
    """A correlation in words."""
    return f"PCC {pcc:.2f}".replace("-", "−") if np.isfinite(pcc) else "PCC undefined"


def _draw_background(
    ax: Axes, picture: np.ndarray, extent: tuple[float, float, float, float], window: np.ndarray
) -> None:
    (left, top), (right, bottom) = window
    ax.imshow(picture, interpolation="none", extent=extent)
    ax.set_xlim(left, right)
    ax.set_ylim(bottom, top)
    ax.set_anchor("NW")
    ax.set_xticks([])
    ax.set_yticks([])
    for side in ax.spines.values():
        side.set(linewidth=HAIRLINE, color="0.7")


def _draw_spots(ax: Axes, maps: SlideMaps, gene: int, number: int) -> EllipseCollection:
    from matplotlib.collections import EllipseCollection

    size = np.full(len(maps.spots), SPOT_ENLARGEMENT * maps.diameter)
    discs = EllipseCollection(
        *(size, size, np.zeros(len(size))),
        units="xy",
        offsets=maps.spots,
        offset_transform=ax.transData,
        array=maps.expression(gene)[number],
        cmap=spot_colors(),
        linewidths=0,
        rasterized=len(size) > MAX_VECTOR_SPOTS,
    )
    discs.set_clim(*color_limits(maps.expression(gene)))
    ax.add_collection(discs)
    return discs


def _draw_header(figure: Figure, maps: SlideMaps, gene: int, discs: EllipseCollection, grid: MapGrid) -> None:
    """The gene's name, and its colour scale with the unit, above its maps."""
    first = next(cell for cell in grid.cells if cell.gene == gene)
    left, top = grid.place(first)
    top -= grid.header
    text_at(figure, left + NAME_SHIFT, top + 0.5, maps.genes[gene], fontsize=GENE_NAME, fontstyle="italic", va="top")
    low, high = discs.get_clim()
    values = maps.expression(gene)
    beyond = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
    extend = beyond[bool(values.min() < low), bool(values.max() > high)]
    style: dict[str, Any] = {"fontsize": SMALL, "va": "center"}
    end, bar_width = f"{decimal_text(high)} {maps.unit}", COLOR_BAR[0]
    if grid.stacked:
        bar_left = left + NAME_SHIFT + text_width(figure, decimal_text(low), **style) + 1
    else:
        bar_left = left + grid.header_width(gene) - text_width(figure, end, **style) - 1 - bar_width
    middle = top + 1.7 + STACKED * grid.stacked
    ax = axes_at(figure, bar_left, middle - COLOR_BAR[1] / 2, *COLOR_BAR)
    bar: Any = figure.colorbar(discs, cax=ax, orientation="horizontal", extend=extend, ticks=[])
    bar.outline.set_linewidth(HAIRLINE)
    bar.solids.set_rasterized(True)
    text_at(figure, bar_left - 1, middle, decimal_text(low), ha="right", **style)
    text_at(figure, bar_left + bar_width + 1, middle, end, **style)


def _draw_scale_bar(figure: Figure, maps: SlideMaps, grid: MapGrid) -> None:
    """A bar of a round length below the H&E, with its length; nothing where the size of a px is not known."""
    if maps.um_per_px is None:
        return
    um_per_mm = maps.um_per_px / grid.mm_per_px
    um = round_length(BAR_SHARE * grid.side * um_per_mm)
    top = grid.tops[0] + grid.title_height + grid.height + 1.0
    ax = axes_at(figure, EDGE, top, um / um_per_mm, BAR_HEIGHT)
    ax.set(facecolor=INK, xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)
    label = f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} µm"
    text_at(figure, EDGE + um / um_per_mm + 1, top + BAR_HEIGHT / 2, label, fontsize=TEXT, va="center_baseline")
