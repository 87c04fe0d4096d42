"""From slides of a cache to tensors: read, checked, and joined by gene name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix

from hist_cache.cache import Cache
from hist_cache.cached_slide import CachedSlide
from hist_cache.errors import DamagedCacheError, InputError
from train.data import SpotData
from train.expression import NicheProfile, Transform, profiles
from train.parts import SlidePart
from train.rings import join_rings, slide_rings

FACTS = ("um_per_px", "spot_um", "thumbnail_downsample")  # what maps and predictions need to know of a slide


def read_slides(cache: Cache, sizes: Sequence[int]) -> dict[str, CachedSlide]:
    """Slides of a cache with niches of these neighbourhood sizes, by id.

    Raises:
        InputError: There is none.
        HistError: One of them is damaged, does not state its lengths, or has embeddings of another width than others.
    """
    slides = {s: cache.read(s, sorted(set(sizes))) for s in cache.slides}
    if not slides:
        raise InputError(f"{cache.folder}: no slides; run hist-extract")
    for name, slide in slides.items():
        if not slide.genes:
            raise InputError(f"{cache.path(name)}: has no counts, it was made by hist-predict; choose another dataset")
        if missing := [fact for fact in FACTS if fact not in slide.attributes]:
            raise DamagedCacheError(cache.path(name), f"does not state {', '.join(missing)}")
    check_widths(slides, cache)
    return slides


def check_widths(slides: dict[str, CachedSlide], cache: Cache, width: int | None = None) -> None:
    """`DamagedCacheError` for a slide whose embeddings have another width than `width`, or than the first slide's."""
    for name, slide in slides.items():
        own = slide.embeddings.shape[1]
        width = width or own
        if own != width:
            raise DamagedCacheError(cache.path(name), f"embeddings of {own} numbers, where other slides have {width}")


def assemble(
    slides: Mapping[str, CachedSlide | SlidePart],
    size: int,
    panel: Sequence[str],
    device: torch.device,
    transform: Transform = "log2",
    drop_edges: bool = False,
    niche_profile: NicheProfile = "log_of_mean",
    n_rings: int = 0,
) -> SpotData:
    """Join slides by gene name into tensors.

    Args:
        slides: By id, or parts of slides by their names. A part's niches and rings hold its own spots alone.
        size: Neighbourhood size of the niches.
        panel: Names of the genes.
        device: Of the tensors.
        transform: Of the counts.
        drop_edges: Leave out spots that lack a neighbour on the whole slide.
        niche_profile: Whether counts are averaged before the transform or after it.
        n_rings: Rings around each spot whose spots are listed in `SpotData.rings`.
    """
    parts = {name: s if isinstance(s, SlidePart) else SlidePart.all_of(name, s) for name, s in slides.items()}
    arrays: dict[str, list[np.ndarray]] = {}
    rings: list[list[np.ndarray]] = []
    first = 0
    for i, part in enumerate(parts.values()):
        slide = part.slide
        complete = np.all(slide.neighbors[size] >= 0, axis=1)
        chosen = complete[part.rows] if drop_edges else np.ones(len(part.rows), dtype=bool)
        kept = part.rows[chosen]
        own, around = profiles(part.counted(), part.neighbors(size), panel, transform, niche_profile)
        of_slide = {
            "spot": slide.embeddings[kept],
            "niche": slide.niches[size][kept],
            "expression": own[chosen],
            "niche_expression": around[chosen],
            "slide": np.full(len(kept), i),
            "row": kept,
            "complete": complete[kept],
            "total": np.asarray(slide.counts.sum(1), dtype=np.float32).ravel()[kept],
            "position": (slide.coords[kept] * float(slide.attributes["um_per_px"])).astype(np.float32),
        }
        for name, array in of_slide.items():
            arrays.setdefault(name, []).append(array)
        rings.append(slide_rings(slide, n_rings, kept, first))
        first += len(kept)
    tensors: dict[str, Any] = {
        name: torch.from_numpy(np.concatenate(of_slides)).to(device) for name, of_slides in arrays.items()
    }
    joined = tuple(torch.from_numpy(join_rings(of_ring)).to(device) for of_ring in zip(*rings, strict=True))
    wholes = [part.whole for part in parts.values()]
    more: dict[str, Any] = {} if wholes == list(slides) else {"whole_slides": wholes}
    return SpotData(**tensors, slides=list(slides), panel=list(panel), transform=transform, rings=joined, **more)


def without_arrays(slides: dict[str, CachedSlide]) -> dict[str, CachedSlide]:
    """Slides with what a run's tables and maps need, without embeddings and counts: small enough to send about."""
    none, nothing = np.empty((0, 0)), csr_matrix((0, 0))
    return {
        name: replace(slide, embeddings=none, counts=nothing, genes=[], niches={}, neighbors={})
        for name, slide in slides.items()
    }
