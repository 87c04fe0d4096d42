"""A slide's embeddings: which crops are missing, and what a slide's cache file holds once they are encoded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from extract.identity import crop_sides_um
from extract.pipeline import Pipeline
from extract.plan import Request, Task
from extract.scheduler import Finish, Loaded
from extract.slides.crops import SPOT, Crops, plan_crops
from extract.slides.readers import thumbnail
from hist_cache.cache import CachedSlide, read_slide, write_slide
from hist_cache.console import Meter, warn
from hist_cache.fingerprint import Fingerprint
from hist_cache.lattice import RINGS, find_lattice, ring_neighbors


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
