"""Plain axes for small figures: a frame, lines, marks, texts, ticks and a legend, in pixels of a figure.

The axes of matplotlib make each tick as an object of seven others, and measure all of them again and again to find room
for titles. For figures of which each fold has some, that takes several times as long as drawing. What is drawn here
lies where it is told to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from train.figures import DPI

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.text import Text

TICK_POINTS = 3.5  # length of a tick, and the room between it and its label
TICK_FONT = 8
LABEL_POINTS = 4.0  # between labels of ticks and the label of their axis
TITLE_FONT = 10
TITLE_ROOM = 0.25  # for the title of a figure, in inches
TITLE_INCHES = 0.08  # between the top of a figure and its title
TITLE_POINTS = 6.0  # between frame and title
FEW_TICKS = 5  # at most, and so many more in a longer axis
PX_A_TICK = {"x": 50, "y": 30}
TICK_STEPS = [1, 2, 2.5, 5, 10]
MARGIN = 0.05  # of data that reach the frame
SAME = 1e-5  # a range that is smaller than this share of its values is widened
LEGEND_FONT = 7
LEGEND_PLACES = [(1.0, 1.0), (0.0, 1.0), (0.0, 0.0), (1.0, 0.0), (1.0, 0.5), (0.0, 0.5)]  # the first ones are preferred
LEGEND_GAP_POINTS = 5.0
LEGEND_LINE_POINTS = 11.0  # from a line of the legend to the next
LEGEND_SAMPLE_POINTS = 14.0  # length of a line in it


def fixed_figure(
    columns: int, rows: int, size: tuple[float, float], margins: tuple[float, float, float, float], head: float = 0.0
) -> tuple[Figure, list[list[QuickAxes]]]:
    """A figure with a grid of axes.

    Args:
        columns: axes in a row.
        rows: axes in a column.
        size: width and height of one of the axes with its margins, in inches.
        margins: left, right, top and bottom of one of the axes, in inches.
        head: room above all axes, in inches.

    Returns:
        The figure, and its axes row by row.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    (width, height), (left, right, top, bottom) = size, margins
    figure = Figure(figsize=(columns * width, rows * height + head), dpi=DPI)
    FigureCanvasAgg(figure)
    inner = (width - left - right) * DPI, (height - top - bottom) * DPI
    lefts = [(i * width + left) * DPI for i in range(columns)]
    bottoms = [((rows - 1 - j) * height + bottom) * DPI for j in range(rows)]
    return figure, [[QuickAxes(figure, x, y, *inner) for x in lefts] for y in bottoms]


def write_title(figure: Figure, text: str) -> None:
    """Write a title above all axes of a figure, in the room that it has there."""
    figure.text(0.5, 1 - TITLE_INCHES / figure.get_figheight(), text, fontsize=TITLE_FONT, ha="center", va="top")


class QuickAxes:
    """A rectangle of a figure with data coordinates.

    Args:
        figure: It is drawn at its own resolution.
        left: Of the rectangle, in px from the left of the figure.
        bottom: In px from its bottom.
        width: In px.
        height: In px.
    """

    def __init__(self, figure: Figure, left: float, bottom: float, width: float, height: float) -> None:
        self.figure = figure
        self.lines: list[Line2D] = []
        self.texts: list[Text] = []
        self.move(left, bottom, width, height)
        self.limit((0.0, 1.0), (0.0, 1.0))

    def move(self, left: float, bottom: float, width: float, height: float) -> None:
        """Make it another rectangle, before anything is drawn."""
        from matplotlib.transforms import Bbox

        self.box = Bbox.from_bounds(left, bottom, width, height)

    def limit(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        """Say which data lie at the left and right, and at the bottom and top; before anything is drawn by them."""
        from matplotlib.transforms import Bbox, BboxTransform

        self.x, self.y = x, y
        self.to_px = BboxTransform(Bbox([[x[0], y[0]], [x[1], y[1]]]), self.box)

    def points(self, count: float) -> float:
        """Typographic points in px."""
        return count * self.figure.dpi / 72

    def add(self, artist: Artist) -> None:
        """Draw something in data coordinates, cut at the frame."""
        artist.set_transform(self.to_px)
        artist.set_clip_box(self.box)
        self.figure.add_artist(artist)

    def line(self, x: Any, y: Any, **look: Any) -> None:
        """Draw a line, or marks, as `Axes.plot` does."""
        from matplotlib.lines import Line2D

        line = Line2D(x, y, **look)
        self.add(line)
        self.lines.append(line)

    def picture(self, pixels: np.ndarray, left: int, bottom: int) -> None:
        """Draw `(height, width, 4)` pixels as they are, without scaling them anew, at a place in px."""
        from matplotlib.artist import Artist

        class Picture(Artist):
            def draw(self, renderer: Any) -> None:
                graphics = renderer.new_gc()
                renderer.draw_image(graphics, left, bottom, pixels[::-1])
                graphics.restore()

        self.figure.add_artist(Picture())

    def text(self, x: float, y: float, text: str, size: float, **more: Any) -> None:
        """Write a text as it is at a place in px; a $ in it begins no formula."""
        from matplotlib.transforms import IdentityTransform

        written = self.figure.text(x, y, text, fontsize=size, parse_math=False, transform=IdentityTransform(), **more)
        self.texts.append(written)

    def title(self, text: str, size: float) -> None:
        """Write a title above the frame."""
        middle = (self.box.x0 + self.box.x1) / 2
        self.text(middle, self.box.y1 + self.points(TITLE_POINTS), text, size, ha="center")

    def frame(self) -> None:
        """Draw the four sides."""
        from matplotlib.patches import Rectangle

        sides = Rectangle(self.box.p0, self.box.width, self.box.height, fill=False, linewidth=0.8, zorder=2.5)
        sides.set_transform(_identity())
        self.figure.add_artist(sides)

    def ticks(self, x_label: str, y_label: str = "", integer_x: bool = False) -> None:
        """Draw ticks with numbers below and left of the frame, and what they are."""
        box, out, room = self.box, self.points(TICK_POINTS), self.points(2 * TICK_POINTS)
        marks, widest = [], 0.0
        for value, label in tick_labels(*self.x, self._most("x"), integer_x):
            at = float(self.to_px.transform((value, self.y[0]))[0])
            marks.append([(at, box.y0 - out), (at, box.y0)])
            self.text(at, box.y0 - room, label, TICK_FONT, ha="center", va="top")
        for value, label in tick_labels(*self.y, self._most("y")):
            at = float(self.to_px.transform((self.x[0], value))[1])
            marks.append([(box.x0 - out, at), (box.x0, at)])
            widest = max(widest, self.text_width(label, TICK_FONT))
            self.text(box.x0 - room, at, label, TICK_FONT, ha="right", va="center_baseline")
        self._draw_marks(marks)
        below = box.y0 - room - self.points(TICK_FONT + LABEL_POINTS)
        self.text((box.x0 + box.x1) / 2, below, x_label, TICK_FONT, ha="center", va="top")
        if y_label:
            left = box.x0 - room - widest - self.points(LABEL_POINTS)
            middle = (box.y0 + box.y1) / 2
            self.text(left, middle, y_label, TICK_FONT, ha="right", va="center", rotation=90)

    def _most(self, axis: str) -> int:
        return max(FEW_TICKS, int((self.box.width if axis == "x" else self.box.height) / PX_A_TICK[axis]))

    def _draw_marks(self, marks: list[list[tuple[float, float]]]) -> None:
        from matplotlib.collections import LineCollection

        self.figure.add_artist(LineCollection(marks, colors="k", linewidths=0.8, transform=_identity()))

    def text_width(self, text: str, size: float) -> float:
        """Of a text in one line, in px."""
        from matplotlib.font_manager import FontProperties

        renderer: Any = self.figure.canvas.get_renderer()  # type: ignore[attr-defined]
        return float(renderer.get_text_width_height_descent(text, FontProperties(size=size), False)[0])

    def legend(self, place: tuple[float, float] | None = None, marker_scale: float = 1.0) -> None:
        """Name the lines that have a label.

        Args:
            place: From 0 to 1 from left to right, and from bottom to top; None: one of `LEGEND_PLACES`.
            marker_scale: Marks are drawn so many times as large as in the figure.
        """
        from matplotlib.lines import Line2D

        named = [(line, str(line.get_label())) for line in self.lines if line.get_label()]
        sample, gap, step = (self.points(p) for p in (LEGEND_SAMPLE_POINTS, LEGEND_GAP_POINTS, LEGEND_LINE_POINTS))
        size = np.array(
            [sample + gap + max(self.text_width(label, LEGEND_FONT) for _, label in named), step * len(named)]
        )
        left, bottom = self._emptiest(size, gap) if place is None else self._place(place, size, gap)
        for i, (line, label) in enumerate(named):
            y = bottom + size[1] - (i + 0.5) * step
            drawn = Line2D([left, left + sample], [y, y])
            drawn.update_from(line)
            if line.get_linestyle() == "None":
                drawn.set_data([left + sample / 2], [y])
                drawn.set_markersize(line.get_markersize() * marker_scale)
            drawn.set_transform(_identity())
            drawn.set_clip_box(None)
            self.figure.add_artist(drawn)
            self.text(left + sample + gap, y, label, LEGEND_FONT, va="center_baseline")

    def _place(self, place: tuple[float, float], size: np.ndarray, gap: float) -> np.ndarray:
        """Left and bottom of something of a size, so far from the frame."""
        room = self.box.p1 - self.box.p0 - size - 2 * gap
        return np.asarray(self.box.p0 + gap + room * place)

    def _emptiest(self, size: np.ndarray, gap: float) -> np.ndarray:
        """Left and bottom of something of a size where the fewest points of lines would be under it."""
        points = np.concatenate([self._along(line) for line in self.lines])

        def covered(low: np.ndarray) -> int:
            return int(((points > low - gap) & (points < low + size + gap)).all(axis=1).sum())

        return min((self._place(place, size, gap) for place in LEGEND_PLACES), key=covered)

    def _along(self, line: Line2D) -> np.ndarray:
        """Points along a line, close to each other, in px: `(n, 2)`."""
        corners = self.to_px.transform(np.asarray(line.get_xydata(), dtype=float))
        at = np.linspace(0, len(corners) - 1, 100)
        return np.stack([np.interp(at, np.arange(len(corners)), corners[:, k]) for k in range(2)], axis=1)


def _identity() -> Any:
    from matplotlib.transforms import IdentityTransform

    return IdentityTransform()


def data_limits(values: Any, margin: float = MARGIN) -> tuple[float, float]:
    """Limits of an axis around all finite values; 0 and 1 where there are none."""
    finite = np.asarray(values, dtype=float).ravel()
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    largest = max(abs(low), abs(high))
    if high - low <= SAME * largest:
        around = MARGIN * (largest or 1.0)
        low, high = low - around, high + around
    return low - margin * (high - low), high + margin * (high - low)


def tick_labels(low: float, high: float, most: int, integer: bool = False) -> Sequence[tuple[float, str]]:
    """Round numbers between two limits, and how each is written, all with as many digits."""
    from matplotlib.ticker import MaxNLocator

    if not high > low:
        return [(low, f"{low:.4g}")]
    values = MaxNLocator(most, steps=TICK_STEPS, integer=integer, min_n_ticks=1).tick_values(low, high)
    step = float(values[1] - values[0]) if len(values) > 1 else 1.0
    rounding = 1e-9 * (high - low)
    inside = [float(value) for value in values if low - rounding <= value <= high + rounding]
    exponent = math.floor(math.log10(step))
    digits = max(0, -exponent + (abs(step / 10.0**exponent - 2.5) < 1e-6))
    plain = digits <= 6 and max(map(abs, inside), default=0.0) < 1e5
    return [(value, f"{value + 0.0:.{digits}f}" if plain else f"{value:.4g}") for value in inside]
