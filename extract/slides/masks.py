"""A user's own mask of where tissue is: polygons in GeoJSON, as QuPath exports them, or a picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from extract.slides.readers import open_image
from extract.slides.tissue import TissueMask, mask_shape
from hist_cache.errors import FileProblemError, SlideError, slide_error
from hist_cache.texts import read_json

POLYGON_SUFFIXES = (".geojson", ".json")
PICTURE_SUFFIXES = (".png", ".tif", ".tiff")
MAX_STRETCH = 0.02  # by which the ratio of width to height may differ between a picture and its slide
MAX_DEPTH = 20  # of collections in collections
COLLECTIONS = {"FeatureCollection": "features", "GeometryCollection": "geometries"}
NO_AREA = ("Point", "MultiPoint", "LineString", "MultiLineString")
Ring = NDArray[np.float64]


class MaskError(FileProblemError):
    """A mask cannot be used."""

    def __init__(self, problem: str, advice: str = "export it as polygons in level-0 pixels") -> None:
        super().__init__(problem, advice)


def read_mask(slide: str, path: Path, size: tuple[int, int], um_per_px: float) -> TissueMask:
    """Read a mask of a slide's tissue.

    Args:
        slide: ID of the slide, for messages.
        path: A GeoJSON file with polygons in level-0 pixels, of which holes are left out; or a PNG or TIFF of any
            resolution that shows the whole slide, in which everything but black (0) is tissue; what is transparent
            counts as white.
        size: Width and height of the slide, level-0 px.
        um_per_px: Pixel size of level 0.

    Returns:
        The mask; polygons are drawn in pixels of `MASK_UM`, a picture stays as it is.

    Raises:
        SlideError: The file cannot be read, has no polygons, none of it is on the slide, or has another aspect ratio.
    """
    try:
        suffix = path.suffix.lower()
        if suffix in POLYGON_SUFFIXES:
            pixels = _draw(_polygons_of_file(path), mask_shape(size, um_per_px), size)
        elif suffix in PICTURE_SUFFIXES:
            pixels = _picture(slide, path, size)
        else:
            raise MaskError("a mask is a .geojson, .png or .tif file", "name it by its format")
        if not pixels.any():
            raise MaskError("no tissue in it" if suffix in PICTURE_SUFFIXES else "no polygon lies on the slide")
    except SlideError:
        raise
    except Exception as error:
        raise slide_error(slide, path, error, "not a readable mask") from error
    return TissueMask(pixels, *size, um_per_px)


def _picture(slide: str, path: Path, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Read a picture as a mask: (h, w) bool."""
    image = open_image(slide, path)
    try:
        ratio = image.width / image.height * size[1] / size[0]
        if abs(ratio - 1) > MAX_STRETCH:
            shown = f"{image.width:,} x {image.height:,} px for a slide of {size[0]:,} x {size[1]:,} px"
            raise MaskError(f"another aspect ratio: {shown}", "export it for the whole slide")
        if "16 bits" in image.reader_name:  # which would be read as 0 where they are small
            raise MaskError("a mask of 16 bits", "store it with 8 bits")
        pixels = np.zeros((image.height, image.width), dtype=bool)
        for top in range(0, image.height, image.tile_height):
            for left in range(0, image.width, image.tile_width):
                tile = image.read_tile(left // image.tile_width, top // image.tile_height)
                pixels[top : top + tile.shape[0], left : left + tile.shape[1]] = tile.any(axis=2)
    finally:
        image.close()
    return pixels


def _polygons_of_file(path: Path) -> list[list[Ring]]:
    """Read the polygons of a GeoJSON file, each an outer ring and its holes, (n, 2) level-0 px."""
    try:
        content = read_json(path)
    except ValueError as error:
        raise MaskError(str(error), "export it again") from error
    polygons = [[_ring(ring) for ring in polygon] for polygon in _polygons(content)]
    if not polygons:
        raise MaskError("no Polygon or MultiPolygon in it")
    return polygons


def _polygons(item: Any, depth: int = 0) -> Iterator[list[Any]]:
    """Yield the coordinates of all polygons in any object of GeoJSON, or in a list of such objects."""
    if depth > MAX_DEPTH:
        raise MaskError("collections in collections without end")
    kind = item.get("type") if isinstance(item, dict) else None
    if kind == "Polygon":
        yield _list(item, "coordinates")
    elif kind == "MultiPolygon":
        yield from _list(item, "coordinates")
    elif kind not in NO_AREA:
        for part in _parts(item, kind):
            yield from _polygons(part, depth + 1)


def _parts(item: Any, kind: Any) -> list[Any]:
    """Return what an object of GeoJSON, or a list of such objects, is made of."""
    if isinstance(item, list):  # QuPath can export objects without a collection around them
        return item
    if kind in COLLECTIONS:
        return _list(item, COLLECTIONS[kind])
    if kind == "Feature":
        return [] if item.get("geometry") is None else [item["geometry"]]
    raise MaskError("not GeoJSON")


def _list(item: dict[str, Any], key: str) -> list[Any]:
    if not isinstance(item.get(key), list):
        raise MaskError(f"a {item['type']} without {key}")
    return list(item[key])


def _ring(points: Any) -> Ring:
    """Return a closed ring as (n, 2) corners."""
    try:
        ring = np.asarray([point[:2] for point in points], dtype=np.float64)
    except (TypeError, ValueError, IndexError) as error:
        raise MaskError("a polygon with corners that are no pairs of numbers") from error
    if ring.ndim != 2 or ring.shape[1] != 2 or len(ring) < 3 or not np.isfinite(ring).all():
        raise MaskError("a polygon with fewer than 3 corners, or with corners that are no numbers")
    return ring


def _draw(polygons: list[list[Ring]], shape: tuple[int, int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Draw polygons: a pixel is on where its centre lies inside one, and in none of that one's holes.

    Args:
        polygons: Rings of each polygon, level-0 px.
        shape: Height and width of the drawing.
        size: Width and height of the slide, level-0 px.
    """
    scale = np.array([shape[1] / size[0], shape[0] / size[1]])
    drawing = np.zeros(shape, dtype=bool)
    for rings in polygons:
        scaled = [ring * scale - 0.5 for ring in rings]  # centres of pixels lie at whole numbers
        top = max(0, int(np.floor(min(ring[:, 1].min() for ring in scaled))))
        bottom = min(shape[0], int(np.ceil(max(ring[:, 1].max() for ring in scaled))) + 1)
        if bottom > top:
            drawing[top:bottom] |= even_odd(scaled, top, bottom, shape[1])
    return drawing


def even_odd(rings: list[Ring], top: int, bottom: int, width: int) -> NDArray[np.bool_]:
    """Tell which points of a grid lie inside rings: a line from there to the left crosses them an odd number of times.

    Args:
        rings: Corners of each ring, (n, 2) x then y; the last one is joined to the first.
        top: First row of the grid.
        bottom: Row after the last one.
        width: Columns of the grid, from 0.

    Returns:
        (bottom - top, width) bool.
    """
    crossings = np.zeros((bottom - top, width + 1), dtype=np.int32)
    for ring in rings:
        ends = np.stack([ring, np.roll(ring, -1, axis=0)])
        down = ends[0, :, 1] <= ends[1, :, 1]
        (x, y), (end_x, end_y) = np.where(down[:, None], ends, ends[::-1]).transpose(0, 2, 1)
        first, stop = (np.clip(np.ceil(v), top, bottom).astype(np.int64) for v in (y, end_y))
        edge = np.repeat(np.arange(len(ring)), stop - first)  # one for each row that an edge crosses
        row = np.arange(len(edge)) - np.repeat(np.cumsum(stop - first) - stop, stop - first)
        at = x[edge] + (row - y[edge]) / (end_y[edge] - y[edge]) * (end_x[edge] - x[edge])
        np.add.at(crossings, (row - top, np.clip(np.floor(at) + 1, 0, width).astype(np.int64)), 1)
    return np.cumsum(crossings[:, :width], axis=1) % 2 == 1
