"""Tiled TIFF, read by tifffile and imagecodecs, about ten times as fast as OpenSlide.

Files come from anywhere. What is read from their tags is checked before it is used, so that a damaged or hostile file
ends in an error and takes neither for ever nor all memory.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from operator import index
from pathlib import Path
from typing import Any

import numpy as np

from extract.slides.codestreams import check_codestream
from extract.slides.colors import CONVERT, LOSSLESS, ColorRule, Photometric, Samples, color_rule
from extract.slides.directories import MAX_PAGES, check_directories
from extract.slides.image import THUMBNAIL_PX, WHITE, ImageError, UnreadKindError, check_memory, check_size
from hist_cache.console import size

# What is wrong with a file becomes an error; without a handler, Python itself would print tifffile's messages too.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

LARGE_TILE = 4096  # px; a larger tile must not be larger than the image
SPARE_BYTES = 1 << 30  # that a file may have besides four times its pixels: levels, labels, descriptions
THREADS = 4  # tiles that are about decoded at the same time


class TiffLevel:
    """One page of a TIFF as a grid of tiles (or strips), each read with one `pread`.

    Args:
        page: tifffile's page.
        descriptor: The open file.
        file_size: Its size, bytes.

    Raises:
        ImageError: The page is damaged, or there is no rule for its colours.
    """

    def __init__(self, page: Any, descriptor: int, file_size: int) -> None:
        self._page, self._descriptor = page, descriptor
        self.width, self.height = index(page.imagewidth), index(page.imagelength)
        check_size(self.width, self.height)
        if page.is_tiled:
            self.tile_width, self.tile_height = index(page.tilewidth), index(page.tilelength)
        else:
            self.tile_width, self.tile_height = self.width, min(index(page.rowsperstrip), self.height)
        self.across, self.down = self._grid()
        self._planes = index(page.samplesperpixel) if page.planarconfig == 2 else 1
        self._offsets, self._counts = self._find_tiles(file_size)
        self.rule = _color_rule(page)
        self._check_memory()
        self._decode, self._tables = page.decode, page.jpegtables

    def _grid(self) -> tuple[int, int]:
        """Return the number of columns and rows of tiles."""
        width, height = self.tile_width, self.tile_height
        small = width <= 2 * max(self.width, LARGE_TILE) and height <= 2 * max(self.height, LARGE_TILE)
        if width < 1 or height < 1 or not small:
            raise ImageError(f"tiles of {width:,} x {height:,} px in an image of {self.width:,} x {self.height:,} px")
        return -(-self.width // width), -(-self.height // height)

    @property
    def raw_bytes(self) -> int:
        """Bytes of all pixels without compression."""
        return self.width * self.height * self._pixel_bytes

    def _check_memory(self) -> None:
        """Check that tiles fit into memory."""
        self._pixel_bytes = index(self._page.samplesperpixel) * self._page.dtype.itemsize
        what = f"tiles of {self.tile_width:,} x {self.tile_height:,} px"
        at_once = min(THREADS, self.across * self.down)
        check_memory(at_once * self.tile_width * self.tile_height * self._pixel_bytes, what)

    def _find_tiles(self, file_size: int) -> tuple[list[int], list[int]]:
        """Return where the tiles are in the file, and how many bytes they have."""
        needed = self.across * self.down * self._planes
        offsets, counts = list(map(index, self._page.dataoffsets)), list(map(index, self._page.databytecounts))
        if (listed := min(len(offsets), len(counts))) < needed:
            raise ImageError(f"its header states {needed:,} tiles and lists {listed:,}")
        end = max(o + n for o, n in zip(offsets, counts, strict=False))
        if end > file_size:
            raise ImageError(f"truncated ({file_size:,} of {end:,} bytes)")
        return offsets, counts

    def read_tile(self, column: int, row: int) -> np.ndarray:
        """Decode one tile: (h, w, 3) uint8."""
        height = min(self.tile_height, self.height - row * self.tile_height)
        width = min(self.tile_width, self.width - column * self.tile_width)
        at, step = row * self.across + column, self.across * self.down
        planes = [self._plane(at + k * step, height, width) for k in range(self._planes)]
        present = [plane for plane in planes if plane is not None]
        if not present:  # sparse files omit empty tiles
            return np.full((height, width, 3), WHITE, dtype=np.uint8)
        if len(present) < len(planes):
            raise ImageError("some of its colours are not in the file")
        return self.rule.convert(present[0] if len(present) == 1 else np.concatenate(present, axis=-1))

    def _plane(self, i: int, height: int, width: int) -> np.ndarray | None:
        """Decode one stored tile: (h, w, samples), or None if the file omits it."""
        if self._counts[i] == 0:
            return None
        data = os.pread(self._descriptor, self._counts[i], self._offsets[i])
        check_codestream(data, self._page.compression, self.tile_width, self.tile_height)
        pixels = self._decode(data, i, jpegtables=self._tables)[0]
        if pixels.dtype != self._page.dtype:
            raise ImageError(f"{pixels.dtype} samples, {self._page.dtype} by its header")
        return pixels[0, :height, :width]

    def shrink(self, step: int) -> np.ndarray:
        """Return every `step`th pixel of every `step`th row: (h, w, 3) uint8."""
        out = np.empty((-(-self.height // step), -(-self.width // step), 3), dtype=np.uint8)
        for row in range(self.down):
            for column in range(self.across):
                y, x = row * self.tile_height, column * self.tile_width
                part = self.read_tile(column, row)[-y % step :: step, -x % step :: step]
                top, left = -(-y // step), -(-x // step)
                out[top : top + part.shape[0], left : left + part.shape[1]] = part
        return out


class TiffImage:
    """The largest page of a TIFF.

    Args:
        path: The file.

    Raises:
        ImageError: The file is damaged, or there is no rule for its colours.
    """

    def __init__(self, path: Path) -> None:
        import tifffile

        check_directories(path)
        self._file = tifffile.TiffFile(path)
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
            self._size = os.fstat(self._descriptor).st_size
            self._pages: list[Any] = list(self._file.pages)
            self._level = self._largest()
        except BaseException:
            self.close()
            raise
        self._sub_pages = self._find_sub_pages()
        self._check_file_size()
        self.name = ", ".join(part for part in ("tifffile", self._level.rule.name) if part)
        self.width, self.height = self._level.width, self._level.height
        self.tile_width, self.tile_height = self._level.tile_width, self._level.tile_height

    def _find_sub_pages(self) -> list[Any]:
        """List the pages below the slide's own, where OME-TIFF has the pyramid; none where these are damaged."""
        page = max(self._pages, key=_area)
        try:
            return list(page.pages)[:MAX_PAGES] if page.subifds and len(page.subifds) <= MAX_PAGES else []
        except Exception:  # a damaged level is not needed
            return []

    def _check_file_size(self) -> None:
        """Check that the file is not far larger than its pixels, because all of it is read for its digest."""
        if self._size > SPARE_BYTES + 4 * self._level.raw_bytes:
            pixels = f"{self._level.width:,} x {self._level.height:,} px"
            raise ImageError(f"a file of {size(self._size)} is far larger than its {pixels}")

    def _largest(self) -> TiffLevel:
        """Return the page that is the slide."""
        if not self._pages:
            raise ImageError("no image in it")
        page = max(self._pages, key=_area)
        others = sum(_area(other) == _area(page) for other in self._pages)
        if (planes := max(others, _declared_planes(page))) > 1:
            problem = f"{planes:,} pictures of full size (channels, focal planes or times)"
            raise UnreadKindError(problem, "store one RGB picture")
        return TiffLevel(page, self._descriptor, self._size)

    def read_tile(self, column: int, row: int) -> np.ndarray:
        """Decode one tile: (h, w, 3) uint8."""
        return self._level.read_tile(column, row)

    def overview(self) -> np.ndarray:
        """Read the whole slide at a lower resolution: (h, w, 3) uint8."""
        level = min([self._level, *self._smaller_levels()], key=lambda level: level.height * level.width)
        return level.shrink(max(1, max(level.height, level.width) // (2 * THUMBNAIL_PX)))

    def _smaller_levels(self) -> Iterator[TiffLevel]:
        """Yield the levels of the pyramid that are large enough for a thumbnail."""
        for page in (*self._pages, *self._sub_pages):
            width, height = index(page.imagewidth), index(page.imagelength)
            if not THUMBNAIL_PX <= max(width, height) < max(self.width, self.height):
                continue
            if abs(height / width * self.width / self.height - 1) >= 0.02:  # a label or macro picture
                continue
            try:
                level = TiffLevel(page, self._descriptor, self._size)
            except Exception:  # a damaged level is not needed
                continue
            if level.rule.name == self._level.rule.name:
                yield level

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)


def _area(page: Any) -> int:
    return index(page.imagewidth) * index(page.imagelength)


def _declared_planes(page: Any) -> int:
    """Return how many pictures of a page's size the file's description tells of, in OME-XML or as ImageJ does."""
    text = str(page.description)
    if text.startswith("ImageJ="):
        images = re.search(r"^images=(\d{1,9})$", text, re.MULTILINE)
        return int(images[1]) if images else 1
    planes = 1
    for attributes in re.findall(r"<(?:\w+:)?Pixels\s([^<>]*)>", text):
        values = {k: int(v) for k, v in re.findall(r'\b(Size[XYZCT])\s*=\s*["\'](\d{1,9})["\']', attributes)}
        if (values.get("SizeX"), values.get("SizeY")) == (page.imagewidth, page.imagelength):
            channels = -(-values.get("SizeC", 1) // index(page.samplesperpixel))
            planes = max(planes, channels * values.get("SizeZ", 1) * values.get("SizeT", 1))
    return planes


def _color_rule(page: Any) -> ColorRule:
    """Return how the samples of a page become RGB."""
    tags, bits = page.tags, page.bitspersample
    if index(page.imagedepth) != 1 or (page.is_tiled and index(page.tiledepth) != 1):
        raise UnreadKindError("a volume, not a picture", "store one RGB picture")
    if (turned := tags.valueof(274, 1)) not in (0, 1):  # 0 says nothing
        raise UnreadKindError(f"its rows and columns are turned (orientation {turned})", "store it upright")
    if page.planarconfig == 2 and (page.photometric == Photometric.YCBCR or page.compression not in LOSSLESS):
        raise UnreadKindError("its colours are compressed one by one", CONVERT)
    palette = page.colormap if tags.valueof(320) is not None else None
    return color_rule(
        Samples(
            photometric=index(page.photometric) if 262 in tags else -1,
            compression=index(page.compression),
            dtype=page.dtype,
            bits=tuple(bits) if isinstance(bits, tuple) else (bits,),
            count=index(page.samplesperpixel),
            extra=tuple(map(index, page.extrasamples)),
            ink_set=tags.valueof(332, 1),
            palette=None if palette is None else np.asarray(palette),
        )
    )
