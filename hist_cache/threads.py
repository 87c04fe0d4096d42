"""Work on many items in threads, with few of them in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from hist_cache.processes import cores

MAX_THREADS = 4  # each has a slide in memory, which may take gigabytes, and what is computed of it

_T = TypeVar("_T")
_R = TypeVar("_R")


def in_threads(work: Callable[[_T], _R], items: Iterable[_T], threads: int | None = None) -> Iterator[_R]:
    """Do work on each item, and yield the results in the order of the items.

    Python lets several threads compute at once in NumPy, SciPy, hashes and decompression. Items and results that are in
    memory together are never more than there are threads.

    Args:
        work: What is done with an item; the first error of one ends it all.
        items: Taken one by one.
        threads: How many; None is one for each core that this process may use, `MAX_THREADS` at most.
    """
    count = threads or min(len(cores()), MAX_THREADS)
    if count == 1:
        yield from map(work, items)
        return
    pool = ThreadPoolExecutor(count)
    begun: deque[Future[_R]] = deque()
    try:
        for item in items:
            begun.append(pool.submit(work, item))
            if len(begun) == count:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
