"""A fold that is being trained belongs to one command at a time, where the file system has locks.

Where it has none, two commands may train the same fold. Each writes files of its own names until they are complete, so
that this costs time and nothing else.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hist_cache.errors import HistError

log = logging.getLogger(__name__)
_without_locks: set[int] = set()  # file systems, by their numbers, of which it was said that they have none


@contextmanager
def claim_fold(folder: Path) -> Iterator[None]:
    """Hold the folder of a fold, by a lock on the folder itself, which leaves no file and ends with the process.

    Raises:
        HistError: Another command holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HistError(
                f"{folder}: another command is training this fold; when that has ended, the same command shows it"
            ) from None
        except OSError as error:  # of many kinds: over NFS a folder, opened for reading, may be a bad descriptor
            device = os.fstat(descriptor).st_dev
            if device not in _without_locks:
                log.warning(f"{folder}: no locks there ({error}); two commands at once may train the same fold")
            _without_locks.add(device)
        yield
    finally:
        os.close(descriptor)
