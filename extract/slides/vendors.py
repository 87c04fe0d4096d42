"""Vendors' formats, read by OpenSlide in processes of their own.

On a damaged file OpenSlide may end its process: it takes as much memory as a tag claims that a tile has, and aborts
where there is not as much. So that such a file fails alone, this process never opens it itself.
"""

from __future__ import annotations

import json
import queue
import signal
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np

from extract.slides.colors import on_white
from extract.slides.image import THUMBNAIL_PX, ImageError, check_memory
from hist_cache.errors import one_line
from hist_cache.memory import free_memory

OPENSLIDE_TILE = 1024  # px; OpenSlide does not tell the file's own tiles, and reads large regions fastest
PATIENCE_S = 120  # for one answer
LEAST_MEMORY = 2 << 30  # bytes of addresses that a process may take at least
ANSWER_HEAD = struct.Struct("<?q")  # of an answer: whether it is an error, and its bytes

# What a process does: it tells of the file, then answers each line (x, y, level, width, height) with pixels: RGB, or
# RGBA where some are transparent.
SERVE = """
import json, signal, struct, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
path, memory = sys.argv[1], int(sys.argv[2])
try:
    import resource
    limit = resource.getrlimit(resource.RLIMIT_AS)[1]
    if limit == resource.RLIM_INFINITY or memory < limit:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
except ImportError:  # Windows
    pass

def answer(make):
    try:
        failed, data = False, make()
    except Exception as error:
        failed, data = True, (str(error) or type(error).__name__).encode()
    out.write(struct.pack("<?q", failed, len(data)))
    out.write(data)
    out.flush()

def hello():
    global numpy, openslide, slide
    import numpy, openslide
    vendor = openslide.OpenSlide.detect_format(path)
    if vendor in (None, "generic-tiff"):
        return b"[]"
    slide = openslide.OpenSlide(path)
    return json.dumps(slide.level_dimensions).encode()

def region():
    pixels = numpy.asarray(slide.read_region((x, y), level, (width, height)))
    opaque = pixels[..., 3].min(initial=255) == 255
    return memoryview(numpy.ascontiguousarray(pixels[..., :3] if opaque else pixels)).cast("B")

out = sys.stdout.buffer
answer(hello)
for line in sys.stdin:
    x, y, level, width, height = map(int, line.split())
    answer(region)
"""


class Server:
    """A process that has a slide open.

    Args:
        path: The image file.
    """

    def __init__(self, path: Path) -> None:
        self._late = False
        memory = max(LEAST_MEMORY, int(free_memory() / 2))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", SERVE, str(path), str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            self.levels: list[tuple[int, int]] = [(int(w), int(h)) for w, h in json.loads(self._answer(""))]
        except BaseException:
            self.close()
            raise

    def region(self, x: int, y: int, level: int, width: int, height: int) -> np.ndarray:
        """Read pixels of a level; x and y are those of level 0.

        Returns:
            (height, width, 3) uint8, transparent area white.
        """
        data = self._answer(f"{x} {y} {level} {width} {height}\n")
        pixels = np.frombuffer(data, dtype=np.uint8).reshape(height, width, -1)
        return pixels if pixels.shape[-1] == 3 else on_white(pixels[..., :3], pixels[..., 3:], associated=False)

    def _answer(self, request: str) -> bytes:
        """Ask, and wait for the answer, but not without end."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        timer = threading.Timer(PATIENCE_S, self._give_up)
        timer.start()
        try:
            stdin.write(request.encode())
            stdin.flush()
            head = stdout.read(ANSWER_HEAD.size)
            failed, n_bytes = ANSWER_HEAD.unpack(head) if len(head) == ANSWER_HEAD.size else (False, -1)
            data = stdout.read(n_bytes) if n_bytes >= 0 else b""
        except BrokenPipeError:
            n_bytes, data = -1, b""
        finally:
            timer.cancel()
        if len(data) != n_bytes:
            raise ImageError(self._end())
        if failed:
            error = OSError(data.decode(errors="replace"))
            raise ImageError(f"not a readable image ({one_line(error)})")
        return data

    def _give_up(self) -> None:
        self._late = True
        self._process.kill()

    def _end(self) -> str:
        """Return how the process ended."""
        code = self._process.wait()
        if self._late:
            return f"OpenSlide does not answer within {PATIENCE_S} s"
        return f"OpenSlide ends with {signal.Signals(-code).name if code < 0 else f'code {code}'} on it"

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        self._process.wait()


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
