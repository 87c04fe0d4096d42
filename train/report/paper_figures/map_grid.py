"""What maps of genes on a slide show, and where each of them stands on the page."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from train.report.paper_figures.style import (
    EDGE,
    GENE_NAME,
    LINE_HEIGHT,
    MM_PER_INCH,
    ONE_COLUMN,
    PAGE_HEIGHT,
    SMALL,
    paper_figure,
    text_width,
)

CLIPPED = (0.01, 0.99)  # quantiles of each map that the colour scale covers
WINDOW_MARGIN = 0.06  # around the outermost spots, as a share of what they span
ASPECTS = (0.5, 1.6)  # height over width that a map may have
GAP = 2.0  # mm between maps
HEADER, BAR_STRIP, ROW_GAP = 5.2, 4.0, 2.5  # mm above the maps of a gene, below the H&E, and between rows
STACKED = 3.0  # mm more above the maps where a colour scale stands below the name
COLOR_BAR = (13.0, 1.5)  # width and height in mm
NAME_SHIFT = 3.2  # mm from the letter of a panel to its name
TITLE_WIDTH = 21  # characters of a map's title in one line


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
class MapCell:
    """A map: its place, and what is drawn there."""

    row: int
    column: int
    gene: int | None
    """None for the H&E."""
    number: int
    """Of the map among those of its gene: 0 is measured, the others are the runs'."""


class MapGrid:
    """Where everything stands in a figure `width` mm wide with `cells` maps in a row; all lengths in mm."""

    def __init__(self, maps: SlideMaps, width: float, cells: int) -> None:
        self.side = (width - 2 * EDGE - GAP * (cells - 1)) / cells
        low, high = maps.spots.min(0), maps.spots.max(0)
        margin = WINDOW_MARGIN * max(*(high - low), 1)
        self.window = np.stack([low - margin, high + margin])
        """Upper left and lower right corner of what is drawn, (2, 2) in px of the thumbnail."""
        x_span, y_span = self.window[1] - self.window[0]
        self.height = self.side * float(np.clip(y_span / x_span, *ASPECTS))
        self.mm_per_px = min(self.side / x_span, self.height / y_span)
        self.titles = [textwrap.fill(title, TITLE_WIDTH) for title in ("measured", *maps.runs)]
        self.tissue_title = textwrap.fill(f"{maps.slide}, H&E", TITLE_WIDTH)
        lines = self.tissue_title.count("\n"), *(1 + title.count("\n") for title in self.titles)
        self.title_height = LINE_HEIGHT * (1 + max(lines))
        self.cells = _placed(len(self.titles), len(maps.genes), cells)
        needed = header_widths(maps)
        self.stacked = any(needed[gene] > self.header_width(gene) for gene in range(len(maps.genes)))
        """Whether the colour scales stand below the names of genes, as there is no room beside these."""
        self.header = HEADER + STACKED * self.stacked
        headed = {cell.row for cell in self.cells if cell.number == 0}
        self.tops, top = [], 0.0
        for row in range(1 + max(cell.row for cell in self.cells)):
            self.tops.append(top + self.header * (row in headed))
            top = self.tops[-1] + self.title_height + self.height + BAR_STRIP * (row == 0) + ROW_GAP
        self.width, self.total_height = width, top - ROW_GAP + 0.5

    def place(self, cell: MapCell) -> tuple[float, float]:
        """Left and top of a cell: of its map's title, which stands above the map and below its gene's header."""
        return EDGE + cell.column * (self.side + GAP), self.tops[cell.row]

    def picture(self, thumbnail: np.ndarray, dpi: int) -> tuple[np.ndarray, tuple[float, float, float, float]]:
        """The part of a thumbnail that is seen, at a resolution, and where it is: left, right, bottom and top in px."""
        low, high = np.maximum(self.window[0], 0), np.minimum(self.window[1], thumbnail.shape[1::-1])
        size = np.maximum(np.round((high - low) * self.mm_per_px * dpi / MM_PER_INCH), 1).astype(int)
        image = Image.fromarray(thumbnail).convert("RGB")
        part = image.resize((int(size[0]), int(size[1])), Image.Resampling.BICUBIC, box=(*low, *high))
        return np.asarray(part), (float(low[0]), float(high[0]), float(high[1]), float(low[1]))

    def header_width(self, gene: int) -> float:
        """Width of a gene's maps in the row where they begin."""
        own = [cell for cell in self.cells if cell.gene == gene]
        return sum(cell.row == own[0].row for cell in own) * (self.side + GAP) - GAP


def _placed(n_maps: int, n_genes: int, cells: int) -> list[MapCell]:
    """The H&E, beside it the first gene, then further genes, side by side where they fit into what is left of a row."""
    placed = [MapCell(0, 0, None, 0)]
    row, column = 0, 1
    for gene in range(n_genes):
        if gene > 0 and column + n_maps > cells:
            row, column = row + 1, 0
        for number in range(n_maps):
            if column == cells:
                row, column = row + 1, 0
            placed.append(MapCell(row, column, gene, number))
            column += 1
    return placed


def fitting_parts(maps: SlideMaps, width: float, cells: int) -> list[SlideMaps]:
    """The maps in parts that fit on a page each: as many genes as there is room for, one at least."""
    parts: list[SlideMaps] = []
    first = 0
    for last in range(1, 1 + len(maps.genes)):
        longer = maps.some_genes(first, last + 1)
        if last == len(maps.genes) or MapGrid(longer, width, cells).total_height > PAGE_HEIGHT:
            parts.append(maps.some_genes(first, last))
            first = last
    return parts


def color_limits(values: np.ndarray) -> tuple[float, float]:
    """The ends of the colour scale that the maps of a gene share, (maps, N): it covers `CLIPPED` of each of them."""
    low, high = np.quantile(values, CLIPPED, axis=1)
    return float(low.min()), float(max(high.max(), low.min() + 1e-6))


def header_widths(maps: SlideMaps) -> list[float]:
    """Room in mm that each gene's name and colour scale take side by side."""
    scratch = paper_figure(ONE_COLUMN, HEADER)
    widths = []
    for gene, name in enumerate(maps.genes):
        low, high = color_limits(maps.expression(gene))
        texts = (decimal_text(low), f"{decimal_text(high)} {maps.unit}")
        of_name = text_width(scratch, name, fontsize=GENE_NAME, fontstyle="italic")
        widths.append(
            NAME_SHIFT + of_name + 4 + COLOR_BAR[0] + sum(text_width(scratch, t, fontsize=SMALL) for t in texts)
        )
    return widths


def decimal_text(value: float) -> str:
    """An end of a colour scale."""
    return f"{value:.1f}".replace("-0.0", "0.0").replace("-", "−")
