"""Where tissue is on an H&E slide, found on its overview.

The two stains of H&E absorb green light more than at least one of red and blue; glass, dust, air bubbles and black ink
absorb all three alike. So `magenta` (the optical density of green less the smaller one of red and blue) is what tells
tissue from all of these, whatever the brightness of the lamp. Its threshold is Otsu's, but never less than
`MIN_CONTRAST` above the glass, because Otsu's method divides an empty slide in two as well, and never more than
`MAX_CONTRAST` above it, so that pale tissue beside dark tissue is kept. Blue and green ink absorbs red light more than
green, which H&E hardly does. Red ink and blood outside of tissue are taken for tissue: draw a mask there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

MASK_UM = 10.0  # pixel size of masks; those of a coarser overview are as large as the overview's
SMOOTH_UM = 16.0  # standard deviation of the Gaussian: two cells, so that the gaps between them close
MIN_CONTRAST = 0.045  # optical density; the pink haze beside tissue on four real slides reaches 0.04 in 99.9 % of it
MAX_CONTRAST = 0.08  # optical density; the measured spots of these slides have more, but for a few on fat
GLASS_SHARE = 0.1  # of the slide that is taken for glass: its lightest, least stained part
MAX_GLASS = 0.16  # optical density of green, 176 of 255: a slide without as light a part is tissue all over
MIN_TISSUE_MM2 = 0.05  # smaller pieces are specks; the cores of tissue arrays have 0.28 or more
MAX_HOLE_MM2 = 0.2  # smaller holes are lumens, fat or cracks
BLACK = 50  # 8-bit; a pixel without any colour above it is the scanner's border or black ink
INK_RATIO, INK_CONTRAST = 1.2, 0.05  # of red's optical density to green's, and their difference; tissue: 1.17 at most
INK_MARGIN_UM = 60.0  # around ink, where it is thin
_DENSITY = -np.log10(np.maximum(np.arange(256, dtype=np.float32), 8) / 255)  # of 8-bit values; below 8 there is noise


@dataclass(frozen=True)
class TissueMask:
    """Where a slide has tissue, in pixels much larger than the slide's own.

    Attributes:
        pixels: (h, w) bool, true on tissue; its corners are those of the slide.
        width: Width of the slide, level-0 px.
        height: Height of the slide, level-0 px.
        um_per_px: Pixel size of level 0.
    """

    pixels: NDArray[np.bool_]
    width: int
    height: int
    um_per_px: float

    @property
    def area_mm2(self) -> float:
        """Area of the tissue."""
        return float(self.pixels.mean()) * self.width * self.height * (self.um_per_px / 1000) ** 2

    def contains(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Tell which points lie on tissue; none outside of the slide does.

        Args:
            points: (..., 2) level-0 px, x then y.

        Returns:
            (...) bool.
        """
        h, w = self.pixels.shape
        column = np.floor(points[..., 0] * (w / self.width)).astype(np.int64)
        row = np.floor(points[..., 1] * (h / self.height)).astype(np.int64)
        inside = (column >= 0) & (row >= 0) & (column < w) & (row < h)
        found: NDArray[np.bool_] = inside & self.pixels[np.where(inside, row, 0), np.where(inside, column, 0)]
        return found


def find_tissue(overview: NDArray[np.uint8], size: tuple[int, int], um_per_px: float) -> TissueMask:
    """Find the tissue of an H&E slide.

    Args:
        overview: (h, w, 3) RGB of the whole slide, see `Image.overview`.
        size: Width and height of the slide, level-0 px.
        um_per_px: Pixel size of level 0.

    Returns:
        The tissue, in pixels of `MASK_UM` or those of the overview, whichever are larger; nothing on an empty slide.
    """
    rgb = _shrink(overview, mask_shape(size, um_per_px))
    um = (size[0] / rgb.shape[1] * um_per_px, size[1] / rgb.shape[0] * um_per_px)
    channels = [rgb[..., i] for i in range(3)]
    light, dark = np.maximum.reduce(channels), np.minimum.reduce(channels)
    no_slide = (light < BLACK) | (dark == 255)  # black border, white padding
    red, green, blue = _smooth([_DENSITY[channel] for channel in channels], no_slide, um)
    ink = _grow((red > INK_RATIO * green) & (red > green + INK_CONTRAST), INK_MARGIN_UM, um)
    usable = ~no_slide & ~ink
    magenta = green - np.minimum(red, blue)
    tissue = _without_specks((magenta > _threshold(magenta[usable], green[usable])) & usable, um)
    return TissueMask(_fill_holes(tissue, um) & ~ink, *size, um_per_px)


def mask_shape(size: tuple[int, int], um_per_px: float) -> tuple[int, int]:
    """Return height and width of a mask with pixels of `MASK_UM`.

    Args:
        size: Width and height of the slide, level-0 px.
        um_per_px: Pixel size of level 0.
    """
    scale = um_per_px / MASK_UM
    return max(1, round(size[1] * scale)), max(1, round(size[0] * scale))


def _shrink(overview: NDArray[np.uint8], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Average pixels of an overview down to (h, w); one that is smaller already stays as it is."""
    import PIL.Image

    height, width = min(shape[0], overview.shape[0]), min(shape[1], overview.shape[1])
    return np.asarray(PIL.Image.fromarray(overview).resize((width, height), PIL.Image.Resampling.BOX))


def _smooth(
    channels: list[NDArray[np.float32]], left_out: NDArray[np.bool_], um: tuple[float, float]
) -> list[NDArray[np.float32]]:
    """Average channels over `SMOOTH_UM`, only over pixels that are not left out; 0 where there is none of them."""
    sigma = (SMOOTH_UM / um[1], SMOOTH_UM / um[0])
    if not left_out.any():
        return [ndimage.gaussian_filter(channel, sigma, truncate=3) for channel in channels]
    kept = 1 - left_out.astype(np.float32)
    weight = np.maximum(ndimage.gaussian_filter(kept, sigma, truncate=3), np.float32(1e-3))
    return [ndimage.gaussian_filter(channel * kept, sigma, truncate=3) / weight for channel in channels]


def _threshold(magenta: NDArray[np.float32], green: NDArray[np.float32]) -> float:
    """Return the magenta that divides tissue from glass, which may be tinted.

    Args:
        magenta: (N,) of the pixels of the slide.
        green: (N,) their optical density of green.
    """
    if not magenta.size:
        return np.inf
    if np.quantile(green, GLASS_SHARE) > MAX_GLASS:
        return MIN_CONTRAST  # there is hardly any glass
    glass = float(np.quantile(magenta, GLASS_SHARE))
    return glass + float(np.clip(otsu(magenta) - glass, MIN_CONTRAST, MAX_CONTRAST))


def otsu(values: NDArray[np.float32]) -> float:
    """Return the value that divides values into two classes with the largest variance between the classes (Otsu 1979).

    Args:
        values: (N,), N at least 1.
    """
    counts, edges = np.histogram(values, bins=256)
    centers = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    sums = np.cumsum(counts * centers)
    above = counts.sum() - below
    with np.errstate(invalid="ignore", divide="ignore"):
        between = below * above * (sums[:-1] / below - (sums[-1] - sums[:-1]) / above) ** 2
    best = np.flatnonzero(between == np.nanmax(between)) if np.isfinite(between).any() else np.array([0])
    return float(edges[1:][best].mean())  # empty bins between two classes are all as good


def _grow(mask: NDArray[np.bool_], margin_um: float, um: tuple[float, float]) -> NDArray[np.bool_]:
    """Grow a mask by a margin to all sides."""
    if not mask.any():
        return mask
    size = [2 * int(np.ceil(margin_um / side)) + 1 for side in (um[1], um[0])]
    grown: NDArray[np.bool_] = ndimage.maximum_filter(mask, size=size)
    return grown


def _without_specks(mask: NDArray[np.bool_], um: tuple[float, float]) -> NDArray[np.bool_]:
    """Remove pieces smaller than `MIN_TISSUE_MM2`."""
    label, n = ndimage.label(mask, structure=np.ones((3, 3)))
    large = np.bincount(label.ravel(), minlength=n + 1) * um[0] * um[1] / 1e6 >= MIN_TISSUE_MM2
    large[0] = False
    return large[label]


def _fill_holes(mask: NDArray[np.bool_], um: tuple[float, float]) -> NDArray[np.bool_]:
    """Fill holes smaller than `MAX_HOLE_MM2`, which touch no border of the slide."""
    label, n = ndimage.label(~mask)
    small = np.bincount(label.ravel(), minlength=n + 1) * um[0] * um[1] / 1e6 < MAX_HOLE_MM2
    small[0] = True
    small[np.concatenate([label[0], label[-1], label[:, 0], label[:, -1]])] = False
    small[0] = True  # tissue, also at the border
    return small[label]
