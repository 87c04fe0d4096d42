"""Waits of a study: for locks that another worker holds. Every wait is said aloud and ends."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from hist_cache.console import duration
from hist_cache.errors import HistError

log = logging.getLogger(__name__)

SAY_AFTER_S = 5.0
LOCK_S = 180.0  # for a lock that is held for seconds at most; longer than a database that is away is waited for


class StorageLost(HistError):
    """The study's storage cannot be used any more; what is stored stays, and the same command goes on with it."""


class LockLost(Exception):
    """The study's lock was lost while it was held, so that another worker may have held it too."""


@contextmanager
def hold(lock: FileLock, what: str, limit_s: float | None = LOCK_S) -> Iterator[None]:
    """Hold the lock of a file, which the operating system releases when its holder dies.

    Args:
        lock: The lock.
        what: What is waited for, as it is said after a few seconds.
        limit_s: How long to wait; None for as long as its holder lives.

    Raises:
        StorageLost: It was not released in time, or files cannot be locked here.
    """
    try:
        try:
            lock.acquire(timeout=SAY_AFTER_S)
        except Timeout:
            log.warning(f"waiting for {what} ({os.fspath(lock.lock_file)})")
            lock.acquire(timeout=-1 if limit_s is None else limit_s)
    except Timeout:
        raise StorageLost(
            f"{lock.lock_file}: held for {duration(limit_s or 0)} by another process, which seems to hang; end it, "
            "then the same command goes on"
        ) from None
    except NotImplementedError:
        raise StorageLost(f"{lock.lock_file}: this file system cannot lock files; give --runs on another one") from None
    try:
        yield
    finally:
        lock.release()
