"""A cache folder completed: planned, announced, then embeddings and tokens computed, here or by several workers."""

from __future__ import annotations

import logging
import time
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from extract.chosen_encoder import ChosenEncoder, EncoderPlace
from extract.claims import Claims
from extract.clock import Clock
from extract.embeddings import embed_slide
from extract.encoders.encoder import Encoder
from extract.loading import check_plan
from extract.pipeline import crops_per_second
from extract.plan import ExtractionPlan, Request, plan_extraction
from extract.scheduler import run_plan
from extract.tokens import TokenPlan, announce_tokens, compute_tokens, plan_tokens, with_embeddings
from extract.workers import ExtractionSetup, extract_with
from hist_cache.console import duration, progress, size
from hist_cache.disk_room import check_room
from hist_cache.errors import HistError
from hist_cache.executor import Executor
from hist_cache.files import write_error
from hist_cache.own_tables import own_tables

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Extraction:
    """A cache folder to be completed.

    Attributes:
        request: What is to be computed of each slide.
        slides: Their IDs.
        folder: The cache folder.
        chosen: The encoder by name, for other processes.
        encoder: The encoder.
        place: Where and how it runs.
        tokens_at: The block whose tokens are stored too; None for none.
    """

    request: Request
    slides: list[str]
    folder: Path
    chosen: ChosenEncoder
    encoder: Encoder
    place: EncoderPlace
    tokens_at: int | None

    def check(self) -> list[HistError]:
        """Open every slide, and log how long all would take; returns the errors of slides that would fail."""
        plan, tokens = self._plan()
        failed = plan.failed + check_plan(plan, self.request)
        with closing(replace(self.place, fast_only=False).start(self.encoder)) as pipeline:
            seconds = plan.crops / crops_per_second(pipeline)
            if tokens is not None:
                with tokens.pipeline(self.encoder, like=pipeline) as token_pipeline:
                    seconds += tokens.plan.crops / crops_per_second(token_pipeline)
        log.info(f"would take about {duration(seconds)} with one worker, going by a timed batch")
        return failed

    def run_here(self) -> list[HistError]:
        """Compute everything in this process; returns the errors of slides that failed."""
        plan, tokens = self._plan()
        with closing(self.place.start(self.encoder)) as pipeline:
            details = {"device": str(pipeline.device), **self._details}
            with progress("extract", plan.crops, "crops") as meter:
                failed = run_plan(plan, self.request, partial(embed_slide, self.request, pipeline, meter), details)
            log_throughput(pipeline.clock, pipeline.clock.seconds)
            if tokens is not None:
                with tokens.pipeline(self.encoder, like=pipeline) as token_pipeline:
                    failed += compute_tokens(tokens, token_pipeline, details)
                    log_throughput(token_pipeline.clock, token_pipeline.clock.seconds)
        return plan.failed + failed

    def run_with(self, executor: Executor) -> list[HistError]:
        """Compute everything with workers; returns the errors of slides that failed."""
        plan, tokens = self._plan()
        failed = plan.failed + self._extract(executor, plan, self.request)
        if tokens is not None:
            failed += tokens.plan.failed + self._extract(executor, with_embeddings(tokens.plan), tokens.request)
        return failed

    def _extract(self, executor: Executor, plan: ExtractionPlan, request: Request) -> list[HistError]:
        if all(task.state == "complete" for task in plan.tasks):
            Claims(plan, request).close()  # removes what dead processes have left
            return []
        try:
            self.folder.mkdir(parents=True, exist_ok=True)  # workers look whether it is there
        except OSError as error:
            raise write_error(error, self.folder) from error
        started = time.monotonic()
        setup = ExtractionSetup(self.chosen, self.place, request, self._details, self.folder, own_tables())
        failed, clock = extract_with(executor, plan, setup)
        log_throughput(clock, time.monotonic() - started)
        return failed

    @property
    def _details(self) -> dict[str, Any]:
        """What the provenance of each file states besides the device."""
        details = {"weights": self.encoder.source}
        if self.chosen.lora is not None:
            details["adapter"] = str(Path(self.chosen.lora).resolve())
        return details

    def _plan(self) -> tuple[ExtractionPlan, TokenPlan | None]:
        """Plan what is missing, and log it.

        Raises:
            HistError: There is not enough room on the disk.
        """
        plan = plan_extraction(self.request, self.slides, self.folder)
        for error in plan.failed:
            log.warning(str(error))
        self._describe(plan)
        needed = plan.crops * self.encoder.width * 2 + plan.largest_rewritten
        check_room(self.folder, needed, "embeddings", "make room, or give a --cache on a larger disk")
        if self.tokens_at is None:
            return plan, None
        slides = [task.files.id for task in plan.tasks]
        tokens = plan_tokens(self.request, self.encoder, self.tokens_at, slides, self.folder)
        announce_tokens(tokens)
        return plan, tokens

    def _describe(self, plan: ExtractionPlan) -> None:
        """Log one line that says what the cache has and what is to be computed."""
        states = {"complete": 0, "add": 0, "new": 0}
        for task in plan.tasks:
            states[task.state] += 1
        todo = f"{states['new']} to extract" + (f", {states['add']} to add niches to" if states["add"] else "")
        niches = ",".join(map(str, self.request.sizes))
        log.info(
            f"{self.folder}: {states['complete']} slides complete, {todo}, {len(plan.failed)} failed: "
            f"{plan.crops:,} crops (spots and niches {niches}), {size(plan.crops * self.encoder.width * 2)}"
        )


def log_throughput(clock: Clock, seconds: float) -> None:
    """Log how many crops were encoded, and how fast.

    Args:
        clock: Of the encoding, of all workers together.
        seconds: That it took.
    """
    if clock.crops:
        log.info(
            f"{clock.crops:,} crops in {duration(seconds)}: {clock.crops / seconds:,.1f} crops/s, "
            f"{clock.waiting_share:.0%} of the time waiting for pixels"
        )
