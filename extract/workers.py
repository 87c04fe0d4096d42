"""Slides as tasks of several workers: the command claims slides, a worker loads, encodes and writes each."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
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
from hist_cache.errors import HistError, keeping, slide_failure
from hist_cache.executor import Events, Executor, Failure, Report, Worker
from hist_cache.files import HOST
from hist_cache.fingerprint import differences

log = logging.getLogger(__name__)

SLIDES_AT_ONCE = 3  # slides that a worker has under way: one is loaded, one encoded, one written


@dataclass(frozen=True)
class ExtractionSetup:
    """What a worker is given."""

    encoder: ChosenEncoder
    place: EncoderPlace
    request: Request
    details: dict[str, Any]
    """What the provenance states besides: weights, adapter."""


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
    request = setup.request
    if not request.slides.root.is_dir():
        raise HistError(f"{request.slides.root}: no such folder here; all machines must see the slides there")
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
    total, by_host, claimed = Clock(), dict[str, Clock](), dict[str, Claim]()
    started = time.monotonic()
    title = "extract" if setup.request.tokens_at is None else "tokens"
    with (
        Claims(plan, setup.request) as claims,
        keeping(lambda: f"{claims.finished} of {len(plan.tasks)} slides"),
        progress(title, plan.crops, "crops") as meter,
    ):

        def tasks() -> Iterator[Task | None]:
            while True:
                claim = claims.take(wait=False)
                if claim is not None:
                    claimed[claim.task.files.id] = claim
                    yield claim.task
                elif setup.request.wait and claims.left:
                    yield None
                else:
                    return

        def on_result(task: Task, done: SlideDone) -> None:
            claims.finish(claimed.pop(task.files.id).lock)
            total.add(done.clock)
            by_host.setdefault(done.host, Clock()).add(done.clock)
            meter.advance(0, f"{total.waiting_share:.0%} waiting for pixels")

        worker = Worker(start_extraction, extract_slide, setup, at_once=SLIDES_AT_ONCE, tries=TRIES)
        events: Events[Task, SlideDone] = Events(lambda task, n: meter.advance(n), on_result)
        for failure in executor.run(tasks(), worker, events):
            claim = claimed.pop(failure.task.files.id, None)
            if claim is not None:
                claims.fail(_slide_error(failure), claim.lock)
    if len(by_host) > 1:
        log_hosts(by_host, time.monotonic() - started)
    return claims.failed, total


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
