"""Doing the plan: load, embed and write slide after slide, alone or beside another process on the same cache."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from filelock import FileLock, Timeout

from extract.identity import slide_identity
from extract.plan import Plan, Request, Task, plan_slide
from extract.slides.readers import Image, open_image
from hist_cache.cache import read_fingerprint
from hist_cache.console import say, warn
from hist_cache.errors import HistError, SlideError
from hist_cache.fingerprint import Fingerprint, provenance
from hist_cache.slides import Spots, read_spots

LOCKS = ".locks"
Finish = Callable[[], None]  # what is left to do for a slide when the encoder is done with it: writing


@dataclass(frozen=True)
class Loaded:
    """A slide in memory, but for its pixels."""

    spots: Spots
    image: Image
    identity: dict[str, Any]
    stamps: dict[str, Any]


# Computes what a task asks for; `embed_slide` or its like for tokens, with all but the slide filled in.
Produce = Callable[[Task, Loaded, Fingerprint], Finish]


def load(task: Task) -> Loaded:
    """Read spots, open the image, digest the files; raises `SlideError`."""
    spots = read_spots(task.files)
    image = open_image(task.files.id, task.files.image)
    x, y = spots.coords.T
    outside = int(((x < 0) | (y < 0) | (x >= image.width) | (y >= image.height)).sum())
    if outside > len(spots) / 2:
        image.close()
        raise SlideError(
            task.files.id,
            task.files.table,
            f"{outside} of {len(spots)} spots lie outside the image ({image.width} x {image.height} px)",
            "obsm['spatial'] must be (x, y) in level-0 pixels of this image",
        )
    if outside:
        warn(f"{task.files.id}: {task.files.table}: {outside} of {len(spots)} spots lie outside the image; white there")
    earlier = task.path if task.state == "add" else task.path.with_name(f"{task.files.id}.h5")
    known = read_fingerprint(earlier) if earlier.exists() else None  # of its embeddings, where tokens are new
    return Loaded(spots, image, *slide_identity(task.files, image, known))


@dataclass(frozen=True)
class Claim:
    """A slide that this process alone is at, being loaded."""

    task: Task
    lock: FileLock
    loaded: Future[Loaded]


class Claims:
    """Slides still to do. Other processes on the same cache take theirs from the same list, by a lock a slide."""

    def __init__(self, plan: Plan, request: Request, loader: ThreadPoolExecutor) -> None:
        self._open = deque(task for task in plan.tasks if task.state != "complete")
        self._request, self._loader = request, loader
        self.failed: list[HistError] = []

    def take(self, wait: bool) -> Claim | None:
        """The next slide; where all that is left is in other hands, None, or after their release if `wait`."""
        for _ in range(len(self._open)):
            if claim := self._try(self._open.popleft(), timeout=0):
                return claim
        while wait and self._open:
            say(f"{self._open[0].files.id}: another process is at it; waiting for it")
            if claim := self._try(self._open.popleft(), timeout=-1):
                return claim
        return None

    def _try(self, task: Task, timeout: float) -> Claim | None:
        slide, folder = task.files.id, task.path.parent
        (folder / LOCKS).mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCKS / f"{task.path.stem}.lock", thread_local=False)  # released by the writing thread
        try:
            lock.acquire(timeout=timeout)
        except Timeout:
            self._open.append(task)
            return None
        try:
            now = plan_slide(self._request, slide, folder)  # another process may have made it meanwhile
        except HistError as error:
            self.fail(error, lock)
            return None
        if now.state == "complete":
            lock.release()
            return None
        return Claim(now, lock, self._loader.submit(load, now))

    def fail(self, error: HistError, lock: FileLock) -> None:
        lock.release()
        self.failed.append(error)
        warn(str(error))


def do_plan(plan: Plan, request: Request, produce: Produce, made: dict[str, Any]) -> list[HistError]:
    """Compute all that is missing, the next slide being loaded and the last one written meanwhile; returns failures.

    `made`: how, for the provenance (device, weights).
    """
    writes: list[Future[None]] = []
    with ThreadPoolExecutor(1, "load") as loader, ThreadPoolExecutor(1, "write") as writer:
        claims = Claims(plan, request, loader)
        claim = claims.take(wait=True)
        while claim:
            following = claims.take(wait=False)
            try:
                loaded = claim.loaded.result()
                made_from = provenance(stamps=loaded.stamps, data_root=str(request.data_root.resolve()), **made)
                fingerprint = Fingerprint(request.common, loaded.identity, made_from)
                try:
                    finish = produce(claim.task, loaded, fingerprint)
                finally:
                    loaded.image.close()
            except HistError as error:
                claims.fail(error, claim.lock)
            else:
                writes.append(writer.submit(_finish, claim, finish))
            claim = following or claims.take(wait=True)
        for write in writes:
            write.result()
    return claims.failed


def _finish(claim: Claim, finish: Finish) -> None:
    try:
        finish()
    finally:
        claim.lock.release()
