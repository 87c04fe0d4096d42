"""Tiled TIFF, read by tifffile and imagecodecs, about ten times as fast as OpenSlide.

Files come from anywhere. What is read from their tags is checked before it is used, so that a damaged or hostile file
ends in an error and takes neither for ever nor all memory.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from operator import index
from pathlib import Path
from typing import Any

import numpy as np

from extract.slides.colors import check_not_dark
from extract.slides.directories import MAX_PAGES, check_directories
from extract.slides.image import THUMBNAIL_PX, ImageError, UnreadKindError, shrink
from extract.slides.ome import ONE_RGB, OmePixels, read_ome_xml, rgb_order
from extract.slides.tiff_level import ChannelLevel, TiffLevel
from hist_cache.console import size

# What is wrong with a file becomes an error; without a handler, Python itself would print tifffile's messages too.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

SPARE_BYTES = 1 << 30  # that a file may have besides four times its pixels: levels, labels, descriptions


class TiffImage:
    """The largest page of a TIFF, or three pages that OME-XML states to be its channels.

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
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        self._size = os.fstat(self._descriptor).st_size
        self._pages: list[Any] = list(self._file.pages)
        if not self._pages:
            raise ImageError("no image in it")
        largest = max(self._pages, key=_area)
        width, height = index(largest.imagewidth), index(largest.imagelength)
        texts = {str(page.description) for page in (largest, self._pages[0])}
        stated = [pixels for text in texts for pixels in read_ome_xml(text, width, height)]
        self._significant_bits = next((pixels.significant_bits for pixels in stated), None)
        colors, named = _picture_pages(self._pages, largest, stated)
        self._slide_pages = colors
        self._level = self._make_level(colors)
        names = ["tifffile", "channels as RGB" if len(colors) > 1 else "", "" if named else "unnamed"]
        self.name = ", ".join(part for part in (*names, self._level.rule.name) if part)
        if not named and self._level.rule.name:
            raise UnreadKindError("its three channels of 16 bits have no names", ONE_RGB)
        self._check_file_size()
        self.width, self.height = width, height
        self.tile_width, self.tile_height = self._level.tile_width, self._level.tile_height
        if self._level.rule.may_be_dark:
            check_not_dark(self)

    def _make_level(self, pages: Sequence[Any]) -> TiffLevel | ChannelLevel:
        """Return one page, or three that are red, green and blue, as a grid of tiles."""
        levels = [TiffLevel(page, self._descriptor, self._size, self._significant_bits) for page in pages]
        return levels[0] if len(levels) == 1 else ChannelLevel(*levels)

    def _smaller_pages(self) -> list[tuple[Any, ...]]:
        """List the pages that may be of the pyramid: those of the file and, as in OME-TIFF, those below the slide's."""
        below = []
        for page in self._slide_pages:
            try:
                below.append(list(page.pages) if page.subifds and len(page.subifds) <= MAX_PAGES else [])
            except Exception:  # a damaged level is not needed
                below.append([])
        if len(below) > 1:
            return list(zip(*below, strict=False))
        return [(page,) for page in (*self._pages, *below[0])]

    def _check_file_size(self) -> None:
        """Check that the file is not far larger than its pixels, because all of it is read for its digest."""
        if self._size > SPARE_BYTES + 4 * self._level.raw_bytes:
            pixels = f"{self._level.width:,} x {self._level.height:,} px"
            raise ImageError(f"a file of {size(self._size)} is far larger than its {pixels}")

    def read_tile(self, column: int, row: int) -> np.ndarray:
        """Decode one tile: (h, w, 3) uint8."""
        return self._level.read_tile(column, row)

    def overview(self) -> np.ndarray:
        """Read the whole slide at a lower resolution: (h, w, 3) uint8."""
        return shrink(min([self._level, *self._smaller_levels()], key=lambda level: level.height * level.width))

    def _smaller_levels(self) -> Iterator[TiffLevel | ChannelLevel]:
        """Yield the levels of the pyramid that are large enough for a thumbnail."""
        for pages in self._smaller_pages():
            width, height = index(pages[0].imagewidth), index(pages[0].imagelength)
            if not THUMBNAIL_PX <= max(width, height) < max(self.width, self.height):
                continue
            if abs(height / width * self.width / self.height - 1) >= 0.02:  # a label or macro picture
                continue
            try:
                level = self._make_level(pages)
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


def _picture_pages(pages: Sequence[Any], largest: Any, stated: Sequence[OmePixels]) -> tuple[tuple[Any, ...], bool]:
    """Find the page that is the slide, or the three pages that are its red, green and blue.

    Args:
        pages: All pages of the file, in their order.
        largest: The first of the largest ones.
        stated: What OME-XML states of images of this size.

    Returns:
        The pages; and whether it is said which colours they are.

    Raises:
        UnreadKindError: There are several pictures.
    """
    same = [page for page in pages if _area(page) == _area(largest)]
    if (planes := max(len(same), _declared_planes(largest))) == 1:
        return (largest,), True
    several = UnreadKindError(f"{planes:,} pictures of full size (channels, focal planes or times)", ONE_RGB)
    if len(stated) != 1:
        raise several
    (pixels,) = stated
    if pixels.stack:
        raise UnreadKindError(f"a stack of {pixels.stack}", ONE_RGB)
    if len(pixels.channels) != planes:
        raise several
    order = rgb_order(pixels.channels)
    if len(same) != planes:  # the others are in other files
        raise several
    numbers = {channel: number for number, channel in pixels.pages.items() if number < len(pages)}
    if sorted(numbers) == [0, 1, 2] and {id(pages[n]) for n in numbers.values()} == {id(page) for page in same}:
        same = [pages[numbers[channel]] for channel in range(3)]
    return tuple(same[i] for i in order or (0, 1, 2)), order is not None
