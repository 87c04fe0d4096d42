"""Tasks that workers ask for: new ones as they come, and those again whose process has died."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

_T = TypeVar("_T")


@dataclass(eq=False)
class Handed(Generic[_T]):
    """A task, and how many processes have died of it so far."""

    task: _T
    deaths: int = 0


class TaskQueue(Generic[_T]):
    """What is left to be done.

    A task that was under way in a process that died runs alone in the next one, so that a task which kills its
    processes brings no other one down several times.

    Args:
        tasks: Each is asked for when somebody is free to do it; None stands for one that there is not yet.
        tries: How many processes a task may cost.
    """

    def __init__(self, tasks: Iterable[_T | None], tries: int) -> None:
        self._tasks, self._tries = iter(tasks), tries
        self._more = True  # whether `tasks` may have another one
        self._again: deque[Handed[_T]] = deque()

    @property
    def open(self) -> bool:
        """Whether there may be another task."""
        return self._more or bool(self._again)

    def next_for(self, busy: Sequence[Handed[_T]], at_once: int) -> Handed[_T] | None:
        """The next task of a process; None where it has to wait.

        Args:
            busy: The tasks that it has under way.
            at_once: How many it may have.
        """
        if len(busy) >= at_once or any(handed.deaths for handed in busy):
            return None
        if self._again:
            return None if busy and self._again[0].deaths else self._again.popleft()
        if self._more:
            try:
                task = next(self._tasks)
            except StopIteration:
                self._more = False
            else:
                return None if task is None else Handed(task)
        return None

    def give_back(self, handed: Iterable[Handed[_T]]) -> None:
        """Take tasks back whose process could not do them through no fault of theirs."""
        self._again.extend(handed)

    def died(self, running: Sequence[Handed[_T]]) -> list[_T]:
        """Count the death of a process against the tasks that it had under way.

        Returns:
            Those that are not tried again, which is known only of one that ran alone.
        """
        given_up: list[_T] = []
        for handed in running:
            handed.deaths += 1
            if len(running) == 1 and handed.deaths >= self._tries:
                given_up.append(handed.task)
            else:
                self._again.append(handed)
        return given_up

    def rest(self) -> list[_T]:
        """All tasks that are left, as far as there are any now."""
        left = [handed.task for handed in self._again]
        while self._more and (task := next(self._tasks, None)) is not None:
            left.append(task)
        return left
