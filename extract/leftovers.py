"""Files that are not complete: whose they are, and which of them dead writers have left."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from pathlib import Path

from hist_cache.cache import partial_files
from hist_cache.console import size
from hist_cache.files import HOST, WRITER, writer_may_live
from hist_cache.leases import LEASE_S, Leases

log = logging.getLogger(__name__)


def remove_left_files(folder: Path, leases: Leases) -> None:
    """Remove what dead processes have left in a cache folder: incomplete files, and leases.

    What a process on another host writes is left to it for as long as it holds the slide, or the file is new.

    Args:
        folder: The cache folder.
        leases: The leases of its slides.
    """
    for partial in partial_files(folder):
        with suppress(OSError):  # its writer has completed or removed it by now, or it is another user's
            if is_left(partial, leases):
                n_bytes = partial.stat().st_size
                partial.unlink()
                log.info(f"{partial}: removed ({size(n_bytes)}, left by a run that was killed)")
    leases.remove_left()


def is_left(partial: Path, leases: Leases) -> bool:
    """Whether an incomplete file was left by a writer that is dead or gone."""
    if not writer_may_live(partial):
        return True
    writer = WRITER.search(partial.name)
    if writer is None or writer["host"] == HOST:
        return False
    slide = Path(partial.name[: writer.start()]).stem
    return not leases.is_held(slide) and leases.age_s(partial) > LEASE_S


def describe_partial(partial: Path) -> str:
    """Say what an incomplete file is: being written here, or on another host, or left by a run that was killed."""
    writer = WRITER.search(partial.name)
    if writer is None or not writer_may_live(partial):
        return "left by a killed run; the next run removes it"
    if writer["host"] == HOST:
        return f"being written by process {writer['pid']}"
    with suppress(OSError):
        last = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(partial.stat().st_mtime))
        return f"being written on {writer['host']}, or left there; last written {last}"
    return "complete or removed by now"
