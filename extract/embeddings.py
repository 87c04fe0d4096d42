"""The embeddings of a slide: which crops are missing, and what its cache file holds once they are encoded."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from extract.identity import crop_sides_um
from extract.loading import Loaded
from extract.pipeline import Pipeline
from extract.plan import Request, Task
from extract.scheduler import Finish
from extract.slides.crops import Crops, plan_crops
from extract.slides.image import make_thumbnail
from hist_cache.cached_slide import CachedSlide
from hist_cache.console import Meter
from hist_cache.errors import HistError
from hist_cache.fingerprint import Fingerprint, same_origin
from hist_cache.lattice import RINGS, find_lattice, ring_neighbors
from hist_cache.slide_file import read_header, read_slide, write_slide
from hist_cache.token_files import SPOT

log = logging.getLogger(__name__)


def embed_slide(
    request: Request, pipeline: Pipeline, meter: Meter, task: Task, loaded: Loaded, fingerprint: Fingerprint
) -> Finish:
    """Compute the embeddings of a slide.

    Args:
        request: What is to be computed.
        pipeline: Encodes the crops.
        meter: Shows progress.
        task: The slide, and what is missing of it.
        loaded: The slide in memory.
        fingerprint: What the file is made from.

    Returns:
        A function that writes the cache file. It refuses what could not be trained on, such as the same embedding for
        all spots (`write_slide`), and keeps niches that another command has added meanwhile.
    """
    return partial(write_all, task.path, embed(task, loaded, request, pipeline, meter), fingerprint)


def write_all(path: Path, slide: CachedSlide, fingerprint: Fingerprint) -> None:
    """Write a slide's file, with what another command has added to it since it was read.

    Where both write at the same moment, one of them is lost, and added again by the next run.
    """
    take_niches(slide, path, fingerprint)
    write_slide(path, slide, fingerprint)


def take_niches(slide: CachedSlide, path: Path, fingerprint: Fingerprint) -> None:
    """Take over the niches of a file that a slide lacks, if the file is there, sound and made from the same."""
    if not path.exists():
        return
    with suppress(HistError):  # one that is damaged, or another slide's, is replaced
        header = read_header(path)
        if not same_origin(header.fingerprint, fingerprint):
            return
        sizes = [size for size in header.sizes if size not in slide.niches]
        if not sizes:
            return
        other = read_slide(path, sizes)
        if other.barcodes == slide.barcodes:
            slide.niches |= other.niches
            slide.neighbors |= other.neighbors
            sides = {f"side_um/{size}" for size in sizes}
            slide.attributes |= {name: value for name, value in other.attributes.items() if name in sides}


def embed(task: Task, loaded: Loaded, request: Request, pipeline: Pipeline, meter: Meter) -> CachedSlide:
    """Return the contents of a slide's cache file: what it has already, and what was missing.

    The arguments are those of `embed_slide`.
    """
    files, spots = task.files, loaded.spots
    sides = crop_sides_um(files, task.missing, request.min_spot_um)
    crops = missing_crops(task, loaded, request)
    slide = read_slide(task.path) if task.state == "add" else new_slide(loaded)

    features = pipeline.embed(loaded.image, spots.coords, crops, progress_callback(pipeline, meter))
    pitch_px = files.pitch_um / files.um_per_px
    lattice = find_lattice(spots.coords, spots.array, pitch_px)
    if lattice.kind == "none":
        log.warning(
            f"{files.id}: spots follow no lattice; a niche is the nearest spots within {files.pitch_um:g} um a ring"
        )
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


def new_slide(loaded: Loaded) -> CachedSlide:
    """Return what a cache file holds of a slide before any crop is encoded: spots, counts and a thumbnail."""
    spots, picture = loaded.spots, make_thumbnail(loaded.image)
    return CachedSlide(
        barcodes=spots.barcodes,
        coords=spots.coords,
        array=spots.array,
        embeddings=np.empty(0),
        counts=spots.counts,
        genes=spots.genes,
        thumbnail=picture,
        attributes={"thumbnail_downsample": loaded.image.width / picture.shape[1]},
    )


def missing_crops(task: Task, loaded: Loaded, request: Request) -> list[Crops]:
    """Return the crops to encode: spots if the file is new, and niches of the sizes that it lacks."""
    sides = crop_sides_um(task.files, task.missing, request.min_spot_um)
    if task.state == "add":
        del sides[SPOT]
    return [plan_crops(name, loaded.spots.coords, side, task.files.um_per_px) for name, side in sides.items()]


def progress_callback(pipeline: Pipeline, meter: Meter) -> Callable[[int], None]:
    """Return a function that shows the number of encoded crops, and the share of time spent waiting for pixels."""
    return lambda n: meter.advance(n, f"{pipeline.clock.waiting_share:.0%} waiting for pixels")
