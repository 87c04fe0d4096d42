"""The program of `extract.slides.vendors`: it has a slide open in OpenSlide, and answers requests with pixels."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import openslide


def main(path: str) -> Callable[[list[int]], bytes | memoryview]:
    """Open a slide.

    Args:
        path: The image file.

    Returns:
        What answers requests: an empty one with JSON, the sizes of the levels (none where OpenSlide knows no vendor of
        the file) and the texts that state the um per px along x and y, or null; (x, y, level, width, height) with
        pixels, RGB, or RGBA where some are transparent.
    """
    vendor = openslide.OpenSlide.detect_format(path)
    slide = None if vendor in (None, "generic-tiff") else openslide.OpenSlide(path)

    def respond(request: list[int]) -> bytes | memoryview:
        if not request:
            levels = [] if slide is None else slide.level_dimensions
            sizes = (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)
            stated = [None, None] if slide is None else [slide.properties.get(name) for name in sizes]
            return json.dumps({"levels": levels, "um_per_px": stated}).encode()
        assert slide is not None
        x, y, level, width, height = request
        pixels = np.asarray(slide.read_region((x, y), level, (width, height)))
        opaque = pixels[..., 3].min(initial=255) == 255
        return np.ascontiguousarray(pixels[..., :3] if opaque else pixels).data.cast("B")

    return respond
