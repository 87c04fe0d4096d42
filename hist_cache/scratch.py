"""Folders for temporary files, which are removed by the next run where the process that made them was killed."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from hist_cache.living import may_be_at_work

LOCK = ".lock"  # locked as long as the folder is in use; the operating system unlocks it when its process dies
UNLOCKED_S = 24 * 3600  # age at which folders are removed that name no process and have no lock: those of version 0.1


@contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """Yield a folder of this process's own in the system's temporary one; it is removed afterwards.

    Folders of the same prefix that dead processes left are removed first.
    """
    remove_leftovers(prefix)
    new = Path(tempfile.mkdtemp(prefix=f".{prefix}{os.getpid()}-"))
    lock = FileLock(new / LOCK)
    lock.acquire()
    folder = new.rename(new.with_name(new.name[1:]))  # nobody finds it before it is locked
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def remove_leftovers(prefix: str) -> None:
    """Remove the folders of this prefix whose processes are dead; those of other users stay."""
    temporary = Path(tempfile.gettempdir())
    for folder in [*temporary.glob(f"{prefix}*"), *temporary.glob(f".{prefix}*")]:
        with suppress(OSError, Timeout):
            file = folder / LOCK
            if not file.exists():
                maker = re.search(rf"{prefix}(\d+)-", folder.name)
                dead = maker is not None and not may_be_at_work(int(maker[1]), folder)
                if dead or time.time() - folder.stat().st_mtime > UNLOCKED_S:
                    shutil.rmtree(folder)
                continue
            with FileLock(file, timeout=0):
                shutil.rmtree(folder)
