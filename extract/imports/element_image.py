"""Images of a SpatialData store: their size, how other elements map to their pixels, and one as a TIFF file."""

from __future__ import annotations

import atexit
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from extract.imports.options import ImportOptions
from hist_cache.errors import SlideError
from hist_cache.files import atomic_write
from hist_cache.fingerprint import short_hash
from hist_cache.options import folder_option
from hist_cache.scratch import scratch_folder

Element = Any  # a GeoDataFrame, or an image: an xarray DataArray, or DataTree with one for each scale
EXPORTED = "exported_images"  # folder of the data root
TILE = 512
MAX_CLASSIC_BYTES = 2**31  # of a TIFF file that is no BigTIFF


def affine(shapes: Element, image: Element) -> NDArray[np.float64] | None:
    """Return the 3 x 3 matrix from (x, y, 1) of shapes to px of an image; None where no system joins them."""
    from spatialdata.transformations import get_transformation

    of_shapes, of_image = (get_transformation(element, get_all=True) for element in (shapes, image))
    shared = sorted(set(of_shapes) & set(of_image))
    if not shared:
        return None
    system = "global" if "global" in shared else shared[0]
    axes = ("x", "y")
    to_system, from_image = (t[system].to_affine_matrix(axes, axes) for t in (of_shapes, of_image))
    return np.linalg.solve(from_image, to_system)


def element_size(image: Element) -> tuple[int, int]:
    """Return width and height of an image, px."""
    sizes = _full(image).sizes
    return int(sizes["x"]), int(sizes["y"])


def write_element(slide: str, source: Path, name: str, image: Element, options: ImportOptions) -> Path:
    """Write an image as a tiled TIFF file without loss; nothing of it is left after a dry run.

    Args:
        slide: ID of the slide.
        source: The store.
        name: Name of the image in it.
        image: The image.
        options: The command's options, which name the data root.

    Returns:
        The file: `exported_images/ID-<8 hex>.tif` of the data root; the digits are those of the store's place, so that
        the image of another store is never overwritten, whose slide may be there already.

    Raises:
        SlideError: The image is not 8-bit RGB.
        WriteError: The file cannot be written.
    """
    import tifffile

    pixels = _full(image).transpose("c", "y", "x")
    channels, height, width = pixels.shape
    if channels != 3 or pixels.dtype != np.uint8:
        problem = f"its image {name!r} has {channels} channels of {pixels.dtype}"
        raise SlideError(slide, source, problem, "8-bit RGB is needed; give the H&E image with --image")
    path = _folder(options) / f"{slide}-{short_hash({'store': str(source.resolve())})}.tif"
    big = channels * height * width > MAX_CLASSIC_BYTES
    with atomic_write(path) as aside, tifffile.TiffWriter(aside, bigtiff=big) as file:
        file.write(
            _tiles(pixels.data, height, width),
            shape=(height, width, 3),
            dtype=np.uint8,
            tile=(TILE, TILE),
            photometric="rgb",
            compression="deflate",
        )
    return path


def _folder(options: ImportOptions) -> Path:
    if not options.dry_run:
        return folder_option(options.data_root, "HIST_DATA", "data") / EXPORTED
    until_exit = ExitStack()
    atexit.register(until_exit.close)
    return until_exit.enter_context(scratch_folder("hist-import-image-"))


def _tiles(pixels: Any, height: int, width: int) -> Iterator[NDArray[np.uint8]]:
    """Read (3, height, width) pixels as tiles, of which one row at a time is in memory."""
    for top in range(0, height, TILE):
        rows = np.moveaxis(np.asarray(pixels[:, top : top + TILE]), 0, 2)
        for left in range(0, width, TILE):
            yield np.ascontiguousarray(rows[:, left : left + TILE])


def _full(image: Element) -> Any:
    """Return the finest scale of an image."""
    if hasattr(image, "children"):
        scale = next(iter(image.children.values()))
        return next(iter(scale.data_vars.values()))
    return image
