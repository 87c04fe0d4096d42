"""A slide's image as a grid of tiles at level 0, whatever reads it: any failure to read it is an error of the slide."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np

from hist_cache.console import size
from hist_cache.errors import FileProblemError, SlideError, slide_error
from hist_cache.memory import free_memory

WHITE = 255
THUMBNAIL_PX = 1024  # longer side
MAX_PIXELS = 1 << 39  # two slides of 25 x 75 mm at 0.1 um a pixel are less: a damaged or hostile header
NOT_READABLE = "not a readable image"  # what is wrong with a file that a library cannot open
MEMORY_SHARE = 0.5  # of what is free, that pixels which must be in memory together may take


class ImageError(FileProblemError):
    """An image cannot be used."""

    def __init__(self, problem: str, advice: str = "copy or download it again") -> None:
        super().__init__(problem, advice)


class UnreadKindError(ImageError):
    """A sound image of a kind that a reader does not read; perhaps another one does."""


class Reader(Protocol):
    """What reads one kind of file: `width` x `height` px of RGB, in tiles of `tile_width` x `tile_height` px."""

    name: str
    width: int
    height: int
    tile_width: int
    tile_height: int

    def read_tile(self, column: int, row: int) -> np.ndarray:
        """Decode one tile, (h, w, 3) uint8; tiles at the right and lower border may be smaller than the others."""

    def overview(self) -> np.ndarray:
        """Read the whole slide at a lower resolution: (h, w, 3) uint8, see `Image.overview`."""

    def close(self) -> None:
        """Close the file."""


class TileGrid(Protocol):
    """A picture as a grid of `across` x `down` tiles."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    across: int
    down: int

    def read_tile(self, column: int, row: int) -> np.ndarray:
        """Decode one tile: (h, w, 3) uint8."""


class Image:
    """A slide's image: `width` x `height` px of RGB, cut into tiles of `tile_width` x `tile_height` px.

    Args:
        slide: ID of the slide, for messages.
        path: The image file.
        reader: Reads it. Whatever it raises becomes a `SlideError`.
    """

    def __init__(self, slide: str, path: Path, reader: Reader) -> None:
        self._slide, self._path, self._reader = slide, path, reader
        self.reader_name = reader.name  # in a cache file's fingerprint: pixels differ a little between readers
        self.width, self.height = reader.width, reader.height
        self.tile_width, self.tile_height = reader.tile_width, reader.tile_height

    def read_tile(self, column: int, row: int) -> np.ndarray:
        """Decode one tile; several threads may do so at once.

        Returns:
            (h, w, 3) uint8; tiles at the right and lower border may be smaller than the others.

        Raises:
            SlideError: The tile cannot be decoded.
        """
        shape = (
            min(self.tile_height, self.height - row * self.tile_height),
            min(self.tile_width, self.width - column * self.tile_width),
            3,
        )
        try:
            pixels = self._reader.read_tile(column, row)
            if pixels.shape != shape or pixels.dtype != np.uint8:
                raise ImageError(f"{pixels.shape} {pixels.dtype} instead of {shape} uint8")
        except Exception as error:
            raise self._error(error, f"tile {column},{row} cannot be decoded") from error
        return pixels

    def overview(self) -> np.ndarray:
        """Read the whole slide at a lower resolution.

        Returns:
            (h, w, 3) uint8; the longer side has at least THUMBNAIL_PX, unless the slide itself is smaller.

        Raises:
            SlideError: The image cannot be decoded.
        """
        try:
            return self._reader.overview()
        except Exception as error:
            raise self._error(error, "cannot be decoded") from error

    def _error(self, error: Exception, during: str) -> SlideError:
        return slide_error(self._slide, self._path, error, NOT_READABLE, during)

    def close(self) -> None:
        """Close the file."""
        self._reader.close()


def check_size(width: int, height: int) -> None:
    """Check that an image has a size that a slide can have.

    Raises:
        ImageError: It has none.
    """
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise ImageError(f"its header states {width:,} x {height:,} px")


def check_memory(n_bytes: int, what: str) -> None:
    """Check that pixels which must be in memory together fit, before memory is taken for them.

    Raises:
        ImageError: They do not.
    """
    free = free_memory()
    if n_bytes > MEMORY_SHARE * free:
        raise ImageError(
            f"{what} need {size(n_bytes)} of memory, {size(free)} are free", "store it as a tiled TIFF, or free memory"
        )


def shrink(level: TileGrid) -> np.ndarray:
    """Return every nth pixel of every nth row, so that a thumbnail can be made from them: (h, w, 3) uint8."""
    step = max(1, max(level.height, level.width) // (2 * THUMBNAIL_PX))
    out = np.empty((-(-level.height // step), -(-level.width // step), 3), dtype=np.uint8)
    for row in range(level.down):
        for column in range(level.across):
            y, x = row * level.tile_height, column * level.tile_width
            part = level.read_tile(column, row)[-y % step :: step, -x % step :: step]
            top, left = -(-y // step), -(-x // step)
            out[top : top + part.shape[0], left : left + part.shape[1]] = part
    return out


def make_thumbnail(image: Image) -> np.ndarray:
    """Make a small picture of the whole slide: (h, w, 3) uint8, the longer side THUMBNAIL_PX or less."""
    import PIL.Image

    shrink = min(1.0, THUMBNAIL_PX / max(image.width, image.height))
    shape = (max(1, round(image.width * shrink)), max(1, round(image.height * shrink)))
    return np.asarray(
        PIL.Image.fromarray(image.overview()).resize(shape, PIL.Image.Resampling.LANCZOS, reducing_gap=2.0)
    )
