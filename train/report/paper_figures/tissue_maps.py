"""Measured and predicted expression on greyed tissue, for a paper: a panel a gene, with one colour scale."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from train.figures import SPOT_ENLARGEMENT, round_length
from train.report.paper_figures.style import (
    EDGE,
    HAIRLINE,
    HEAD,
    LINE_HEIGHT,
    MAX_HEIGHT,
    MM_PER_INCH,
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

COLORS, LIGHTEST = "plasma", 0.9  # evenly rising in lightness; its yellow end, which is left out, is near white
DARKEST_GREY = 0.78  # of the tissue, where white is 1: no colour of a spot comes near, for all kinds of colour vision
CLIPPED = (0.01, 0.99)  # quantiles of each map that the colour scale covers
MARGIN = 0.06  # around the outermost spots, as a share of what they span
ASPECTS = (0.5, 1.6)  # height over width that a map may have
CELLS = 6  # maps in a row of two columns' width, half as many in one column's
GAP = 2.0  # mm between maps
HEADER, BAR_STRIP, ROW_GAP = 5.2, 4.0, 2.5  # mm above the maps of a gene, below the H&E, and between rows
COLOR_BAR = (13.0, 1.5)  # width and height in mm
NAME_SHIFT = 3.2  # mm from the letter of a panel to its name
BAR_SHARE, BAR_HEIGHT = 0.4, 0.6  # of the scale bar: of a map's width at most, and in mm
TITLE_WIDTH = 21  # characters of a map's title in one line
MAX_VECTOR_SPOTS = 1500  # a map with more is a picture in SVG and PDF too


@dataclass(frozen=True)
class SlideMaps:
    """Expression of some genes on a slide, measured and as runs predict it."""

    slide: str
    thumbnail: np.ndarray
    """(H, W, 3) uint8."""
    spots: np.ndarray
    """(N, 2) centres, x and y, in px of the thumbnail."""
    diameter: float
    """Of a spot, in px of the thumbnail."""
    um_per_px: float | None
    """Of the thumbnail; None where it is not known."""
    unit: str
    genes: tuple[str, ...]
    runs: tuple[str, ...]
    measured: np.ndarray
    """(N, genes)."""
    predicted: np.ndarray
    """(runs, N, genes)."""
    pcc: np.ndarray
    """(runs, genes), over this slide's spots; NaN where it is undefined."""

    def expression(self, gene: int) -> np.ndarray:
        """What the maps of a gene show: (1 + runs, N), measured first."""
        return np.concatenate([self.measured[None, :, gene], self.predicted[:, :, gene]])

    def some_genes(self, first: int, last: int) -> SlideMaps:
        """The same of some of the genes, without `last` itself."""
        part = slice(first, last)
        measured, predicted, pcc = self.measured[:, part], self.predicted[..., part], self.pcc[:, part]
        return replace(self, genes=self.genes[part], measured=measured, predicted=predicted, pcc=pcc)

    def some_runs(self, count: int) -> SlideMaps:
        """The same of the first runs."""
        return replace(self, runs=self.runs[:count], predicted=self.predicted[:count], pcc=self.pcc[:count])


@dataclass(frozen=True)
class _Cell:
    """A map: its place, and what is drawn there."""

    row: int
    column: int
    gene: int | None
    """None for the H&E."""
    number: int
    """Of the map among those of its gene: 0 is measured, the others are the runs'."""


class _Grid:
    """Where everything stands in a figure `width` mm wide with `cells` maps in a row; all lengths in mm."""

    def __init__(self, maps: SlideMaps, width: float, cells: int) -> None:
        self.side = (width - 2 * EDGE - GAP * (cells - 1)) / cells
        low, high = maps.spots.min(0), maps.spots.max(0)
        margin = MARGIN * max(*(high - low), 1)
        self.window = np.stack([low - margin, high + margin])
        """Upper left and lower right corner of what is drawn, (2, 2) in px of the thumbnail."""
        x_span, y_span = self.window[1] - self.window[0]
        self.height = self.side * float(np.clip(y_span / x_span, *ASPECTS))
        self.mm_per_px = min(self.side / x_span, self.height / y_span)
        self.titles = ["\n".join(textwrap.wrap(title, TITLE_WIDTH)) for title in ("measured", *maps.runs)]
        self.title_height = LINE_HEIGHT * (2 + max(title.count("\n") for title in self.titles))
        self.cells = _placed(len(self.titles), len(maps.genes), cells)
        headed = {cell.row for cell in self.cells if cell.number == 0}
        self.tops, top = [], 0.0
        for row in range(1 + max(cell.row for cell in self.cells)):
            self.tops.append(top + HEADER * (row in headed))
            top = self.tops[-1] + self.title_height + self.height + BAR_STRIP * (row == 0) + ROW_GAP
        self.width, self.total_height = width, top - ROW_GAP + 0.5

    def place(self, cell: _Cell) -> tuple[float, float]:
        """Left and top of a cell: of its map's title, which stands above the map and below its gene's header."""
        return EDGE + cell.column * (self.side + GAP), self.tops[cell.row]

    def picture(self, thumbnail: np.ndarray, dpi: int) -> tuple[np.ndarray, tuple[float, ...]]:
        """The part of a thumbnail that is seen, at a resolution, and where it is: left, right, bottom and top in px."""
        low, high = np.maximum(self.window[0], 0), np.minimum(self.window[1], thumbnail.shape[1::-1])
        size = np.maximum(np.round((high - low) * self.mm_per_px * dpi / MM_PER_INCH), 1).astype(int)
        image = Image.fromarray(thumbnail).convert("RGB")
        part = image.resize((int(size[0]), int(size[1])), Image.Resampling.BICUBIC, box=(*low, *high))
        return np.asarray(part), (low[0], high[0], high[1], low[1])

    def header_width(self, gene: int) -> float:
        """Width of a gene's maps in the row where they begin."""
        own = [cell for cell in self.cells if cell.gene == gene]
        return sum(cell.row == own[0].row for cell in own) * (self.side + GAP) - GAP


def _placed(n_maps: int, n_genes: int, cells: int) -> list[_Cell]:
    """The H&E, beside it the first gene, then further genes, side by side where they fit into what is left of a row."""
    placed = [_Cell(0, 0, None, 0)]
    row, column = 0, 1
    for gene in range(n_genes):
        if gene > 0 and column + n_maps > cells:
            row, column = row + 1, 0
        for number in range(n_maps):
            if column == cells:
                row, column = row + 1, 0
            placed.append(_Cell(row, column, gene, number))
            column += 1
    return placed


def fitting_parts(maps: SlideMaps, width: float, cells: int) -> list[SlideMaps]:
    """The maps in parts that fit on a page each: as many genes as there is room for, one at least."""
    parts: list[SlideMaps] = []
    first = 0
    for last in range(1, 1 + len(maps.genes)):
        longer = maps.some_genes(first, last + 1)
        if last == len(maps.genes) or _Grid(longer, width, cells).total_height > MAX_HEIGHT:
            parts.append(maps.some_genes(first, last))
            first = last
    return parts


def draw_maps(maps: SlideMaps, width: float, cells: int, dpi: int) -> Figure:
    """Draw the H&E with a scale bar, then for each gene the measured and the predicted expression.

    Args:
        maps: what is drawn.
        width: of the figure, in mm.
        cells: maps in a row.
        dpi: of the picture of the tissue.
    """
    grid = _Grid(maps, width, cells)
    figure = paper_figure(width, grid.total_height)
    pictures = [grid.picture(picture, dpi) for picture in (maps.thumbnail, grey_tissue(maps.thumbnail))]
    for cell in grid.cells:
        left, top = grid.place(cell)
        ax = axes_at(figure, left, top + grid.title_height, grid.side, grid.height)
        _draw_background(ax, *pictures[cell.gene is not None], grid.window)
        if cell.gene is None:
            title = "H&E"
            text_at(figure, left + NAME_SHIFT, top - HEADER + 0.5, maps.slide, fontsize=HEAD, va="top")
            _draw_scale_bar(figure, maps, grid)
        else:
            title = grid.titles[cell.number]
            title += f"\n{pcc_text(maps.pcc[cell.number - 1, cell.gene])}" if cell.number else ""
            discs = _draw_spots(ax, maps, cell.gene, cell.number)
            if cell.number == 0:
                _draw_header(figure, maps, cell.gene, discs, (left, top - HEADER, grid.header_width(cell.gene)))
        if cell.number == 0:
            panel_letter(figure, 0 if cell.gene is None else 1 + cell.gene, left, top - HEADER + 0.3)
        for i, line in enumerate(reversed(title.split("\n"))):
            text_at(figure, left, top + grid.title_height - 1.0 - i * LINE_HEIGHT, line, fontsize=SMALL)
    return figure


def spot_colors() -> Colormap:
    """The colours of expression, from low to high."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps[COLORS](np.linspace(0, LIGHTEST, 256)), name="expression")


def grey_tissue(thumbnail: np.ndarray) -> np.ndarray:
    """A thumbnail (H, W, 3) uint8 in pale greys, of the same shape, its darkest and lightest parts at the ends."""
    light = thumbnail.astype(np.float64) @ (0.299, 0.587, 0.114)
    low, high = np.quantile(light, CLIPPED)
    share = np.clip((light - low) / max(high - low, 1.0), 0, 1)
    grey = np.round(255 * (DARKEST_GREY + (1 - DARKEST_GREY) * share)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def color_limits(values: np.ndarray) -> tuple[float, float]:
    """The ends of the colour scale that the maps of a gene share, (maps, N): it covers `CLIPPED` of each of them."""
    low, high = np.quantile(values, CLIPPED, axis=1)
    return float(low.min()), float(max(high.max(), low.min() + 1e-6))


def pcc_text(pcc: float) -> str:
    """A correlation in words."""
    return f"PCC {pcc:.2f}".replace("-", "−") if np.isfinite(pcc) else "PCC undefined"


def _draw_background(ax: Axes, picture: np.ndarray, extent: tuple[float, ...], window: np.ndarray) -> None:
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


def _draw_header(
    figure: Figure, maps: SlideMaps, gene: int, discs: EllipseCollection, place: tuple[float, float, float]
) -> None:
    """The gene's name, and its colour scale with the unit, above its maps: `place` is left, top and width in mm."""
    left, top, width = place
    text_at(figure, left + NAME_SHIFT, top + 0.5, maps.genes[gene], fontsize=HEAD, fontstyle="italic", va="top")
    low, high = discs.get_clim()
    values = maps.expression(gene)
    beyond = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}
    extend = beyond[bool(values.min() < low), bool(values.max() > high)]
    style: dict[str, Any] = {"fontsize": SMALL, "va": "center"}
    end = f"{_decimal(high)} {maps.unit}"
    right, middle = left + width - text_width(figure, end, **style), top + 1.7
    bar_width, bar_height = COLOR_BAR
    ax = axes_at(figure, right - 1 - bar_width, middle - bar_height / 2, bar_width, bar_height)
    bar: Any = figure.colorbar(discs, cax=ax, orientation="horizontal", extend=extend, ticks=[])
    bar.outline.set_linewidth(HAIRLINE)
    bar.solids.set_rasterized(True)
    text_at(figure, right - 2 - bar_width, middle, _decimal(low), ha="right", **style)
    text_at(figure, right, middle, end, **style)


def _decimal(value: float) -> str:
    return f"{value:.1f}".replace("-0.0", "0.0").replace("-", "−")


def _draw_scale_bar(figure: Figure, maps: SlideMaps, grid: _Grid) -> None:
    """A bar of a round length below the H&E, with its length; nothing where the size of a px is not known."""
    if maps.um_per_px is None:
        return
    um_per_mm = maps.um_per_px / grid.mm_per_px
    um = round_length(BAR_SHARE * grid.side * um_per_mm)
    top = grid.tops[0] + grid.title_height + grid.height + 1.0
    ax = axes_at(figure, EDGE, top, um / um_per_mm, BAR_HEIGHT)
    ax.set(facecolor="k", xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)
    label = f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} µm"
    text_at(figure, EDGE + um / um_per_mm + 1, top + BAR_HEIGHT / 2, label, fontsize=TEXT, va="center_baseline")
