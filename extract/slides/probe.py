"""OpenSlide tries a file in a process of its own first, because it may end its process on a damaged file."""

from __future__ import annotations

import signal
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

from extract.slides.image import ImageError
from hist_cache.memory import free_memory

PATIENCE_S = 60
LEAST_MEMORY = 2 << 30  # bytes of addresses that the process may take at least
PROBE = """
import sys
try:
    import resource
    memory, limit = int(sys.argv[2]), resource.getrlimit(resource.RLIMIT_AS)[1]
    if limit == resource.RLIM_INFINITY or memory < limit:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
except ImportError:  # Windows
    pass
import openslide
path = sys.argv[1]
vendor = openslide.OpenSlide.detect_format(path) or ""
try:
    if vendor not in ("", "generic-tiff"):
        slide = openslide.OpenSlide(path)
        slide.read_region((0, 0), 0, (64, 64))
        level = slide.get_best_level_for_downsample(max(1, max(slide.dimensions) / 2048))
        slide.read_region((0, 0), level, [min(4096, side) for side in slide.level_dimensions[level]])
except Exception as error:
    sys.exit(" ".join(str(error).split()))
print(vendor)
"""


def find_vendor(path: Path) -> str:
    """Return the vendor whose scanner made a file, as OpenSlide knows it; empty for any other file.

    Raises:
        ImageError: OpenSlide knows the vendor and cannot read the file.
    """
    stat = path.stat()
    return _probe(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _probe(path: str, size: int, time: int) -> str:
    """Try a file, once while it stays the same."""
    memory = max(LEAST_MEMORY, int(free_memory() / 2))
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", PROBE, path, str(memory)], capture_output=True, text=True, timeout=PATIENCE_S
        )
    except subprocess.TimeoutExpired:
        raise ImageError(f"OpenSlide does not open it within {PATIENCE_S} s") from None
    if done.returncode < 0:
        raise ImageError(f"OpenSlide ends with {signal.Signals(-done.returncode).name} on it")
    if done.returncode:
        lines = done.stderr.split("\n")
        raise ImageError(
            f"not a readable image ({next((line for line in reversed(lines) if line), 'OpenSlide fails')})"
        )
    vendor = done.stdout.strip()
    return "" if vendor == "generic-tiff" else vendor
