"""How the positions of a source become positions on an image, and which of the ways fits tissue or a small image best.

A wrong way is one that users meet: x and y interchanged, an image that was mirrored or turned after the positions were
made, an image of another resolution.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from extract.slides.tissue import TissueMask

Flip = Literal["x", "y", "xy"]
FLIPS: tuple[Flip | None, ...] = (None, "x", "y", "xy")
COMMON_SCALES = tuple(2.0**i for i in range(-4, 5))  # levels of pyramids, and images halved by hand
SPOT_REACH = 0.75  # of a pitch: discs of this radius leave no gap between neighbouring spots
GAIN, OVERLAP_GAIN = 0.1, 0.05  # by which another placement must be better in both to be clearly better
MAX_SIDE_DIFFERENCE = 0.003  # relative, between the proportions of an image and of a small copy, beside rounding
COMPARED_PX = 256  # longer side of pictures that are compared


@dataclass(frozen=True)
class Placement:
    """What is done to the positions of a source, in this order.

    Attributes:
        swap_xy: Exchange x and y.
        scale: Multiply by this: px of the image per px of the positions.
        flip: Mirror along x, y or both within the image.
    """

    swap_xy: bool = False
    scale: float = 1.0
    flip: Flip | None = None

    def apply(self, coords: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
        """Place positions on an image.

        Args:
            coords: (N, 2) x then y, px of the source.
            size: Width and height of the image, px.

        Returns:
            (N, 2) x then y, px of the image.
        """
        placed = (coords[:, ::-1] if self.swap_xy else coords) * self.scale
        for axis, name in enumerate("xy"):
            if name in (self.flip or ""):
                placed[:, axis] = size[axis] - placed[:, axis]
        return placed

    def turn(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Exchange and mirror the rows and columns of a picture (h, w, ...) as positions on it are."""
        turned = picture.swapaxes(0, 1) if self.swap_xy else picture
        turned = turned[:, ::-1] if "x" in (self.flip or "") else turned
        return turned[::-1] if "y" in (self.flip or "") else turned

    @property
    def flags(self) -> str:
        """The options of the command that give this placement, as an advice."""
        flags = ["--swap-xy"] if self.swap_xy else []
        flags += [f"--flip {self.flip}"] if self.flip else []
        flags += [f"--scale {self.scale:.6g}"] if self.scale != 1 else []
        return f"give {' '.join(flags)}" if flags else "give none of --swap-xy, --flip and --scale"


@dataclass(frozen=True)
class TissueFit:
    """How well placed spots fit the tissue of an image.

    Attributes:
        placement: How they are placed.
        on_tissue: Share of the spots whose centre is on tissue.
        overlap: Area that is tissue and among spots, as a share of what is either: from 0 to 1.
    """

    placement: Placement
    on_tissue: float
    overlap: float

    def is_clearly_better(self, other: TissueFit) -> bool:
        """Tell whether it fits so much better than another one that this is not by chance."""
        return self.on_tissue >= other.on_tissue + GAIN and self.overlap >= other.overlap + OVERLAP_GAIN


def orientations(scale: float) -> list[Placement]:
    """The eight ways to turn and mirror, at one scale; the first leaves all as it is."""
    return [Placement(swap, scale, flip) for swap, flip in product((False, True), FLIPS)]


def fit_to_tissue(coords: NDArray[np.float64], placement: Placement, mask: TissueMask, pitch_px: float) -> TissueFit:
    """Measure how well spots fit the tissue.

    Args:
        coords: (N, 2) spot centres, x then y, px of the source.
        placement: How they are placed.
        mask: The tissue of the image.
        pitch_px: Distance between neighbouring spots, px of the source.
    """
    placed = placement.apply(coords, (mask.width, mask.height))
    height, width = mask.pixels.shape
    cell = np.floor(placed * (width / mask.width, height / mask.height)).astype(np.int64)
    inside = ((cell >= 0) & (cell < (width, height))).all(axis=1)
    empty = np.ones((height, width), dtype=bool)
    empty[cell[inside, 1], cell[inside, 0]] = False
    if not inside.any():
        return TissueFit(placement, 0.0, 0.0)
    reach = max(1.0, SPOT_REACH * pitch_px * placement.scale * width / mask.width)
    covered = ndimage.distance_transform_edt(empty) <= reach
    either = np.count_nonzero(covered | mask.pixels)
    overlap = np.count_nonzero(covered & mask.pixels) / either * inside.mean()
    return TissueFit(placement, float(mask.contains(placed).mean()), float(overlap))


def best_on_tissue(
    coords: NDArray[np.float64], scales: Iterable[float], mask: TissueMask, pitch_px: float
) -> TissueFit:
    """Return the placement that fits the tissue best, of eight orientations at each of some scales."""
    placements = [placement for scale in scales for placement in orientations(scale)]
    fits = [fit_to_tissue(coords, placement, mask, pitch_px) for placement in placements]
    return max(fits, key=lambda fit: fit.on_tissue + fit.overlap)  # the first of equal ones


@dataclass(frozen=True)
class PictureFit:
    """How like an image is to a small copy of the image that positions were made on.

    Attributes:
        placement: What makes of that image this one.
        correlation: Pearson's, of the darkness of both, from -1 to 1.
    """

    placement: Placement
    correlation: float


def compare_pictures(
    small: NDArray[np.uint8], scale_of_small: float, overview: NDArray[np.uint8], size: tuple[int, int]
) -> list[PictureFit]:
    """Compare an image with a small copy of the image that positions were made on, turned and mirrored in every way.

    Args:
        small: (h, w, 3) the small copy.
        scale_of_small: Its px per px of the positions.
        overview: (h, w, 3) the image at a low resolution.
        size: Width and height of the image, px.

    Returns:
        The ways in which the copy has the proportions of the image, the most similar first; none where it never has.
    """
    fits = []
    for orientation in orientations(1.0):
        turned = orientation.turn(small)
        height, width = turned.shape[:2]
        allowed = MAX_SIDE_DIFFERENCE + 0.5 / min(width, height)
        if abs((size[0] / width) / (size[1] / height) - 1) > allowed:
            continue
        long = 0 if size[0] >= size[1] else 1  # the longer side is rounded less
        scale = size[long] * scale_of_small / (width, height)[long]
        placement = Placement(orientation.swap_xy, scale, orientation.flip)
        fits.append(PictureFit(placement, _likeness(turned, overview)))
    return sorted(fits, key=lambda fit: -fit.correlation)


def _likeness(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """Return the correlation of the green of two pictures of the same proportions; 0 where one is of one colour."""
    import PIL.Image

    height, width = first.shape[:2]
    shrink = min(1.0, COMPARED_PX / max(width, height))
    shape = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    box = PIL.Image.Resampling.BOX
    green = [
        np.asarray(PIL.Image.fromarray(np.ascontiguousarray(p[..., 1])).resize(shape, box)) for p in (first, second)
    ]
    a, b = (values.astype(np.float64).ravel() - values.mean() for values in green)
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b / norm) if norm > 0 else 0.0
