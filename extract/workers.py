"""Slides as tasks of several workers: the command claims slides, a worker loads, encodes and writes each."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from extract.chosen_encoder import ChosenEncoder, EncoderPlace
from extract.claims import Claim, Claims
from extract.clock import Clock
from extract.embeddings import embed_slide
from extract.identity import common_identity
from extract.loading import load
from extract.pipeline import Pipeline
from extract.plan import ExtractionPlan, Request, Task
from extract.scheduler import Produce, compute_slide
from extract.tokens import stream_slide
from hist_cache.console import Meter, progress
from hist_cache.devices import use_device
from hist_cache.engine import TRIES
from hist_cache.errors import HistError, SlideError, keeping, slide_failure
from hist_cache.executor import Events, Executor, Failure, Report, Worker
from hist_cache.files import HOST
from hist_cache.fingerprint import differences
from hist_cache.own_tables import OwnTables, set_own_tables

log = logging.getLogger(__name__)

SLIDE_STOP_S = 8.0  # a batch ends sooner; a slide that is being loaded is given up
SLIDES_AT_ONCE = 3  # slides that a worker has under way: one is loaded, one encoded, one written


@dataclass(frozen=True)
class ExtractionSetup:
    """What a worker is given."""

    encoder: ChosenEncoder
    place: EncoderPlace
    request: Request
    details: dict[str, Any]
    """What the provenance states besides: weights, adapter."""
    folder: Path
    """The cache folder, which is there."""
    own_tables: OwnTables
    """The user's own rows, an encoder's perhaps."""


@dataclass
class ExtractionContext:
    """What a worker has for all its slides."""

    setup: ExtractionSetup
    pipeline: Pipeline
    encoding: threading.Lock = field(default_factory=threading.Lock)
    """Held while a slide is encoded, one at a time, whatever is loaded and written meanwhile."""


def start_extraction(setup: ExtractionSetup) -> ExtractionContext:
    """Load the encoder onto the worker's device.

    Raises:
        HistError: This machine has not what it takes, or its encoder is another one.
    """
    set_own_tables(setup.own_tables)
    request = setup.request
    for folder, what in ((request.slides.root, "slides"), (setup.folder, "cache")):
        if not folder.is_dir():
            raise HistError(f"{folder}: no such folder here; all machines must see the {what} there")
    encoder = setup.encoder.load()
    common = common_identity(encoder, setup.place.precision, request.min_spot_um)
    if different := differences(request.common, common):
        raise HistError(f"the encoder here is another one: {'; '.join(different)}")
    return ExtractionContext(setup, setup.place.start(encoder, request.tokens_at))


@dataclass(frozen=True)
class SlideDone:
    """What a worker tells of a slide that is complete.

    Attributes:
        host: The worker's machine.
        clock: What encoding has cost.
    """

    host: str
    clock: Clock


def extract_slide(context: ExtractionContext, task: Task, report: Report) -> SlideDone:
    """Compute what is missing of a slide and write it.

    Numbers of encoded crops are reported as they come.
    """
    setup, pipeline = context.setup, context.pipeline
    use_device(pipeline.device)  # of this thread
    produce: Produce = partial(
        embed_slide if setup.request.tokens_at is None else stream_slide, setup.request, pipeline, _Reporter(report)
    )
    try:
        loaded = load(task, setup.request.slides)
        with context.encoding:
            pipeline.clock = Clock()
            details = {"device": str(pipeline.device), **setup.details}
            finish = compute_slide(task, loaded, setup.request, produce, details)
            clock = pipeline.clock
        finish()
    except PermissionError as error:
        raise slide_failure(task.files.id, task.files.image, error) from error
    return SlideDone(HOST, clock)


class _Reporter(Meter):
    """Reports the crops that are encoded, in place of showing them."""

    def __init__(self, report: Report) -> None:
        super().__init__("", 0, "crops")
        self._report = report

    def advance(self, n: float = 1, note: str | None = None) -> None:
        self._report(n)


class ClaimedSlides:
    """The slides of a plan, claimed as workers ask for them, and what has become of them.

    Args:
        claims: The slides that are left.
        wait: Whether slides that other commands work on are waited for.
        meter: Shows progress.

    Attributes:
        total: What encoding has cost all workers.
        by_host: The same by the names of their machines.
    """

    def __init__(self, claims: Claims, wait: bool, meter: Meter) -> None:
        self._claims, self._wait, self._meter = claims, wait, meter
        self._claimed: dict[str, Claim] = {}
        self.total = Clock()
        self.by_host: dict[str, Clock] = {}

    def __iter__(self) -> Iterator[Task | None]:
        """Yield tasks; None where those that are left are in other hands."""
        while True:
            claim = self._claims.take(wait=False)
            if claim is not None:
                self._claimed[claim.task.files.id] = claim
                yield claim.task
            elif self._wait and self._claims.left:
                yield None
            else:
                return

    def done(self, task: Task, done: SlideDone) -> None:
        """Note that a slide is complete."""
        claim = self._claimed.pop(task.files.id)
        if not task.path.exists():
            problem = f"{done.host} has written it where this machine does not see it"
            error = SlideError(task.files.id, task.path.absolute(), problem, "give a --cache that all machines see")
            self._claims.fail(error, claim.lock)
            return
        self._claims.finish(claim.lock)
        self.total.add(done.clock)
        self.by_host.setdefault(done.host, Clock()).add(done.clock)
        self._meter.advance(0, f"{self.total.waiting_share:.0%} waiting for pixels")

    def failed(self, failure: Failure[Task]) -> None:
        """Note that a slide has failed."""
        claim = self._claimed.pop(failure.task.files.id, None)
        if claim is not None:
            self._claims.fail(_slide_error(failure), claim.lock)


def extract_with(executor: Executor, plan: ExtractionPlan, setup: ExtractionSetup) -> tuple[list[HistError], Clock]:
    """Compute everything that is missing.

    Args:
        executor: Of the workers.
        plan: What is to be done.
        setup: What each worker is given.

    Returns:
        The errors of slides that failed, and what encoding has cost all workers.

    Raises:
        WriteError: The disk is full, or nothing can be written there for another reason.
    """
    started = time.monotonic()
    title = "extract" if setup.request.tokens_at is None else "tokens"
    with (
        Claims(plan, setup.request) as claims,
        keeping(lambda: f"{claims.finished} of {len(plan.tasks)} slides"),
        progress(title, plan.crops, "crops") as meter,
    ):
        slides = ClaimedSlides(claims, setup.request.wait, meter)
        worker = Worker(
            start_extraction, extract_slide, setup, at_once=SLIDES_AT_ONCE, tries=TRIES, stop_s=SLIDE_STOP_S
        )
        events: Events[Task, SlideDone] = Events(lambda task, n: meter.advance(n), slides.done, slides.failed)
        for failure in executor.run(slides, worker, events):
            slides.failed(failure)  # one that was not run
    if len(slides.by_host) > 1:
        log_hosts(slides.by_host, time.monotonic() - started)
    return claims.failed, slides.total


def log_hosts(by_host: dict[str, Clock], seconds: float) -> None:
    """Log how many crops each machine has encoded, and how fast.

    Args:
        by_host: What encoding has cost the workers of each, by its name.
        seconds: That all took together.
    """
    for host, clock in sorted(by_host.items()):
        log.info(f"  {host}: {clock.crops:,} crops, {clock.crops / seconds:,.1f} crops/s")


def _slide_error(failure: Failure[Task]) -> HistError:
    """The failure of a task as that of its slide, which it names."""
    files, error = failure.task.files, failure.error
    if failure.reason == "failed":
        return error
    named = HistError(f"{files.id}: {files.image}: {error}")
    named.__cause__ = error.__cause__
    return named
