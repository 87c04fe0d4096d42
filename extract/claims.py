"""Which slides are left, and which this process works on; a lease for each slide divides them between processes."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

from extract.leftovers import remove_left_files
from extract.plan import ExtractionPlan, Request, Task, plan_slide
from hist_cache.console import duration
from hist_cache.errors import HistError, SlideError, slide_failure
from hist_cache.files import HOST
from hist_cache.leases import Lease, Leases, read_holder

log = logging.getLogger(__name__)

LOCKS = ".locks"  # subfolder of a cache folder
ROUND_S = 3.0  # between two rounds of tries, where all slides that are left are in other hands
MAX_ROUND_SHARE = 0.05  # of the time that such rounds may take, where there are very many
NAMED = 6  # slides that a message names
LONGEST_WAIT_S = 24 * 3600.0  # without any slide finished elsewhere; one takes hours on a slow CPU


@dataclass(frozen=True)
class Claim:
    """A slide that only this process works on."""

    task: Task
    lock: Lease


class Claims:
    """The slides that are still to be done; a lease for each slide divides them between processes.

    What dead processes have left of the folder's files is removed first. Use it in a `with` statement, which releases
    what is still claimed, and has a Ctrl-C say what is left.

    Args:
        plan: What is to be done.
        request: What the plan was made from.

    Attributes:
        failed: The errors of slides that failed.
        finished: How many slides are complete.
    """

    def __init__(self, plan: ExtractionPlan, request: Request) -> None:
        self._open = deque(task for task in plan.tasks if task.state != "complete")
        self._total = len(plan.tasks)
        self._request, self._headers = request, plan.headers
        self._leases = Leases(plan.headers.file.parent / LOCKS)
        self._next_round = 0.0
        self._stood: tuple[int, float] | None = None  # how many slides are in other hands, and since when so many
        self.failed: list[HistError] = []
        self.finished = self._total - len(self._open)
        place = array_place()
        self._turned = place > 0
        self._open.rotate(-int(place * len(self._open)))
        remove_left_files(plan.headers.file.parent, self._leases)

    @property
    def left(self) -> int:
        """How many slides are neither claimed here nor known to be done; if none is free, they are in other hands."""
        return len(self._open)

    def take(self, wait: bool) -> Claim | None:
        """Claim the next slide.

        Args:
            wait: Whether to wait for slides that other processes work on, which may be left undone, unless the request
                is not to wait.

        Returns:
            The claim; None if nothing is left, or nothing that is free now. While nothing is free, the slides are tried
            again every few seconds only, however often this is called.
        """
        while True:
            claim = self._round()
            if claim or not self._open or not (wait and self._request.wait):
                return claim
            time.sleep(max(0.0, min(self._next_round - time.monotonic(), 1.0)))

    def _round(self) -> Claim | None:
        """Try each slide once, unless that was done just now."""
        began = time.monotonic()
        if began < self._next_round:
            return None
        for _ in range(len(self._open)):
            if claim := self._try(self._open.popleft()):
                self._next_round = 0.0
                return claim
        now = time.monotonic()
        self._next_round = now + max(ROUND_S, (now - began) / MAX_ROUND_SHARE)
        if self._open:
            self._note_others(now)
        return None

    def _note_others(self, now: float) -> None:
        """Say who is at the slides that are left, once; give up where nothing moves for very long."""
        if self._stood is None and self._request.wait:
            log.info(f"others are at what is left: {self.in_other_hands()}")
        if self._stood is None or self._stood[0] != len(self._open):
            self._stood = len(self._open), now
        elif now - self._stood[1] > LONGEST_WAIT_S:
            self._give_up()

    def in_other_hands(self) -> str:
        """The slides that are left, and who is at them, for a message."""
        first = list(self._open)[:NAMED]
        names = [f"{task.files.id} ({self._holder(task)})" for task in first]
        return ", ".join(names) + (f" and {len(self._open) - NAMED} more" if len(self._open) > NAMED else "")

    def _holder(self, task: Task) -> str:
        return str(read_holder(self._leases.file(task.path.stem)) or "nobody any more")

    def _give_up(self) -> None:
        """Fail the slides that other processes have not let go of."""
        for task in self._open:
            problem = f"{self._holder(task)} has been at it for {duration(LONGEST_WAIT_S)}"
            lock = self._leases.file(task.path.stem)
            self._record(SlideError(task.files.id, lock, problem, "end that process and run this again"))
        self._open.clear()

    def _try(self, task: Task) -> Claim | None:
        current = self._planned(task) if task.path.exists() else task  # what another has done is seen without a lease
        if current is not None and current.state != "complete":
            lease = self._leases.take(task.path.stem)
            if lease is None:
                self._open.append(task)
                self._turn()
                return None
            current = self._planned(task)  # another may have done it by now
            if current is not None and current.state != "complete":
                return Claim(current, lease)
            self._leases.release(lease)
        self.finished += current is not None
        return None

    def _planned(self, task: Task) -> Task | None:
        """What a slide lacks now; None where it has failed."""
        try:
            return plan_slide(self._request, task.files.id, self._headers, task.files)
        except Exception as error:
            self._record(slide_failure(task.files.id, task.path, error))
            return None

    def _turn(self) -> None:
        """Go on elsewhere in the list, once, where another command is at its beginning: it goes on from there."""
        if not self._turned:
            self._turned = True
            self._open.rotate(-int(own_place() * len(self._open)))

    def finish(self, lock: Lease) -> None:
        """Count a slide as complete and release it."""
        with suppress(HistError):  # so that nobody needs to open the file to see what it holds
            self._headers.header(self._headers.file.with_name(f"{lock.name}.h5"))
        self._leases.release(lock)
        self.finished += 1
        self._headers.save()

    def fail(self, error: HistError, lock: Lease) -> None:
        """Record the error of a slide and release the slide."""
        self._leases.release(lock)
        self._record(error)

    def _record(self, error: HistError) -> None:
        self.failed.append(error)
        log.warning(str(error))

    def close(self) -> None:
        """Release what is still claimed, where not all could be done."""
        self._leases.close()

    def __enter__(self) -> Claims:
        """Begin."""
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        """Release what is still claimed; an interrupt says how many slides are left."""
        if isinstance(error, KeyboardInterrupt):
            left = self._total - self.finished - len(self.failed)
            error.args = (f"{left} of {self._total} slides are left",)
        elif error is None and self._open:
            log.info(f"not waited for, others are at {len(self._open)} slides: {self.in_other_hands()}")
        self.close()
        if isinstance(error, KeyboardInterrupt):
            remove_left_files(self._headers.file.parent, self._leases)  # of workers that had to be killed


def array_place() -> float:
    """Where an element of a Slurm array begins in a list: a share of it, 0 to below 1; 0 outside of an array.

    All elements start at the same time, each would try the slides of all before it.
    """
    try:
        number, first, step, count = (
            int(os.environ.get(f"SLURM_ARRAY_TASK_{name}", default))
            for name, default in (("ID", "0"), ("MIN", "0"), ("STEP", "1"), ("COUNT", "1"))
        )
        return (number - first) // max(step, 1) % count / count
    except (ValueError, ZeroDivisionError):
        return 0.0


def own_place() -> float:
    """Where this process begins in a list that others have begun: a share of it, 0 to below 1."""
    return int.from_bytes(hashlib.sha256(f"{HOST} {os.getpid()}".encode()).digest()[:4]) / 2**32
