"""A picture to look at: the spots on the slide, those on tissue in another colour than the others, and their counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from extract.slides.image import Image, make_thumbnail
from hist_cache.files import atomic_write

ON_TISSUE, OFF_TISSUE = (0, 110, 60), (213, 94, 0)  # told apart by the colour-blind, and on pink
MIN_CIRCLE_PX = 4.0  # smaller spots are points
PALE = 0.65  # how much of the slide is whitened under the counts
MAX_DRAWN = 200_000  # spots; more are drawn as every second, third, ... of them


def write_overlay(
    path: Path, image: Image, coords: NDArray[np.float64], diameter_px: float, on_tissue: NDArray[np.bool_],
    totals: NDArray[np.float64],
) -> None:  # fmt: skip
    """Write the slide with the outlines of spots, and beside it with their total counts from dark (few) to light.

    Args:
        path: The PNG file to write.
        image: The slide.
        coords: (N, 2) spot centres, x then y, level-0 px.
        diameter_px: Diameter of a spot, level-0 px.
        on_tissue: (N,) whether tissue was found there.
        totals: (N,) total counts.
    """
    import PIL.Image
    from matplotlib import colormaps

    thumbnail = make_thumbnail(image)
    shrink = thumbnail.shape[1] / image.width
    step = len(coords) // MAX_DRAWN + 1
    centers, radius = coords[::step] * shrink, diameter_px * shrink / 2
    level = np.log1p(totals[::step])
    span = float(np.ptp(level)) or 1.0
    fills = (colormaps["viridis"]((level - level.min()) / span)[:, :3] * 255).round().astype(int)
    outlines = np.where(on_tissue[::step, None], ON_TISSUE, OFF_TISSUE)
    pale = (thumbnail * (1 - PALE) + 255 * PALE).astype(np.uint8)
    panels = [_draw(thumbnail, centers, radius, outlines, False), _draw(pale, centers, radius, fills, True)]
    with atomic_write(path) as aside:
        PIL.Image.fromarray(np.concatenate(panels, axis=1)).save(aside, format="PNG")


def _draw(
    picture: NDArray[np.uint8], centers: NDArray[np.float64], radius: float, colors: NDArray[np.int64], filled: bool
) -> NDArray[np.uint8]:
    import PIL.Image
    import PIL.ImageDraw

    canvas = PIL.Image.fromarray(picture)
    pen = PIL.ImageDraw.Draw(canvas)
    for (x, y), color in zip(centers.tolist(), map(tuple, colors.tolist()), strict=True):
        if 2 * radius < MIN_CIRCLE_PX:
            pen.point((x, y), fill=color)
            continue
        box = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse(box, fill=color) if filled else pen.ellipse(box, outline=color, width=1)
    return np.asarray(canvas)
