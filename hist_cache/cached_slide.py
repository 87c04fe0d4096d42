"""A slide as the cache holds it, and what must be true of its arrays, whoever wrote them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from hist_cache.fingerprint import array_digest

EXPONENT = np.uint16(0x7C00)  # the bits of a float16 that are all set in NaN and infinity
LENGTHS = ("um_per_px", "pitch_um", "spot_um", "thumbnail_downsample")  # attributes that are divided by

COUNT_ARRAYS = ("counts/data", "counts/indices", "counts/indptr")  # those in a cache file that hold the counts
NO_COUNTS = tuple(array_digest(np.empty(0, kind)) for kind in (np.int32, np.int64, np.float32, np.float64))
"""Digests of counts/data where no spot has a count: ours, and those of files of other programs."""


@dataclass
class CachedSlide:
    """The arrays of one slide, with N spots in the order of its h5ad file.

    Attributes:
        barcodes: (N,) barcodes.
        coords: (N, 2) spot centres in level-0 px, x then y.
        array: (N, 2) array row and array column; -1 where they are not known.
        embeddings: (N, D) embeddings of the spot crops, float16 in the file.
        counts: (N, G) raw counts.
        genes: (G,) gene symbols.
        thumbnail: (h, w, 3) RGB image of the whole slide; attributes["thumbnail_downsample"] is the number of level-0
            px per px of the thumbnail.
        niches: Neighbourhood size -> (N, D) embeddings of the niche crops, float16 in the file.
        neighbors: Neighbourhood size -> (N, K) rows of the neighbours, -1 where there is none.
        attributes: Facts about the slide: lattice, um_per_px, side lengths of the crops, patient and others.
        digests: Name of an array in the file -> SHA-256 of it; empty for a slide that is not read from a file.
        image: SHA-256 of the slide's image; empty where it is not known.
        file: The cache file of a slide without its large arrays, which are read from there when they are needed
            (`hist_cache.large_arrays`): its embeddings and niches have no rows, and its counts neither rows nor
            columns. None where the slide holds its arrays.
    """

    barcodes: list[str]
    coords: NDArray[np.float64]
    array: NDArray[np.int32]
    embeddings: NDArray[np.floating[Any]]
    counts: csr_matrix
    genes: list[str]
    thumbnail: NDArray[np.uint8]
    niches: dict[int, NDArray[np.floating[Any]]] = field(default_factory=dict)
    neighbors: dict[int, NDArray[np.int32]] = field(default_factory=dict)
    attributes: dict[str, str | float | int] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    image: str = ""
    file: Path | None = None

    def __len__(self) -> int:
        return len(self.barcodes)

    def __repr__(self) -> str:
        name, niches = self.attributes.get("slide", "CachedSlide"), ", ".join(map(str, sorted(self.niches)))
        width = self.embeddings.shape[-1] if self.embeddings.ndim else 0
        what = f"embeddings of {width}, niches of {niches or 'no size'}, {len(self.genes):,} genes"
        return f"{name}: {len(self):,} spots, {what}"


def find_problem(slide: CachedSlide) -> str | None:
    """Return what is wrong with a slide: arrays that do not fit together, or values that cannot be what they should.

    The checks are those of what is read, so they expect the types of the file.
    """
    return next(_problems(slide), None)


def count_digests(slide: CachedSlide) -> list[str]:
    """Return the digests of a slide's counts, the same for the same counts; [] where they are unknown or all zero."""
    digests = [slide.digests.get(name, "") for name in COUNT_ARRAYS]
    return [] if digests[0] in ("", *NO_COUNTS) else digests


def zero_rows(slide: CachedSlide) -> str:
    """Return which embeddings are zero for some of the spots, as a text; empty where there are none."""
    zeros = {name: int((~values[values[:, 0] == 0].any(axis=1)).sum()) for name, values in _embeddings(slide)}
    return ", ".join(f"{name} of {count:,} of {len(slide):,} spots" for name, count in zeros.items() if count)


def _embeddings(slide: CachedSlide) -> Iterator[tuple[str, NDArray[Any]]]:
    if slide.file is not None:
        return
    yield "embeddings", slide.embeddings
    for size, values in slide.niches.items():
        yield f"niche/{size}", values


def _problems(slide: CachedSlide) -> Iterator[str]:
    """Find what is wrong, in an order in which each check may rely on those before it."""
    yield from _shape_problems(slide)
    yield from _value_problems(slide)
    yield from count_problems(slide.counts)
    for size, rows in slide.neighbors.items():
        yield from _neighbor_problems(f"neighbors/{size}", rows)
    for name in LENGTHS:
        length = slide.attributes.get(name, 1.0)
        if not isinstance(length, (int, float, np.number)) or not 0 < length < math.inf:
            yield f"{name} is {length!r}, not a positive length"


def _shape_problems(slide: CachedSlide) -> Iterator[str]:
    n, width = len(slide), slide.embeddings.shape[-1] if slide.embeddings.ndim else 0
    if not n:
        yield "it has no spots"
    expected: list[tuple[str, NDArray[Any], str, tuple[int | None, ...]]] = [
        ("coords", slide.coords, "f", (n, 2)),
        ("array", slide.array, "i", (n, 2)),
        ("thumbnail", slide.thumbnail, "u", (None, None, 3)),
        *((name, values, "f", (n, width)) for name, values in _embeddings(slide)),
        *((f"neighbors/{size}", rows, "i", (n, None)) for size, rows in slide.neighbors.items()),
    ]
    for name, values, kind, shape in expected:
        fits = values.ndim == len(shape) and all(s in (None, v) for s, v in zip(shape, values.shape, strict=True))
        if not fits or not values.size:
            wanted = " x ".join("any" if s is None else str(s) for s in shape)
            yield f"{name} has the shape {values.shape} where {wanted} is expected"
        if values.dtype.kind != kind or not values.dtype.isnative:
            yield f"{name} is of type {values.dtype.str}, which is not expected there"
    if slide.neighbors.keys() != slide.niches.keys():
        yield f"it has niches of {sorted(slide.niches)} and neighbours of {sorted(slide.neighbors)}"
    columns = len(slide.genes) if slide.file is not None else slide.counts.shape[1]
    for name, names, count in (("barcodes", slide.barcodes, n), ("genes", slide.genes, columns)):
        if len(set(names)) < count:
            yield f"{name}: {count - len(set(names)):,} of {count:,} are repeats or missing"


def _value_problems(slide: CachedSlide) -> Iterator[str]:
    if not np.isfinite(slide.coords).all():
        yield "coords: some are not finite"
    for name, values in _embeddings(slide):
        if bad := int(not_finite(values).any(axis=1).sum()):
            yield f"{name}: {bad:,} of {len(values):,} spots have NaN or infinite embeddings"
        # The last row is looked at first, because it settles almost all cases.
        same = bool((values[-1] == values[0]).all() and (values == values[0]).all())
        if same and not values[0].any():
            yield f"{name} are all zero"
        if same and len(values) > 1:
            yield f"{name} are the same for all {len(values):,} spots"


def not_finite(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Test which values are NaN or infinite, in float16 by their bits, which takes a thirtieth of the time."""
    odd: NDArray[np.bool_]
    if values.dtype == np.float16:
        odd = (values.view(np.uint16) & EXPONENT) == EXPONENT
    else:
        odd = ~np.isfinite(values)
    return odd


def count_problems(counts: csr_matrix) -> Iterator[str]:
    """Find what is wrong with a table of counts, whose arrays need not fit together."""
    rows, columns = counts.shape
    starts, indices, values = counts.indptr, counts.indices, counts.data
    if len(starts) != rows + 1 or starts[0] != 0 or (np.diff(starts) < 0).any():
        yield "counts/indptr does not say where rows start"
    elif not starts[-1] == len(indices) == len(values):
        yield f"counts: {starts[-1]:,} values are announced, {len(values):,} and {len(indices):,} indices are there"
    elif len(indices) and not 0 <= indices.min() <= indices.max() < columns:
        yield f"counts/indices go from {indices.min()} to {indices.max()}, with {columns} genes"
    if values.dtype.kind not in "iuf" or not np.isfinite(values).all():
        yield "counts/data: some are NaN, infinite or no numbers"
    elif (values < 0).any():
        yield f"counts/data: {int((values < 0).sum()):,} are negative"
    elif values.dtype.kind == "f" and (values != np.round(values)).any():
        yield f"counts/data: {int((values != np.round(values)).sum()):,} are not whole numbers"
    if _repeats(starts, indices, columns):
        yield "counts/indices name a gene twice for the same spot"


def _repeats(starts: NDArray[Any], indices: NDArray[Any], columns: int) -> bool:
    """Test whether a row of a sparse table has the same column twice."""
    same_row = np.ones(max(len(indices) - 1, 0), dtype=bool)
    ends = starts[1:-1]
    same_row[ends[(ends > 0) & (ends < len(indices))] - 1] = False
    if not (same_row & (indices[1:] <= indices[:-1])).any():
        return False  # in order, which is how hist-extract writes them
    row = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    return len(np.unique(row * columns + indices)) < len(indices)


def _neighbor_problems(name: str, rows: NDArray[Any]) -> Iterator[str]:
    n = len(rows)
    if not -1 <= rows.min() <= rows.max() < n:
        yield f"{name} go from row {rows.min()} to {rows.max()}, with {n} spots"
    if (rows == np.arange(n)[:, None]).any():
        yield f"{name}: a spot is its own neighbour"
    in_order = np.sort(rows, axis=1)
    if ((np.diff(in_order, axis=1) == 0) & (in_order[:, 1:] >= 0)).any():
        yield f"{name}: a spot has the same neighbour twice"
