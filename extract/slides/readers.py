"""Whole-slide images as grids of tiles at level 0, decoded one tile at a time.

Tiled TIFF goes through tifffile and imagecodecs (about ten times OpenSlide's rate), vendors' formats through
OpenSlide, plain pictures through Pillow. Readers differ in pixels, so the reader's name is part of a cache's
fingerprint.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from hist_cache.errors import SlideError

WHITE = 255
THUMBNAIL_PX = 1024
OPENSLIDE_TILE = 1024  # px; OpenSlide has no tiles of its own to offer, and large reads cost it least
TIFF_SUFFIXES = (".tif", ".tiff", ".svs")
PLAIN_SUFFIXES = (".jpg", ".jpeg", ".png")


class Image(Protocol):
    """A slide's image: `width` x `height` px of RGB, cut into tiles of `tile_width` x `tile_height`."""

    reader: str
    width: int
    height: int
    tile_width: int
    tile_height: int

    def read_tile(self, column: int, row: int) -> np.ndarray:
        """(h, w, 3) uint8; tiles at the right and lower border may be smaller. May be called from several threads."""

    def overview(self) -> np.ndarray:
        """(h, w, 3) uint8: the whole slide at a lower resolution, at least THUMBNAIL_PX long where it has that."""

    def close(self) -> None: ...


def thumbnail(image: Image) -> np.ndarray:
    """(h, w, 3) uint8: the whole slide, its longer side THUMBNAIL_PX at most."""
    import PIL.Image

    shrink = min(1.0, THUMBNAIL_PX / max(image.width, image.height))
    size = (max(1, round(image.width * shrink)), max(1, round(image.height * shrink)))
    return np.asarray(
        PIL.Image.fromarray(image.overview()).resize(size, PIL.Image.Resampling.LANCZOS, reducing_gap=2.0)
    )


def open_image(slide: str, path: Path) -> Image:
    """Open by suffix; `SlideError` where the file is damaged, truncated or of no known kind."""
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
    except Exception as error:  # each library has its own, e.g. openslide.OpenSlideError is no OSError
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
        if end > (have := path.stat().st_size):
            raise SlideError(slide, path, f"truncated ({have:,} of {end:,} bytes)", "copy or download it again")

    @property
    def readable(self) -> bool:
        """Whether this is 8-bit grey, RGB or RGBA in a compression that imagecodecs decodes."""
        page = self._page
        plain = page.planarconfig == 1 and page.bitspersample == 8 and page.samplesperpixel in (1, 3, 4)
        return (
            plain
            and page.imagedepth == 1
            and page.compression in (1, 5, 7, 8, 32946, 33003, 33005, 33007, 34712, 50000)
        )

    def read_tile(self, column: int, row: int) -> np.ndarray:
        i = row * self._across + column
        offset, count = self._page.dataoffsets[i], self._page.databytecounts[i]
        width = min(self.tile_width, self.width - column * self.tile_width)
        height = min(self.tile_height, self.height - row * self.tile_height)
        if count == 0:  # a sparse file leaves out empty tiles
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
        return rgb(pixels[0, :height, :width])

    def overview(self) -> np.ndarray:
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
            return rgb(page.asarray().reshape(*page.shape[:2], -1))
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
        x, y = column * self.tile_width, row * self.tile_height
        size = (min(self.tile_width, self.width - x), min(self.tile_height, self.height - y))
        try:
            return rgb(np.asarray(self._file.read_region((x, y), 0, size)))
        except Exception as error:
            raise SlideError(
                self._slide,
                self._path,
                f"region at {x},{y} cannot be read ({error})",
                "copy or download it again",
            ) from error

    def overview(self) -> np.ndarray:
        return np.asarray(self._file.get_thumbnail((2 * THUMBNAIL_PX, 2 * THUMBNAIL_PX)).convert("RGB"))

    def close(self) -> None:
        self._file.close()


class PlainImage:
    """A JPEG or PNG, decoded whole: the format allows nothing else, so memory grows with the picture."""

    reader = "pillow"

    def __init__(self, slide: str, path: Path) -> None:
        import PIL.Image

        # Pillow refuses pictures over 179 Mpx as possible bombs; slides are that large, and the user's own.
        limit, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, None
        try:
            with PIL.Image.open(path) as picture:
                self._pixels = rgb(np.asarray(picture.convert("RGBA" if "A" in picture.getbands() else "RGB")))
        finally:
            PIL.Image.MAX_IMAGE_PIXELS = limit
        self.height, self.width = self._pixels.shape[:2]
        self.tile_width, self.tile_height = self.width, self.height

    def read_tile(self, column: int, row: int) -> np.ndarray:
        return self._pixels

    def overview(self) -> np.ndarray:
        return self._pixels

    def close(self) -> None:
        pass


def rgb(pixels: np.ndarray) -> np.ndarray:
    """(h, w, 1 | 3 | 4) uint8 -> (h, w, 3): grey repeated, transparency laid over white."""
    if pixels.shape[-1] == 3:
        return pixels
    if pixels.shape[-1] == 1:
        return np.repeat(pixels, 3, axis=-1)
    alpha = pixels[..., 3:].astype(np.uint16)
    if alpha.min() == 255:
        return np.ascontiguousarray(pixels[..., :3])
    return ((pixels[..., :3] * alpha + WHITE * (255 - alpha) + 127) // 255).astype(np.uint8)
