"""The cache of an adapter beside that of its plain encoder, made the same way from the same slides."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch

from extract.embeddings import embed_slide
from extract.encoders.adapters import adapter_digest, merge_adapter, read_adapter_slides
from extract.encoders.encoder import Encoder
from extract.loading import check_plan
from extract.pipeline import start_pipeline
from extract.plan import Request, earlier_header, plan_extraction
from extract.scheduler import run_plan
from hist_cache.cache import Cache
from hist_cache.console import progress
from hist_cache.errors import HistError, StaleCacheError
from hist_cache.fingerprint import CropRule, differences, identity_hash
from hist_cache.slide_file import read_fingerprint
from hist_cache.sources import HestFolder

log = logging.getLogger(__name__)


def adapted_common(plain: Cache, adapter: Path) -> dict[str, Any]:
    """Return the common part of the fingerprints of an adapter's cache, beside that of its plain encoder."""
    common = plain.fingerprint().common | {"lora": adapter_digest(adapter)}
    slides = read_adapter_slides(adapter)
    return common if slides is None else common | {"adapter": slides.as_dict()}


def adapted_cache(plain: Cache, adapter: Path) -> Cache:
    """Return the cache of an adapter's embeddings, which may lack slides or be empty.

    Args:
        plain: The cache of the encoder without an adapter.
        adapter: The adapter's folder.
    """
    encoder = plain.folder.name.rsplit("-", 1)[0]
    return Cache(plain.folder.with_name(f"{encoder}-{identity_hash(adapted_common(plain, adapter))}"))


def slides_to_embed(cache: Cache, slides: Sequence[str], sizes: Sequence[int]) -> list[str]:
    """List the slides that a cache lacks, or has damaged, or without niches of one of the sizes."""
    headers = {slide: earlier_header(cache.path(slide)) for slide in slides}
    return [slide for slide, header in headers.items() if header is None or not set(sizes) <= set(header.sizes)]


def check_slides_to_embed(
    plain: Cache, adapter: Path, slides: Sequence[str], sizes: Sequence[int], root: Path
) -> list[HistError]:
    """Open the slides that `complete_adapted` would open.

    Args:
        plain: The cache of the encoder without an adapter.
        adapter: The adapter's folder.
        slides: IDs of the slides that are needed, all of the plain cache.
        sizes: Neighbourhood sizes of the niches.
        root: Folder of the slides.

    Returns:
        The errors of slides that cannot be used.
    """
    cache = adapted_cache(plain, adapter)
    request = _request(plain, adapter, sizes, root)
    plan = plan_extraction(request, slides_to_embed(cache, slides, sizes), cache.folder)
    return plan.failed + check_plan(plan, request)


def complete_adapted(
    plain: Cache,
    adapter: Path,
    slides: Sequence[str],
    sizes: Sequence[int],
    load: Callable[[], Encoder],
    find_slides: Callable[[Cache], Path],
    device: torch.device,
) -> Cache:
    """Make what the cache of an adapter lacks.

    Args:
        plain: The cache of the encoder without an adapter.
        adapter: The adapter's folder.
        slides: IDs of the slides that are needed, all of the plain cache.
        sizes: Neighbourhood sizes of the niches.
        load: Loads the encoder; called only where something is missing.
        find_slides: Returns the folder of the slides of a cache; called only then.
        device: Where the encoder runs.

    Returns:
        The adapter's cache.

    Raises:
        HistError: A slide failed.
        StaleCacheError: A slide has changed since the plain cache was made.
    """
    cache = adapted_cache(plain, adapter)
    if missing := slides_to_embed(cache, slides, sizes):
        _extract(plain, cache, adapter, missing, sizes, load(), find_slides(plain), device)
    for slide in slides:
        identities = [read_fingerprint(c.path(slide)).slide for c in (plain, cache)]
        if different := differences(*identities):
            raise StaleCacheError(
                f"{cache.path(slide)}: made from another slide than {plain.path(slide)}: {'; '.join(different)}; "
                "delete both and extract again"
            )
    return cache


def _request(plain: Cache, adapter: Path, sizes: Sequence[int], root: Path) -> Request:
    """Return what is to be computed. Any scale is accepted, as it was for the plain cache."""
    common = adapted_common(plain, adapter)
    return Request(HestFolder(root, any_scale=True), tuple(sizes), CropRule.from_identity(common).min_spot_um, common)


def _extract(
    plain: Cache,
    cache: Cache,
    adapter: Path,
    slides: Sequence[str],
    sizes: Sequence[int],
    encoder: Encoder,
    root: Path,
    device: torch.device,
) -> None:
    request = _request(plain, adapter, sizes, root)
    merged = merge_adapter(encoder, adapter)
    plan = plan_extraction(request, list(slides), cache.folder)
    if plan.failed:
        raise plan.failed[0]
    log.info(f"{cache.folder}: {len(slides)} slides to embed with the adapter {adapter}, {plan.crops:,} crops")
    with (
        closing(start_pipeline(merged, request.common["precision"], device)) as pipeline,
        progress("extract", plan.crops, "crops") as meter,
    ):
        details = {"device": str(pipeline.device), "weights": encoder.source, "adapter": str(adapter.resolve())}
        failed = run_plan(plan, request, partial(embed_slide, request, pipeline, meter), details)
    if failed:
        raise failed[0]
