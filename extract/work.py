"""Doing the plan: load, embed and write slide after slide, alone or beside another process on the same cache."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from extract.crops import SPOT, Crops, plan_crops
from extract.images import Image, open_image, thumbnail
from extract.pipeline import Pipeline
from extract.plan import Plan, Request, Task, crop_sides_um, plan_slide, slide_identity
from hist_cache.cache import CachedSlide, read_fingerprint, read_slide, write_slide
from hist_cache.console import Meter, say, warn
from hist_cache.errors import HistError, SlideError
from hist_cache.fingerprint import Fingerprint, provenance
from hist_cache.lattice import RINGS, find_lattice, ring_neighbors
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


def embed_slide(
    request: Request, pipeline: Pipeline, meter: Meter, task: Task, loaded: Loaded, fingerprint: Fingerprint
) -> Finish:
    """Compute a slide's embeddings; what is returned writes them."""
    return partial(write_slide, task.path, embed(task, loaded, request, pipeline, meter), fingerprint)


def embed(task: Task, loaded: Loaded, request: Request, pipeline: Pipeline, meter: Meter) -> CachedSlide:
    """The slide's cache contents: what is there already, and what was missing."""
    files, spots = task.files, loaded.spots
    sides = crop_sides_um(files, task.missing, request.min_spot_um)
    crops = missing_crops(task, loaded, request)
    if task.state == "add":
        slide = read_slide(task.path)
    else:
        small = thumbnail(loaded.image)
        slide = CachedSlide(spots.barcodes, spots.coords, spots.array, np.empty(0), spots.counts, spots.genes, small)
        slide.attributes["thumbnail_downsample"] = loaded.image.width / small.shape[1]

    features = pipeline.embed(loaded.image, spots.coords, crops, shown(pipeline, meter))
    pitch_px = files.pitch_um / files.um_per_px
    lattice = find_lattice(spots.coords, spots.array, pitch_px)
    if lattice.kind == "none":
        warn(f"{files.id}: spots follow no lattice; a niche is the nearest spots within {files.pitch_um:g} um a ring")
    if SPOT in features:
        slide.embeddings = features.pop(SPOT)
    for name, niche in features.items():
        slide.niches[int(name)] = niche
        slide.neighbors[int(name)] = ring_neighbors(lattice, spots.coords, pitch_px, RINGS[int(name)])
    slide.attributes |= {"slide": files.id, "lattice": lattice.kind, "lattice_from": lattice.source}
    slide.attributes |= {"um_per_px": files.um_per_px, "pitch_um": files.pitch_um, "spot_um": files.spot_um}
    slide.attributes |= {f"side_um/{name}": side for name, side in sides.items()}
    if files.patient:
        slide.attributes["patient"] = files.patient
    return slide


def missing_crops(task: Task, loaded: Loaded, request: Request) -> list[Crops]:
    """The crops that are to be encoded: spots where the file is new, niches of the sizes that it lacks."""
    sides = crop_sides_um(task.files, task.missing, request.min_spot_um)
    if task.state == "add":
        del sides[SPOT]
    return [plan_crops(name, loaded.spots.coords, side, task.files.um_per_px) for name, side in sides.items()]


def shown(pipeline: Pipeline, meter: Meter) -> Callable[[int], None]:
    """Hears of crops that were encoded, and has the meter show them and the time spent waiting."""
    return lambda n: meter.advance(n, f"{pipeline.clock.waiting_share:.0%} waiting for pixels")


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
