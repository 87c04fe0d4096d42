"""The cache file of a slide without counts: its spots and niches encoded block by block."""

from __future__ import annotations

import logging
from collections.abc import Callable

from extract.embeddings import new_slide
from extract.identity import crop_sides_um
from extract.loading import Loaded
from extract.pipeline import Pipeline
from extract.plan import Request, Task
from extract.scheduler import Finish
from extract.spot_blocks import BlockFiles, embed_blocks, spot_blocks
from extract.virtual_slides import VirtualFiles, VirtualSlides
from hist_cache.fingerprint import Fingerprint
from hist_cache.lattice import RINGS, find_lattice, ring_neighbors
from hist_cache.slide_blocks import write_slide_in_blocks
from hist_cache.token_files import SPOT

log = logging.getLogger(__name__)


def embed_virtual_slide(
    request: Request,
    pipeline: Pipeline,
    advance: Callable[[float], None],
    ready: Callable[[str], None],
    task: Task,
    loaded: Loaded,
    fingerprint: Fingerprint,
) -> Finish:
    """Encode a slide, all but what an earlier command has left of it.

    Args:
        request: What is to be computed: one neighbourhood size.
        pipeline: Encodes the crops.
        advance: Called with the share of the slide that is done.
        ready: Called with the slide's name in the cache when its file is complete.
        task: The slide.
        loaded: The slide in memory, its image open.
        fingerprint: What the file is made from.

    Returns:
        A function that writes the cache file.
    """
    files, spots = task.files, loaded.spots
    assert isinstance(files, VirtualFiles)
    (neighbors,) = request.sizes
    sides = crop_sides_um(files, request.sizes, request.min_spot_um)
    blocks = BlockFiles(task.path, fingerprint, spot_blocks(spots.coords))
    total = len(spots) * len(sides)
    embed_blocks(pipeline, loaded.image, spots.coords, sides, files.um_per_px, blocks, lambda n: advance(n / total))

    slide = new_slide(loaded)
    pitch_px = files.lattice_pitch_um / files.um_per_px
    lattice = find_lattice(spots.coords, spots.array, pitch_px)
    slide.neighbors[neighbors] = ring_neighbors(lattice, spots.coords, pitch_px, RINGS[neighbors])
    slide.attributes |= {"slide": files.id, "lattice": lattice.kind, "lattice_from": lattice.source}
    slide.attributes |= {"um_per_px": files.um_per_px, "pitch_um": files.lattice_pitch_um, "spot_um": files.spot_um}
    source = request.slides
    assert isinstance(source, VirtualSlides)
    slide.attributes["um_per_px_from"] = source.pixel_sizes[files.id]
    if files.id in source.focus:
        slide.attributes["focus"] = source.focus[files.id]  # whoever does not take blurred slides will ask for it
    slide.attributes |= {f"side_um/{name}": side for name, side in sides.items()}
    names = {SPOT: "embeddings", str(neighbors): f"niche/{neighbors}"}

    def finish() -> None:
        named = ((rows, {names[crops]: values for crops, values in arrays.items()}) for rows, arrays in blocks.read())
        write_slide_in_blocks(task.path, slide, fingerprint, list(names.values()), pipeline.encoder.width, named)
        blocks.remove()
        ready(files.id)

    return finish
