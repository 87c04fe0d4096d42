"""`hist-extract` without `--precision`: commands that share a cache come to the same one on all machines."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from extract.claims import LOCKS
from hist_cache.cache import slide_files
from hist_cache.values import PRECISIONS, Precision

log = logging.getLogger(__name__)

VALID_S = 3600.0  # that a decision counts for before it has led to a cache
WRITTEN_S = 2.0  # in which a decision is written that was just begun


def shared_precision(wanted: Precision, folders: Mapping[Precision, Path], decide: bool) -> Precision:
    """Return the precision of the cache that is there, or what the first of several commands has decided.

    Args:
        wanted: What suits this command's workers.
        folders: The cache folder that each precision would fill.
        decide: Whether to decide it for other commands too, where that is not done yet.
    """
    if slide_files(folders[wanted]):
        return wanted
    for precision, folder in folders.items():
        if slide_files(folder):
            log.info(f"in {precision}, as the cache that is there ({folder}); --precision {wanted} makes another one")
            return precision
    if not decide:
        return wanted
    decided = _read_or_write(_note(folders), wanted)
    if decided != wanted:
        log.info(f"in {decided}, as another command that fills this cache; --precision {wanted} makes another one")
    return decided


def forget_decision(folders: Mapping[Precision, Path]) -> None:
    """Remove what `shared_precision` has decided, where a cache that is there decides by now."""
    if any(slide_files(folder) for folder in folders.values()):
        note = _note(folders)
        with suppress(OSError):  # another command has just done so, or keeps something else there
            note.unlink(missing_ok=True)
            note.parent.rmdir()


def _note(folders: Mapping[Precision, Path]) -> Path:
    first = min(folders.values())
    return first.with_name(LOCKS) / f"{first.name}.precision"


def _read_or_write(note: Path, wanted: Precision) -> Precision:
    note.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        if time.time() - note.stat().st_mtime > VALID_S:
            note.unlink(missing_ok=True)
    try:
        descriptor = os.open(note, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        began = time.monotonic()
        while time.monotonic() - began < WRITTEN_S:
            with suppress(OSError):
                text = note.read_text(encoding="utf-8")
                for precision in PRECISIONS:
                    if text == precision:
                        return precision
            time.sleep(0.1)
        return wanted
    try:
        os.write(descriptor, wanted.encode())
    finally:
        os.close(descriptor)
    return wanted
