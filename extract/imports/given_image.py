"""The image that --image names, itself or in a folder of images."""

from __future__ import annotations

from pathlib import Path

from extract.slides.listing import slide_images, slide_name
from hist_cache.errors import InputError


def find_given_image(given: Path, slide: str) -> Path:
    """Return the image of a slide.

    Args:
        given: The image, or a folder of images with the slides' names.
        slide: Name of the slide.

    Raises:
        InputError: There is none.
    """
    if not given.is_dir():
        if not given.exists():
            raise InputError(f"--image {given}: no such file")
        return given
    images = slide_images(given)
    if images == [given]:  # OME-Zarr
        return given
    matches = [path for path in images if slide_name(path) == slide]
    if not matches:
        raise InputError(f"--image {given}: no image called {slide} in this folder")
    return matches[0]
