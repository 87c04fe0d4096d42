"""How large a pixel of a slide's level 0 is, in um, by what the slide's own files say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PixelSize:
    """The pixel size of level 0, and where it was found.

    Attributes:
        um_per_px: Micrometres per level-0 px.
        source: What states it, as a text: `OpenSlide's mpp-x`.
    """

    um_per_px: float
    source: str


def read_pixel_size(slide: str, path: Path) -> PixelSize | None:
    """Read the pixel size of a slide; None where its files state none, so that the user must say it (`--um-per-px`).

    Args:
        slide: ID of the slide, for messages.
        path: The image file.

    Raises:
        SlideError: What is stated contradicts itself: pixels that are not square.
    """
    raise NotImplementedError
