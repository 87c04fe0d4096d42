"""Which task a worker gets next."""

from __future__ import annotations

from hist_cache.task_queue import TaskQueue


def test_tasks_come_when_they_are_asked_for() -> None:
    asked: list[int] = []

    def tasks():
        for i in range(3):
            asked.append(i)
            yield i if i != 1 else None

    queue = TaskQueue(tasks(), tries=3)
    first = queue.next_for([], 2)
    assert first is not None
    assert (first.task, asked) == (0, [0])
    assert queue.next_for([first], 1) is None, "it has one"
    assert asked == [0]
    assert queue.next_for([], 1) is None, "there is none yet"
    second = queue.next_for([first], 2)
    assert second is not None
    assert second.task == 2
    assert queue.next_for([], 1) is None
    assert not queue.open


def test_a_task_with_a_death_behind_it_runs_alone() -> None:
    queue = TaskQueue(iter("abc"), tries=2)
    a, b = (queue.next_for([], 2) for _ in range(2))
    assert a is not None
    assert b is not None
    assert queue.died([a, b]) == [], "nobody knows whose fault it was"
    assert queue.next_for([queue_c := queue.next_for([], 2)], 2) is None, "it waits until the process is idle"
    assert queue_c is a
    assert queue.died([a]) == ["a"], "it was alone: the second death is its own"
    assert queue.rest() == ["b", "c"]


def test_tasks_whose_machine_went_down_cost_nothing() -> None:
    queue = TaskQueue(iter("a"), tries=1)
    for _ in range(5):
        a = queue.next_for([], 1)
        assert a is not None
        queue.give_back([a])
    assert a.deaths == 0
    assert queue.open
