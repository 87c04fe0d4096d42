"""Vendors' formats, read by OpenSlide in processes of their own.

On a damaged file OpenSlide may end its process: it takes as much memory as a tag claims that a tile has, and aborts
where there is not as much. So that such a file fails alone, this process never opens it itself.
"""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from extract.slides.colors import on_white
from extract.slides.image import NOT_READABLE, THUMBNAIL_PX, ImageError, check_memory
from hist_cache.child_process import ChildAnswerError, ChildEndedError, ChildProcess, child_memory

OPENSLIDE_TILE = 1024  # px; OpenSlide does not tell the file's own tiles, and reads large regions fastest
OPENSLIDE_PROGRAM = Path(__file__).with_name("openslide_program.py")
PATIENCE_S = 300.0  # for one answer
LEAST_MEMORY = 2 << 30  # bytes of addresses that a process may take at least


class Server:
    """A process that has a slide open.

    Args:
        path: The image file.

    Attributes:
        levels: Width and height of each level, px; none where OpenSlide knows no vendor of the file.
        um_per_px: Texts that state the pixel size along x and y; None where there are none.

    Raises:
        ImageError: OpenSlide cannot read it.
    """

    def __init__(self, path: Path) -> None:
        with _image_errors():
            self._process = ChildProcess(OPENSLIDE_PROGRAM, str(path), memory=child_memory(LEAST_MEMORY))
        try:
            with _image_errors():
                answer = json.loads(self._process.ask([], PATIENCE_S))
            self.levels: list[tuple[int, int]] = [(int(w), int(h)) for w, h in answer["levels"]]
            self.um_per_px: list[str | None] = answer["um_per_px"]
        except BaseException:
            self.close()
            raise

    def region(self, x: int, y: int, level: int, width: int, height: int) -> np.ndarray:
        """Read pixels of a level; x and y are those of level 0.

        Returns:
            (height, width, 3) uint8, transparent area white.
        """
        with _image_errors():
            data = self._process.ask([x, y, level, width, height], PATIENCE_S)
        pixels = np.frombuffer(data, dtype=np.uint8).reshape(height, width, -1)
        return pixels if pixels.shape[-1] == 3 else on_white(pixels[..., :3], pixels[..., 3:], associated=False)

    def close(self) -> None:
        """End the process."""
        self._process.close()


@contextmanager
def _image_errors() -> Iterator[None]:
    """Make errors of the process those of the image."""
    try:
        yield
    except ChildAnswerError as error:
        raise ImageError(f"{NOT_READABLE} ({error})") from error
    except ChildEndedError as error:
        raise ImageError(f"OpenSlide {error}") from error


class OpenSlideImage:
    """Regions of level 0 read through OpenSlide; transparent area becomes white.

    Args:
        path: The image file.
        server: A process that has it open; each further thread starts another one.
    """

    name = "openslide"
    tile_width = tile_height = OPENSLIDE_TILE

    def __init__(self, path: Path, server: Server) -> None:
        self._path, self._levels = path, server.levels
        self.width, self.height = server.levels[0]
        self._all = [server]
        self._idle: queue.SimpleQueue[Server] = queue.SimpleQueue()
        self._idle.put(server)

    def read_tile(self, column: int, row: int) -> np.ndarray:
        """Decode one tile: (h, w, 3) uint8."""
        x, y = column * self.tile_width, row * self.tile_height
        return self._region(x, y, 0, min(self.tile_width, self.width - x), min(self.tile_height, self.height - y))

    def overview(self) -> np.ndarray:
        """Read the whole slide at a lower resolution: (h, w, 3) uint8."""
        large = [i for i, shape in enumerate(self._levels) if max(shape) >= 2 * THUMBNAIL_PX]
        level = large[-1] if large else 0
        width, height = self._levels[level]
        check_memory(12 * width * height, f"{width:,} x {height:,} px in one piece")
        return self._region(0, 0, level, width, height)

    def _region(self, x: int, y: int, level: int, width: int, height: int) -> np.ndarray:
        try:
            server = self._idle.get_nowait()
        except queue.Empty:
            server = Server(self._path)
            self._all.append(server)
        pixels = server.region(x, y, level, width, height)
        self._idle.put(server)  # one that failed is not asked again
        return pixels

    def close(self) -> None:
        """Close the file."""
        for server in self._all:
            server.close()


def open_vendor(path: Path) -> OpenSlideImage | None:
    """Open a file that a vendor's scanner made; None if OpenSlide knows no vendor of it.

    Raises:
        ImageError: OpenSlide knows the vendor and cannot read the file.
    """
    server = Server(path)
    if server.levels:
        return OpenSlideImage(path, server)
    server.close()
    return None
