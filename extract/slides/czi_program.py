"""The program of `extract.slides.vendors` for CZI: pylibCZIrw has a slide open, and answers requests with pixels."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
from pylibCZIrw import czi

NO_TILE = (1.0, 1.0, 1.0)  # white
SMALLEST_LEVEL = 1024  # px, of the longer side


def main(path: str) -> Callable[[list[int]], bytes | memoryview]:
    """Open a slide.

    Args:
        path: The image file.

    Returns:
        What answers requests: an empty one with JSON: the sizes of the levels (halved again and again; pixels are taken
        from the file's own pyramid), texts that state the um per px along x and y, or null, types of its channels'
        pixels and their names, and the lengths of its other axes; (x, y, level, width, height) with pixels, RGB. The
        origin is the upper left corner of all scenes together; where there is no tile, it is white.
    """
    slide = czi.CziReader(path)
    left, top, width, height = slide.total_bounding_rectangle_no_pyramid
    levels = [(width, height)]
    while max(levels[-1]) >= 2 * SMALLEST_LEVEL:
        levels.append((levels[-1][0] // 2 or 1, levels[-1][1] // 2 or 1))
    axes = {axis: end - start for axis, (start, end) in slide.total_bounding_box.items() if axis not in "XY"}

    def respond(request: list[int]) -> bytes | memoryview:
        if not request:
            described = _describe(slide.metadata)
            return json.dumps({"levels": levels, "axes": axes, "types": slide.pixel_types, **described}).encode()
        x, y, level, wide, high = request
        step = 1 << level
        pixels = slide.read(
            roi=(left + x, top + y, wide * step, high * step),
            zoom=1 / step,
            pixel_type="Bgr24",
            background_pixel=NO_TILE,
        )
        if pixels.shape != (high, wide, 3):
            raise ValueError(f"{pixels.shape} pixels instead of {(high, wide, 3)}")
        return np.ascontiguousarray(pixels[..., ::-1]).data.cast("B")

    return respond


def _describe(metadata: Any) -> dict[str, Any]:
    """Return pixel size and names of channels by the file's XML, as far as they are there."""
    document = _dig(metadata, "ImageDocument", "Metadata")
    um: dict[str, str] = {}
    for distance in _several(_dig(document, "Scaling", "Items", "Distance")):
        try:
            um[distance["@Id"]] = str(float(distance["Value"]) * 1e6)
        except (KeyError, TypeError, ValueError):
            continue
    channels = _several(_dig(document, "Information", "Image", "Dimensions", "Channels", "Channel"))
    names = [str(channel.get("@Name") or "") for channel in channels if isinstance(channel, dict)]
    return {"um_per_px": [um.get("X"), um.get("Y")], "names": names}


def _dig(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _several(value: Any) -> list[Any]:
    """An element that XML has once is no list."""
    return value if isinstance(value, list) else [] if value is None else [value]
