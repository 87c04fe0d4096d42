"""What all figures for a paper share: widths in mm, type, lines, letters of panels, and how they are written."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from hist_cache.errors import InputError
from hist_cache.files import atomic_write
from train.figures import PNG_LEVEL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

Format = Literal["svg", "pdf", "png"]
FORMATS: tuple[Format, ...] = ("svg", "pdf", "png")
MM_PER_INCH = 25.4
ONE_COLUMN, TWO_COLUMNS = 89.0, 183.0  # widths of a journal's page, in mm
PAGE_HEIGHT = 240.0  # mm; a page has no more
TEXT, SMALL, GENE_NAME, LETTER = 6.0, 5.5, 7.0, 8.0  # sizes of type, in points
LINE, HAIRLINE = 0.5, 0.25  # widths of lines, in points
MM_PER_POINT = MM_PER_INCH / 72
LINE_HEIGHT = 1.2 * SMALL * MM_PER_POINT  # of small type, in mm
EDGE = 0.4  # mm that stay free at the left and at the right of a figure
INK, MIDDLE = "0.15", "0.45"
SAVED: dict[Format, dict[str, Any]] = {  # without a date: the same figure is the same file, whenever it is written
    "svg": {"metadata": {"Date": None}},
    "pdf": {"metadata": {"CreationDate": None, "ModDate": None}},
    "png": {"pil_kwargs": {"compress_level": PNG_LEVEL}},
}
RC: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Arial", "Helvetica", "Liberation Sans", "Nimbus Sans", "DejaVu Sans"],  # the first one found
    "font.size": TEXT,
    "axes.labelsize": TEXT,
    "axes.titlesize": TEXT,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "axes.linewidth": LINE,
    "lines.linewidth": LINE,
    "patch.linewidth": LINE,
    "xtick.major.width": LINE,
    "ytick.major.width": LINE,
    "xtick.major.size": 2.0,
    "ytick.major.size": 2.0,
    "xtick.major.pad": 1.5,
    "ytick.major.pad": 1.5,
    "axes.labelpad": 1.5,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.parse_math": False,  # of names of genes and runs, nothing is a formula
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "svg.fonttype": "none",  # text, not outlines
    "svg.hashsalt": "hist-cache",
    "pdf.fonttype": 42,  # TrueType, which editors can edit
    "savefig.facecolor": "white",
    "savefig.bbox": "standard",  # the exact size, nothing cut off or added
}


@dataclass(frozen=True)
class PaperFigure:
    """A figure to be written, and what a reader must know of it."""

    name: str
    """Of its files, without an ending."""
    figure: Figure
    caption: str


def figure_formats(text: str) -> tuple[Format, ...]:
    """The formats in a text such as `svg,pdf`; `InputError` where one is not known, or there is none."""
    names = dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip())
    if not names or (unknown := [name for name in names if name not in FORMATS]):
        what = ", ".join(unknown) if names else repr(text)
        raise InputError(f"--figures {what}: no format of figures; give any of {', '.join(FORMATS)}, with commas")
    return tuple(name for name in FORMATS if name in names)


@contextmanager
def paper_style() -> Iterator[None]:
    """Draw and write figures with this style inside of the block."""
    from matplotlib import rc_context

    fonts = logging.getLogger("matplotlib.font_manager")
    level = fonts.level
    fonts.setLevel(logging.ERROR)  # it warns of every font of the list that the machine lacks
    try:
        with rc_context(RC):
            yield
    finally:
        fonts.setLevel(level)


def paper_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in mm."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / MM_PER_INCH, height / MM_PER_INCH), dpi=300)
    FigureCanvasAgg(figure)
    return figure


def size_mm(figure: Figure) -> tuple[float, float]:
    """Width and height of a figure in mm."""
    width, height = figure.get_size_inches()
    return float(width) * MM_PER_INCH, float(height) * MM_PER_INCH


def axes_at(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in mm, `top` counted from the top of the figure."""
    whole_width, whole_height = size_mm(figure)
    return figure.add_axes(
        (left / whole_width, 1 - (top + height) / whole_height, width / whole_width, height / whole_height)
    )


def text_at(figure: Figure, left: float, top: float, text: str, **style: Any) -> Text:
    """Text at a place in mm, `top` counted from the top of the figure."""
    width, height = size_mm(figure)
    return figure.text(left / width, 1 - top / height, text, **style)


def text_width(figure: Figure, text: str, **style: Any) -> float:
    """Width of a text in mm; with several lines that of the widest."""
    drawn = figure.text(0, 0, text, **style)
    width = float(drawn.get_window_extent().width) / figure.dpi * MM_PER_INCH
    drawn.remove()
    return width


def wrapped_labels(labels: Sequence[str], characters: int, height: float) -> tuple[list[str], np.ndarray]:
    """Labels in lines of so many characters, and the heights of their rows in mm; `height` is that of one line."""
    wrapped = ["\n".join(textwrap.wrap(label, characters)) for label in labels]
    return wrapped, np.array([height + LINE_HEIGHT * label.count("\n") for label in wrapped])


def panel_letter(figure: Figure, number: int, left: float, top: float) -> None:
    """The letter of a panel, `a` for number 0, with its top at a place in mm."""
    name = chr(ord("a") + number % 26) * (1 + number // 26)
    text_at(figure, left, top, name, fontsize=LETTER, fontweight="bold", va="top")


def plain_axes(ax: Axes) -> None:
    """Remove the sides of the axes that have no ticks."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def save_paper_figure(figure: Figure, folder: Path, name: str, formats: Sequence[Format], dpi: int) -> list[Path]:
    """Write a figure in several formats, each file whole or not at all.

    Args:
        figure: drawn within `paper_style`, as this call is.
        folder: made if it is not there.
        name: of the files, without an ending.
        formats: to write.
        dpi: of PNG, and of the pictures in SVG and PDF.
    """
    paths = [folder / f"{name}.{format}" for format in formats]
    for path, format in zip(paths, formats, strict=True):
        with atomic_write(path) as aside:
            figure.savefig(aside, format=format, dpi=dpi, **SAVED[format])
    return paths
