"""Vendors' formats, read by OpenSlide, and CZI by pylibCZIrw, in processes of their own.

On a damaged file OpenSlide may end its process: it takes as much memory as a tag claims that a tile has, and aborts
where there is not as much. So that such a file fails alone, this process never opens it itself.
"""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from extract.slides.colors import CONVERT, on_white
from extract.slides.image import NOT_READABLE, THUMBNAIL_PX, ImageError, UnreadKindError, check_memory
from extract.slides.ome import ONE_RGB, Channel, not_rgb
from hist_cache.child_process import ChildAnswerError, ChildEndedError, ChildProcess, child_memory

OPENSLIDE_TILE = 1024  # px; OpenSlide does not tell the file's own tiles, and reads large regions fastest
OPENSLIDE_PROGRAM = Path(__file__).with_name("openslide_program.py")
CZI_SUFFIX = ".czi"
CZI_LIBRARY = "pylibCZIrw"
CZI_RGB = "Bgr24"  # its name for 8-bit RGB
CZI_PROGRAM = Path(__file__).with_name("czi_program.py")
PATIENCE_S = 300.0  # for one answer
LEAST_MEMORY = 2 << 30  # bytes of addresses that a process may take at least


class Server:
    """A process that has a slide open.

    Args:
        path: The image file.
        library: What reads it, for messages; pylibCZIrw has a program of its own.

    Attributes:
        levels: Width and height of each level, px; none where OpenSlide knows no vendor of the file.
        um_per_px: Texts that state the pixel size along x and y; None where there are none.
        about: All that the program says of the file.

    Raises:
        ImageError: The library cannot read it.
    """

    def __init__(self, path: Path, library: str = "OpenSlide") -> None:
        self.library = library
        program = CZI_PROGRAM if library == CZI_LIBRARY else OPENSLIDE_PROGRAM
        with _image_errors(library):
            self._process = ChildProcess(program, str(path), memory=child_memory(LEAST_MEMORY))
        try:
            with _image_errors(library):
                self.about: dict[str, Any] = json.loads(self._process.ask([], PATIENCE_S))
            self.levels: list[tuple[int, int]] = [(int(w), int(h)) for w, h in self.about["levels"]]
            self.um_per_px: list[str | None] = self.about["um_per_px"]
        except BaseException:
            self.close()
            raise

    def region(self, x: int, y: int, level: int, width: int, height: int) -> np.ndarray:
        """Read pixels of a level; x and y are those of level 0.

        Returns:
            (height, width, 3) uint8, transparent area white.
        """
        with _image_errors(self.library):
            data = self._process.ask([x, y, level, width, height], PATIENCE_S)
        pixels = np.frombuffer(data, dtype=np.uint8).reshape(height, width, -1)
        return pixels if pixels.shape[-1] == 3 else on_white(pixels[..., :3], pixels[..., 3:], associated=False)

    def close(self) -> None:
        """End the process."""
        self._process.close()


@contextmanager
def _image_errors(library: str) -> Iterator[None]:
    """Make errors of the process those of the image."""
    try:
        yield
    except ChildAnswerError as error:
        raise ImageError(f"{NOT_READABLE} ({error})") from error
    except ChildEndedError as error:
        raise ImageError(f"{library} {error}") from error


class ServedImage:
    """Regions of level 0 read through such a process; transparent area becomes white.

    Args:
        path: The image file.
        server: A process that has it open; each further thread starts another one.
        name: Name of the reader.
    """

    tile_width = tile_height = OPENSLIDE_TILE

    def __init__(self, path: Path, server: Server, name: str) -> None:
        self.name = name
        self._path, self._library, self._levels = path, server.library, server.levels
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
            server = Server(self._path, self._library)
            self._all.append(server)
        pixels = server.region(x, y, level, width, height)
        self._idle.put(server)  # one that failed is not asked again
        return pixels

    def close(self) -> None:
        """Close the file."""
        for server in self._all:
            server.close()


def open_vendor(path: Path) -> ServedImage | None:
    """Open a file that a vendor's scanner made; None if OpenSlide knows no vendor of it.

    Raises:
        ImageError: OpenSlide knows the vendor and cannot read the file.
    """
    server = Server(path)
    if server.levels:
        return ServedImage(path, server, "openslide")
    server.close()
    return None


def open_czi(path: Path) -> ServedImage:
    """Open a CZI.

    Raises:
        ImageError: pylibCZIrw is not installed or cannot read the file, or it is no RGB picture.
    """
    server = czi_server(path)
    try:
        _check_czi(server.about)
    except BaseException:
        server.close()
        raise
    return ServedImage(path, server, CZI_LIBRARY)


def czi_server(path: Path) -> Server:
    """Start a process that has a CZI open.

    Raises:
        ImageError: pylibCZIrw is not installed or cannot read the file.
    """
    if find_spec(CZI_LIBRARY) is None:
        raise ImageError(f"CZI is read by {CZI_LIBRARY}, which is not installed", "pip install 'hist-cache[czi]'")
    return Server(path, CZI_LIBRARY)


def _check_czi(about: dict[str, Any]) -> None:
    """Check that a CZI is one picture in 8-bit RGB."""
    axes = {axis: n for axis, n in about["axes"].items() if n > 1 and axis not in ("C", "S", "M")}
    if axes:
        planes = " and ".join(f"{n:,} along its axis {axis}" for axis, n in axes.items())
        raise UnreadKindError(f"a stack of several planes ({planes})", ONE_RGB)
    types = sorted(set(about["types"].values()))
    if len(about["types"]) != 1:
        raise not_rgb([Channel(name) for name in about["names"]] or [Channel()] * len(about["types"]))
    if types != [CZI_RGB]:
        raise UnreadKindError(f"its samples are {types[0]}, not {CZI_RGB} (8-bit RGB)", CONVERT)
