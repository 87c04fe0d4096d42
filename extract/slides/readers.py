"""Whole-slide images as grids of tiles at level 0, decoded one tile at a time.

Tiled TIFF is read by tifffile and imagecodecs (about ten times as fast as OpenSlide), vendors' formats by OpenSlide,
and plain pictures by Pillow. The pixels differ a little between readers, so the name of the reader is part of a cache's
fingerprint.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hist_cache.errors import SlideError

WHITE = 255
THUMBNAIL_PX = 1024  # longer side
OPENSLIDE_TILE = 1024  # px; OpenSlide does not tell the file's own tiles, and reads large regions fastest
TIFF_SUFFIXES = (".tif", ".tiff", ".svs")
PLAIN_SUFFIXES = (".jpg", ".jpeg", ".png")


class Image(Protocol):
    """A slide's image: `width` x `height` px of RGB, cut into tiles of `tile_width` x `tile_height` px."""

    reader: str
    width: int
    height: int
    tile_width: int
    tile_height: int

    def read_tile(self, column: int, row: int) -> np.ndarray:
        """Decode one tile; several threads may do so at once.

        Returns:
            (h, w, 3) uint8; tiles at the right and lower border may be smaller than the others.
        """

    def overview(self) -> np.ndarray:
        """Read the whole slide at a lower resolution.

        Returns:
            (h, w, 3) uint8; the longer side has at least THUMBNAIL_PX, unless the slide itself is smaller.
        """

    def close(self) -> None:
        """Close the file."""


def make_thumbnail(image: Image) -> np.ndarray:
    """Make a small picture of the whole slide: (h, w, 3) uint8, the longer side THUMBNAIL_PX or less."""
    import PIL.Image

    shrink = min(1.0, THUMBNAIL_PX / max(image.width, image.height))
    size = (max(1, round(image.width * shrink)), max(1, round(image.height * shrink)))
    return np.asarray(
        PIL.Image.fromarray(image.overview()).resize(size, PIL.Image.Resampling.LANCZOS, reducing_gap=2.0)
    )


def open_image(slide: str, path: Path) -> Image:
    """Open a slide's image with the reader for its suffix.

    Args:
        slide: ID of the slide, for messages.
        path: The image file.

    Raises:
        SlideError: The file is damaged, truncated or of an unknown kind.
    """
    suffix = path.suffix.lower()
    try:
        if suffix in PLAIN_SUFFIXES:
            return PlainImage(slide, path)
        if suffix in TIFF_SUFFIXES:
            tiff = TiffImage(slide, path)
            if tiff.readable:
                return tiff
            tiff.close()
        return OpenSlideImage(slide, path)
    except SlideError:
        raise
    except Exception as error:  # each library has errors of its own; openslide.OpenSlideError is no OSError
        raise SlideError(slide, path, f"not a readable image ({error})", "copy or download it again") from error


class TiffImage:
    """Tiles (or strips) of a TIFF's largest page, each read with one `pread` and decoded by imagecodecs."""

    reader = "tifffile"

    def __init__(self, slide: str, path: Path) -> None:
        import tifffile

        self._slide, self._path = slide, path
        self._file = tifffile.TiffFile(path)
        page: Any = max(self._file.pages, key=lambda p: p.imagewidth * p.imagelength)  # type: ignore[union-attr]
        self._page = page
        self.width, self.height = page.imagewidth, page.imagelength
        if page.is_tiled:
            self.tile_width, self.tile_height = page.tilewidth, page.tilelength
        else:
            self.tile_width, self.tile_height = page.imagewidth, min(page.rowsperstrip, page.imagelength)
        self._across = -(-self.width // self.tile_width)
        self._descriptor = os.open(path, os.O_RDONLY)
        end = max((o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)), default=0)
        if end > (size := path.stat().st_size):
            raise SlideError(slide, path, f"truncated ({size:,} of {end:,} bytes)", "copy or download it again")

    @property
    def readable(self) -> bool:
        """Whether the image is 8-bit grey, RGB or RGBA, in a compression that imagecodecs decodes."""
        page = self._page
        plain = page.planarconfig == 1 and page.bitspersample == 8 and page.samplesperpixel in (1, 3, 4)
        return (
            plain
            and page.imagedepth == 1
            and page.compression in (1, 5, 7, 8, 32946, 33003, 33005, 33007, 34712, 50000)
        )

    def read_tile(self, column: int, row: int) -> np.ndarray:
        """Decode one tile: (h, w, 3) uint8."""
        i = row * self._across + column
        offset, count = self._page.dataoffsets[i], self._page.databytecounts[i]
        width = min(self.tile_width, self.width - column * self.tile_width)
        height = min(self.tile_height, self.height - row * self.tile_height)
        if count == 0:  # sparse files omit empty tiles
            return np.full((height, width, 3), WHITE, dtype=np.uint8)
        try:
            data = os.pread(self._descriptor, count, offset)
            pixels = self._page.decode(data, i, jpegtables=self._page.jpegtables)[0]
        except Exception as error:
            raise SlideError(
                self._slide,
                self._path,
                f"tile {column},{row} cannot be decoded ({error})",
                "copy or download it again",
            ) from error
        if pixels is None:
            return np.full((height, width, 3), WHITE, dtype=np.uint8)
        return to_rgb(pixels[0, :height, :width])

    def overview(self) -> np.ndarray:
        """Read the whole slide at a lower resolution: (h, w, 3) uint8."""
        shape = (self.height, self.width)
        pages: list[Any] = list(self._file.pages)
        levels = [
            page
            for page in pages
            if page.samplesperpixel == self._page.samplesperpixel
            and THUMBNAIL_PX <= max(page.shape[:2]) < max(shape)
            and abs(page.shape[0] / page.shape[1] * shape[1] / shape[0] - 1) < 0.02  # not a label or macro picture
        ]
        if levels:
            page = min(levels, key=lambda p: p.shape[0])
            return to_rgb(page.asarray().reshape(*page.shape[:2], -1))
        step = max(1, max(shape) // (2 * THUMBNAIL_PX))
        out = np.empty((-(-self.height // step), -(-self.width // step), 3), dtype=np.uint8)
        for row in range(-(-self.height // self.tile_height)):
            for column in range(self._across):
                y, x = row * self.tile_height, column * self.tile_width
                part = self.read_tile(column, row)[-y % step :: step, -x % step :: step]
                top, left = -(-y // step), -(-x // step)
                out[top : top + part.shape[0], left : left + part.shape[1]] = part
        return out

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        os.close(self._descriptor)


class OpenSlideImage:
    """Regions of level 0 read through OpenSlide; transparent area becomes white."""

    reader = "openslide"
    tile_width = tile_height = OPENSLIDE_TILE

    def __init__(self, slide: str, path: Path) -> None:
        import openslide

        self._slide, self._path = slide, path
        self._file = openslide.OpenSlide(str(path))
        self.width, self.height = self._file.dimensions

    def read_tile(self, column: int, row: int) -> np.ndarray:
        """Decode one tile: (h, w, 3) uint8."""
        x, y = column * self.tile_width, row * self.tile_height
        size = (min(self.tile_width, self.width - x), min(self.tile_height, self.height - y))
        try:
            return to_rgb(np.asarray(self._file.read_region((x, y), 0, size)))
        except Exception as error:
            raise SlideError(
                self._slide,
                self._path,
                f"region at {x},{y} cannot be read ({error})",
                "copy or download it again",
            ) from error

    def overview(self) -> np.ndarray:
        """Read the whole slide at a lower resolution: (h, w, 3) uint8."""
        return np.asarray(self._file.get_thumbnail((2 * THUMBNAIL_PX, 2 * THUMBNAIL_PX)).convert("RGB"))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class PlainImage:
    """A JPEG or PNG, which can only be decoded as a whole, so that it takes memory for all its pixels."""

    reader = "pillow"

    def __init__(self, slide: str, path: Path) -> None:
        import PIL.Image

        # Pillow refuses pictures above 179 Mpx as possible attacks, but slides are that large.
        limit, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, None
        try:
            with PIL.Image.open(path) as picture:
                self._pixels = to_rgb(np.asarray(picture.convert("RGBA" if "A" in picture.getbands() else "RGB")))
        finally:
            PIL.Image.MAX_IMAGE_PIXELS = limit
        self.height, self.width = self._pixels.shape[:2]
        self.tile_width, self.tile_height = self.width, self.height

    def read_tile(self, column: int, row: int) -> np.ndarray:
        """Return the only tile, which is the whole picture: (h, w, 3) uint8."""
        return self._pixels

    def overview(self) -> np.ndarray:
        """Return the whole picture: (h, w, 3) uint8."""
        return self._pixels

    def close(self) -> None:
        """Do nothing, because the file is closed already."""


def to_rgb(pixels: np.ndarray) -> np.ndarray:
    """Convert grey, RGB or RGBA pixels to RGB; transparent pixels are shown on white.

    Args:
        pixels: (h, w, 1 | 3 | 4) uint8.

    Returns:
        (h, w, 3) uint8.
    """
    if pixels.shape[-1] == 3:
        return pixels
    if pixels.shape[-1] == 1:
        return np.repeat(pixels, 3, axis=-1)
    alpha = pixels[..., 3:].astype(np.uint16)
    if alpha.min() == 255:
        return np.ascontiguousarray(pixels[..., :3])
    return ((pixels[..., :3] * alpha + WHITE * (255 - alpha) + 127) // 255).astype(np.uint8)
