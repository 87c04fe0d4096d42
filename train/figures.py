"""Drawing that all figures share: canvas, colours, axes, tissue with its spots, and the style of each embedding."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from hist_cache.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import EllipseCollection
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "0.45"  # Okabe and Ito's palette, safe for colour-blind readers
PALE_BLUE = "#8fb8d4"
DPI = 110
PNG_LEVEL = 3  # of compression: half the time of zlib's default, at a few per cent more
SPOT_ENLARGEMENT = 1.25  # spots are drawn larger than they are, so that small ones can be seen


class EmbeddingStyle(NamedTuple):
    """How an embedding is named and drawn: images and genes differ in colour, spots and niches in line style."""

    label: str
    color: str
    line: str


EMBEDDING_STYLES = {
    "image_spot": EmbeddingStyle("image, spot", "#1b9e77", "-"),
    "image_niche": EmbeddingStyle("image, niche", "#1b9e77", "--"),
    "gene_spot": EmbeddingStyle("gene, spot", "#7570b3", "-"),
    "gene_niche": EmbeddingStyle("gene, niche", "#7570b3", "--"),
}


def new_figure(columns: int, rows: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """A figure with a grid of axes, made without pyplot, whose global state is not safe in threads.

    Args:
        columns: axes in a row.
        rows: axes in a column.
        width: of one of the axes, in inches.
        height: of one of the axes, in inches.

    Returns:
        The figure, and its axes as an array of shape (rows, columns).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, np.atleast_2d(figure.subplots(rows, columns, squeeze=False))


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with atomic_write(path) as aside:
        figure.savefig(aside, dpi=DPI, format="png", pil_kwargs={"compress_level": PNG_LEVEL})


def quiet_axes(ax: Axes, grid: Literal["both", "x"] = "both") -> None:
    """Remove the box around the axes and draw a light grid; with vertical grid lines alone, the left side goes too."""
    for side in ("top", "right", "left") if grid == "x" else ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color("0.7")
    ax.grid(axis=grid, color="0.92", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=9, color="0.7")


def spot_aspect(coords: np.ndarray) -> float:
    """Height over width of the area that spots cover, between 0.5 and 1.6, so that a map is neither flat nor tall.

    Args:
        coords: (N, 2) positions of the spots, x and y.
    """
    width, height = np.ptp(coords, axis=0)
    return float(min(max(height / max(width, 1.0), 0.5), 1.6))


def draw_tissue(ax: Axes, picture: dict[str, Any], coords: np.ndarray) -> None:
    """Draw a slide's thumbnail, cut to the area of its spots.

    Args:
        ax: where to draw.
        picture: the slide's entry of `uns["spatial"]`: thumbnail and scale.
        coords: (N, 2) centres of the spots, x and y, in px of the full resolution.
    """
    ax.imshow(picture["images"]["lowres"], interpolation="bilinear")
    ax.set_xticks([])
    ax.set_yticks([])
    x, y = (coords * picture["scalefactors"]["tissue_lowres_scalef"]).T
    margin = 0.08 * max(np.ptp(x), np.ptp(y), 1)
    ax.set_xlim(x.min() - margin, x.max() + margin)
    ax.set_ylim(y.max() + margin, y.min() - margin)


def draw_spots(ax: Axes, picture: dict[str, Any], coords: np.ndarray, values: np.ndarray) -> EllipseCollection:
    """Draw spots as discs on the tissue, coloured by a value.

    Args:
        ax: where `draw_tissue` has drawn.
        picture: the slide's entry of `uns["spatial"]`: thumbnail and scale.
        coords: (N, 2) centres of the spots, x and y, in px of the full resolution.
        values: (N,) what the colours show.

    Returns:
        The discs, for a colour bar or for other limits of the colours.
    """
    from matplotlib.collections import EllipseCollection

    scale = picture["scalefactors"]["tissue_lowres_scalef"]
    size = np.full(len(values), SPOT_ENLARGEMENT * picture["scalefactors"]["spot_diameter_fullres"] * scale)
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
    ax.add_collection(discs)
    return discs


def round_length(most: float) -> float:
    """The longest of 1, 2, 5, 10, 20, ... that is no more than a length."""
    power = 10.0 ** np.floor(np.log10(most))
    return float(power * max(step for step in (1, 2, 5) if step * power <= most * (1 + 1e-9)))


def draw_scale_bar(ax: Axes, um_per_unit: float, share: float = 0.3) -> None:
    """Draw a bar of a round length, and the length in um, at the lower left of a map.

    Args:
        ax: where `draw_tissue` has drawn.
        um_per_unit: um for each unit of the axes, which is a px of the thumbnail.
        share: of the map's width that the bar has at most.
    """
    (left, right), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    um = round_length(share * abs(right - left) * um_per_unit)
    x, y = left + 0.05 * (right - left), bottom + 0.06 * (top - bottom)
    ax.plot([x, x + um / um_per_unit], [y, y], color="k", linewidth=3, solid_capstyle="butt")
    label = f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} µm"
    place = ((x + um / um_per_unit / 2), y)
    ax.annotate(label, place, (0, 3), textcoords="offset points", fontsize=8, ha="center", va="bottom")
