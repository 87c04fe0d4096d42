"""Which slides are left, and which this process works on; a lock for each slide divides them between processes."""

from __future__ import annotations

import errno
import logging
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from extract.plan import ExtractionPlan, Request, Task, plan_slide
from hist_cache.console import duration
from hist_cache.errors import HistError, SlideError, slide_failure
from hist_cache.files import write_error

log = logging.getLogger(__name__)

LOCKS = ".locks"  # subfolder of a cache folder
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # what file systems without locks answer
WAIT_STEP_S = 60.0  # that one slide is waited for before another one is tried
LONGEST_WAIT_S = 24 * 3600.0  # without any slide finished elsewhere; one takes hours on a slow CPU


@dataclass(frozen=True)
class Claim:
    """A slide that only this process works on."""

    task: Task
    lock: FileLock


class Claims:
    """The slides that are still to be done; a lock for each slide divides them between processes.

    Args:
        plan: What is to be done.
        request: What the plan was made from.

    Attributes:
        failed: The errors of slides that failed.
        finished: How many slides are complete.
    """

    def __init__(self, plan: ExtractionPlan, request: Request) -> None:
        self._open = deque(task for task in plan.tasks if task.state != "complete")
        self._request, self._headers = request, plan.headers
        self._locks: list[FileLock] = []
        self._unlocked = False
        self.failed: list[HistError] = []
        self.finished = len(plan.tasks) - len(self._open)

    @property
    def left(self) -> int:
        """How many slides are not claimed yet; those in other hands are among them."""
        return len(self._open)

    def take(self, wait: bool) -> Claim | None:
        """Claim the next slide.

        Args:
            wait: Whether to wait for slides that other processes work on, which may be left undone.

        Returns:
            The claim; None if nothing is left, or nothing that is free now.
        """
        for _ in range(len(self._open)):
            if claim := self._try(self._open.popleft(), timeout=0):
                return claim
        return self._wait() if wait else None

    def _wait(self) -> Claim | None:
        """Wait for slides that other processes work on, a while for each in turn, and not without end."""
        began, left, said = time.monotonic(), len(self._open), set[str]()
        while self._open:
            slide = self._open[0].files.id
            if slide not in said:
                said.add(slide)
                log.info(f"{slide}: another process is at it ({self._lock_file(self._open[0])}); waiting for it")
            if claim := self._try(self._open.popleft(), timeout=WAIT_STEP_S):
                return claim
            if len(self._open) < left:  # the other process is alive
                began, left = time.monotonic(), len(self._open)
            elif time.monotonic() - began > LONGEST_WAIT_S:
                self._give_up()
        return None

    def _give_up(self) -> None:
        """Fail the slides that other processes have not let go of."""
        for task in self._open:
            problem = f"another process has been at it for {duration(LONGEST_WAIT_S)}"
            self._record(
                SlideError(task.files.id, self._lock_file(task), problem, "end that process and run this again")
            )
        self._open.clear()

    @staticmethod
    def _lock_file(task: Task) -> Path:
        return task.path.parent / LOCKS / f"{task.path.stem}.lock"

    def _try(self, task: Task, timeout: float) -> Claim | None:
        slide = task.files.id
        path = self._lock_file(task)
        lock = FileLock(path, thread_local=False)  # the thread that writes releases it
        try:
            self._acquire(lock, path, timeout)
        except Timeout:
            self._open.append(task)
            return None
        try:
            current = plan_slide(self._request, slide, self._headers)  # another process may have done it by now
        except Exception as error:
            self.fail(slide_failure(slide, task.path, error), lock)
            return None
        if current.state == "complete":
            self.finish(lock)
            return None
        self._locks.append(lock)
        return Claim(current, lock)

    def _acquire(self, lock: FileLock, path: Path, timeout: float) -> None:
        """Acquire a lock; where the file system has none, go on without, because each writer has a file of its own."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=timeout)
        except Timeout:
            raise
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in NO_LOCKS:
                raise write_error(error, path.parent.parent) from error
            if not self._unlocked:
                log.warning(f"{path.parent}: no locks there ({error}); two commands at once may compute a slide twice")
            self._unlocked = True
            path.unlink(missing_ok=True)

    def finish(self, lock: FileLock) -> None:
        """Count a slide as complete and release it."""
        _release(lock)
        self.finished += 1

    def fail(self, error: HistError, lock: FileLock) -> None:
        """Record the error of a slide and release the slide."""
        _release(lock)
        self._record(error)

    def _record(self, error: HistError) -> None:
        self.failed.append(error)
        log.warning(str(error))

    def close(self) -> None:
        """Release what is still claimed, where not all could be done."""
        for lock in self._locks:
            _release(lock)


def _release(lock: FileLock) -> None:
    """Remove a lock's file and release it. Who waits for the removed one finds the slide complete, or failing again."""
    if lock.is_locked:
        with suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()
