"""From slides of a cache to tensors: read, checked, and joined by gene name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from hist_cache.cache import Cache
from hist_cache.cached_slide import CachedSlide
from hist_cache.errors import DamagedCacheError, InputError
from hist_cache.large_arrays import read_large_arrays, read_small_arrays
from hist_cache.threads import in_threads
from train.data import SpotData
from train.expression import NicheProfile, Transform, profiles
from train.parts import SlidePart
from train.rings import join_rings, slide_rings

FACTS = ("um_per_px", "spot_um", "thumbnail_downsample")  # what maps and predictions need to know of a slide


def read_slides(cache: Cache, sizes: Sequence[int]) -> dict[str, CachedSlide]:
    """Slides of a cache with neighbours of these neighbourhood sizes, by id, without embeddings and counts.

    Raises:
        InputError: There is none.
        HistError: One of them is damaged, does not state its lengths, or has embeddings of another width than others.
    """
    slides = {s: read_small_arrays(cache.path(s), sorted(set(sizes))) for s in cache.slides}
    if not slides:
        raise InputError(f"{cache.folder}: no slides; run hist-extract")
    lists: dict[str, list[str]] = {}  # of genes, which many slides have alike
    for name, slide in slides.items():
        slide.genes = lists.setdefault(slide.digests["genes"], slide.genes)
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

    Raises:
        DamagedCacheError: An array that is read from a file is not what was written.
        HistError: A file cannot be read.
        InputError: A file was written anew.
    """
    parts = [s if isinstance(s, SlidePart) else SlidePart.all_of(name, s) for name, s in slides.items()]
    spots = [part.rows[_complete(part, size)] if drop_edges else part.rows for part in parts]
    ends = np.cumsum([len(rows) for rows in spots])
    tensors = _empty_tensors(parts, size, int(ends[-1]), len(panel), device)

    def fill(numbers: Sequence[int]) -> None:
        """Put the parts of one slide into their places; the slide is read once, and dropped."""
        slide = read_large_arrays(parts[numbers[0]].slide, [size])
        for i in numbers:
            arrays = _arrays(replace(parts[i], slide=slide), size, spots[i], panel, transform, niche_profile)
            arrays["slide"] = np.full(len(spots[i]), i)
            for name, array in arrays.items():
                tensors[name][ends[i] - len(spots[i]) : ends[i]] = torch.from_numpy(array)

    of_slides = [list(numbers) for _, numbers in groupby(range(len(parts)), lambda i: parts[i].whole)]
    for _ in in_threads(fill, of_slides):
        pass
    rings = [
        slide_rings(part.slide, n_rings, rows, int(end) - len(rows))
        for part, rows, end in zip(parts, spots, ends, strict=True)
    ]
    joined = tuple(torch.from_numpy(join_rings(of_ring)).to(device) for of_ring in zip(*rings, strict=True))
    wholes = [part.whole for part in parts]
    more: dict[str, Any] = dict(tensors) if wholes == list(slides) else {**tensors, "whole_slides": wholes}
    return SpotData(slides=list(slides), panel=list(panel), transform=transform, rings=joined, **more)


def _complete(part: SlidePart, size: int) -> np.ndarray:
    """Whether each spot of a part has all its neighbours on the whole slide."""
    complete: np.ndarray = np.all(part.slide.neighbors[size][part.rows] >= 0, axis=1)
    return complete


def _empty_tensors(
    parts: Sequence[SlidePart], size: int, n_spots: int, n_genes: int, device: torch.device
) -> dict[str, Tensor]:
    """Tensors of `SpotData` by name, for all spots of all parts; they have no values yet."""
    spot, niche = ([p.slide.embeddings for p in parts], [p.slide.niches[size] for p in parts])
    width = spot[0].shape[1]
    kinds: dict[str, tuple[Any, tuple[int, ...]]] = {
        "spot": (np.result_type(*spot), (width,)),
        "niche": (np.result_type(*niche), (width,)),
        "expression": (np.float32, (n_genes,)),
        "niche_expression": (np.float32, (n_genes,)),
        "slide": (np.int64, ()),
        "row": (np.int64, ()),
        "complete": (np.bool_, ()),
        "total": (np.float32, ()),
        "position": (np.float32, (2,)),
    }
    return {
        name: torch.empty((n_spots, *shape), dtype=torch.from_numpy(np.empty(0, kind)).dtype, device=device)
        for name, (kind, shape) in kinds.items()
    }


def _arrays(
    part: SlidePart,
    size: int,
    rows: np.ndarray,
    panel: Sequence[str],
    transform: Transform,
    niche_profile: NicheProfile,
) -> dict[str, np.ndarray]:
    """What tensors hold of the spots in `rows` of a part's slide."""
    slide, kept = part.slide, np.isin(part.rows, rows)
    own, around = profiles(part.counts(), slide.genes, part.neighbors(size), panel, transform, niche_profile)
    return {
        "spot": slide.embeddings[rows],
        "niche": slide.niches[size][rows],
        "expression": own[kept],
        "niche_expression": around[kept],
        "row": rows,
        "complete": _complete(part, size)[kept],
        "total": np.asarray(slide.counts.sum(1), dtype=np.float32).ravel()[rows],
        "position": (slide.coords[rows] * float(slide.attributes["um_per_px"])).astype(np.float32),
    }


def without_arrays(slides: Mapping[str, CachedSlide]) -> dict[str, CachedSlide]:
    """Slides with what a run's tables and maps need, without all else: small enough to send about."""
    none, nothing = np.empty((0, 0)), csr_matrix((0, 0))
    return {
        name: replace(slide, embeddings=none, counts=nothing, genes=[], niches={}, neighbors={}, file=None)
        for name, slide in slides.items()
    }
