"""A page of a TIFF as a grid of tiles, or three pages that are the colours of one picture."""

from __future__ import annotations

import os
from operator import index
from typing import Any

import numpy as np

from extract.slides.codestreams import check_codestream
from extract.slides.colors import CONVERT, LOSSLESS, ColorRule, Photometric, Samples, color_rule
from extract.slides.image import WHITE, ImageError, UnreadKindError, check_memory, check_size
from extract.slides.ome import ONE_RGB

LARGE_TILE = 4096  # px; a larger tile must not be larger than the image
THREADS = 4  # tiles that are about decoded at the same time


class TiffLevel:
    """One page of a TIFF as a grid of tiles (or strips), each read with one `pread`.

    Args:
        page: tifffile's page.
        descriptor: The open file.
        file_size: Its size, bytes.
        significant_bits: Bits of a sample that are used, where the file states them.

    Raises:
        ImageError: The page is damaged, or there is no rule for its colours.
    """

    def __init__(self, page: Any, descriptor: int, file_size: int, significant_bits: int | None = None) -> None:
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
        self.rule = _color_rule(page, significant_bits)
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

    @property
    def is_grey(self) -> bool:
        """Whether a pixel is one sample, of which 0 is black."""
        return index(self._page.samplesperpixel) == 1 and self._page.photometric == Photometric.BLACK_IS_ZERO

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


class ChannelLevel:
    """Three pages of grey that are the red, green and blue of one picture.

    Args:
        red: The page with red.
        green: That with green.
        blue: That with blue.

    Raises:
        ImageError: They are not alike, or not grey.
    """

    def __init__(self, red: TiffLevel, green: TiffLevel, blue: TiffLevel) -> None:
        self._levels = (red, green, blue)
        self.width, self.height = red.width, red.height
        self.tile_width, self.tile_height = red.tile_width, red.tile_height
        self.across, self.down = red.across, red.down
        if len({(level.width, level.height, level.tile_width, level.tile_height) for level in self._levels}) > 1:
            raise UnreadKindError("the pages of its channels are cut into different tiles", ONE_RGB)
        if not all(level.is_grey for level in self._levels) or len({level.rule.name for level in self._levels}) > 1:
            raise UnreadKindError("the pages of its channels are not alike, or not grey", ONE_RGB)
        self.raw_bytes = sum(level.raw_bytes for level in self._levels)
        self.rule = red.rule

    def read_tile(self, column: int, row: int) -> np.ndarray:
        """Decode one tile: (h, w, 3) uint8."""
        return np.stack([level.read_tile(column, row)[..., 0] for level in self._levels], axis=-1)


def _color_rule(page: Any, significant_bits: int | None) -> ColorRule:
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
            significant_bits=significant_bits,
        )
    )
