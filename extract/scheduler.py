"""Carrying out a plan slide by slide: load, compute, write; several processes may share the slides of one cache."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from extract.claims import Claim, Claims
from extract.identity import READER_RULES
from extract.loading import Loaded, load
from extract.plan import ExtractionPlan, Request, Task
from hist_cache.errors import HistError, WriteError, keeping, slide_failure
from hist_cache.fingerprint import Fingerprint, provenance
from hist_cache.stopping import STOP

Finish = Callable[[], None]  # the last step for a slide, which does not need the encoder: writing

# Computes what a task needs; `embed_slide`, or `stream_slide` for tokens, with all other arguments filled in.
Produce = Callable[[Task, Loaded, Fingerprint], Finish]


def run_plan(plan: ExtractionPlan, request: Request, produce: Produce, details: dict[str, Any]) -> list[HistError]:
    """Compute everything that is missing.

    While one slide is computed, the next one is loaded and the one before is written.

    Args:
        plan: What is to be done.
        request: What the plan was made from.
        produce: Computes what a task needs.
        details: What the provenance states besides: device, weights.

    Returns:
        The errors of slides that failed.

    Raises:
        WriteError: The disk is full, or nothing can be written there for another reason.
    """
    STOP.clear()
    writing: Future[None] | None = None
    with (
        Claims(plan, request) as claims,
        keeping(lambda: f"{claims.finished} of {len(plan.tasks)} slides"),
        ThreadPoolExecutor(1, "load") as loader,
        ThreadPoolExecutor(1, "write") as writer,
    ):

        def begin(wait: bool) -> tuple[Claim, Future[Loaded]] | None:
            claim = claims.take(wait)
            return None if claim is None else (claim, loader.submit(load, claim.task, request.slides))

        try:
            current = begin(wait=True)
            while current:
                following = begin(wait=False)
                claim, loaded = current
                try:
                    finish = compute_slide(claim.task, loaded.result(), request, produce, details)
                except WriteError:
                    raise
                except Exception as error:  # whatever is raised for one slide, the others go on
                    claims.fail(slide_failure(claim.task.files.id, claim.task.files.image, error), claim.lock)
                else:
                    if writing is not None:
                        writing.result()
                    writing = writer.submit(_finish, claims, claim, finish)
                current = following or begin(wait=True)
            if writing is not None:
                writing.result()
        except KeyboardInterrupt:
            STOP.set()  # a slide that is being loaded is wanted no more
            raise
    return claims.failed


def compute_slide(task: Task, loaded: Loaded, request: Request, produce: Produce, details: dict[str, Any]) -> Finish:
    """Compute what is missing of one slide, and close its image; the arguments are those of `run_plan`.

    Returns:
        What remains to be done for it: writing.
    """
    root = str(request.slides.root.resolve())
    source = provenance(stamps=loaded.stamps, reader_rules=READER_RULES, data_root=root, **details)
    try:
        return produce(task, loaded, Fingerprint(request.common, loaded.identity, source))
    finally:
        loaded.image.close()


def _finish(claims: Claims, claim: Claim, finish: Finish) -> None:
    try:
        finish()
    except WriteError:
        raise
    except Exception as error:
        claims.fail(slide_failure(claim.task.files.id, claim.task.path, error), claim.lock)
    else:
        claims.finish(claim.lock)
