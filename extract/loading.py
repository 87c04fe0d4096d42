"""A slide in memory: its spots, its open image, and the digests of its files."""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from extract.identity import slide_identity
from extract.plan import ExtractionPlan, Request, Task, earlier_header
from extract.slides.crops import read_central_tile
from extract.slides.image import Image
from extract.slides.readers import USUAL_READERS, open_image
from hist_cache.errors import HistError, SlideError, slide_failure
from hist_cache.sources import SlideSource
from hist_cache.spots import Spots

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """A slide in memory; its image is open, and read tile by tile."""

    spots: Spots
    image: Image
    identity: dict[str, Any]
    """The slide's own part of the fingerprint."""
    stamps: dict[str, Any]
    """Size and time of the slide's files."""


def open_slide(task: Task, slides: SlideSource) -> tuple[Spots, Image]:
    """Read a slide's spots and open its image.

    Args:
        task: The slide.
        slides: Where it comes from.

    Raises:
        SlideError: The slide cannot be used.
    """
    spots = slides.read(task.files)
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
        log.warning(
            f"{task.files.id}: {task.files.table}: {outside} of {len(spots)} spots lie outside the image; white there"
        )
    return spots, image


def load(task: Task, slides: SlideSource) -> Loaded:
    """Open a slide as `open_slide` does, and take the digests of its files."""
    spots, image = open_slide(task, slides)
    # New tokens can use the digests that were taken for the slide's embeddings.
    path = task.path if task.state == "add" else task.path.with_name(f"{task.files.id}.h5")
    earlier = earlier_header(path)
    return Loaded(spots, image, *slide_identity(task.files, image, earlier.fingerprint if earlier else None))


def check_plan(plan: ExtractionPlan, request: Request) -> list[HistError]:
    """Open every slide that `run_plan` would open, and decode a tile; returns the errors of those that fail."""
    failed: list[HistError] = []
    for task in plan.tasks:
        if task.state != "complete":
            try:
                spots, image = open_slide(task, request.slides)
                with closing(image):
                    read_central_tile(image, spots.coords)
                    if image.reader_name not in USUAL_READERS:
                        log.info(f"{task.files.id}: {task.files.image}: read by {image.reader_name}")
            except Exception as error:
                failed.append(slide_failure(task.files.id, task.files.table, error))
                log.warning(str(failed[-1]))
    return failed
