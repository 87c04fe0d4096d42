"""Work in threads: results in order, few items in memory, and the first error ends it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from hist_cache.threads import in_threads


@pytest.mark.parametrize("threads", [1, 3, None])
def test_results_are_in_the_order_of_the_items(threads: int | None) -> None:
    def work(number: int) -> int:
        time.sleep(0.01 * (number % 3 == 0))  # so that others overtake it
        return number**2

    assert list(in_threads(work, range(20), threads)) == [i**2 for i in range(20)]


@pytest.mark.parametrize("threads", [1, 3])
def test_items_are_taken_as_others_are_done(threads: int) -> None:
    taken, most, yielded = 0, 0, 0

    def items() -> Iterator[int]:
        nonlocal taken, most
        for i in range(12):
            taken += 1
            most = max(most, taken - yielded)
            yield i

    for _ in in_threads(lambda i: i, items(), threads):
        yielded += 1
    assert yielded == 12
    assert most == threads


def test_work_is_done_at_the_same_time() -> None:
    meeting = threading.Barrier(3, timeout=20)
    assert sorted(in_threads(lambda _: meeting.wait(), range(3), 3)) == [0, 1, 2]


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_error_ends_it(threads: int) -> None:
    done: list[int] = []
    threads_before = threading.active_count()

    def work(number: int) -> None:
        if number == 2:
            raise ValueError("two")
        done.append(number)

    with pytest.raises(ValueError, match="two"):
        list(in_threads(work, range(1000), threads))
    assert len(done) < 10
    assert threading.active_count() == threads_before
