"""Slides without their large arrays, and these read from the cache file when they are needed.

Embeddings and counts of all slides are several times larger than the tensors that are made of them. So they are read
slide by slide, as often as another panel or other tensors are asked for, and never kept. Each reading compares digests
and checks values, as reading a whole slide does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix

from hist_cache.cache_file import CacheFile, open_complete
from hist_cache.cached_slide import COUNT_ARRAYS, CachedSlide, count_problems, find_problem
from hist_cache.errors import DamagedCacheError, InputError
from hist_cache.slide_file import check_sizes, checked_slide, counts_of, small_arrays, usable_counts

EMBEDDING_TYPES = (np.float16, np.float32, np.float64)  # in the byte order of this machine


def read_small_arrays(path: Path, sizes: Sequence[int]) -> CachedSlide:
    """Read a slide without embeddings, niches and counts.

    Args:
        path: The cache file.
        sizes: Neighbourhood sizes; the neighbours are read.

    Returns:
        The slide; `file` is the path, and embeddings and niches have no rows, but their width and type.

    Raises:
        InputError: The file has no niches of one of the sizes.
        DamagedCacheError: An array is not what was written, or has values that mean nothing.
        HistError: The file cannot be opened, has another format or is another slide's.
    """
    with open_complete(path) as file:
        check_sizes(file, sizes)
        niches = {size: _no_rows(file, f"niche/{size}") for size in sizes}
        slide = replace(small_arrays(file, sizes), embeddings=_no_rows(file, "embeddings"), niches=niches, file=path)
    if problem := find_problem(slide):
        raise DamagedCacheError(path, problem)
    return slide


def read_counts(slide: CachedSlide) -> csr_matrix:
    """The counts (N, G) of a slide, read from its file where it does not hold them.

    Raises:
        DamagedCacheError: They are not what was written, or have values that mean nothing.
        HistError: The file cannot be opened.
        InputError: Its counts are not those that it had.
    """
    if slide.file is None:
        return slide.counts
    with open_complete(slide.file) as file:
        _check_unchanged(slide, file, ("barcodes", "genes", *COUNT_ARRAYS))
        counts = counts_of(file, len(slide), len(slide.genes))
    if problem := next(count_problems(counts), None):
        raise DamagedCacheError(slide.file, problem)
    return usable_counts(counts)


def read_large_arrays(slide: CachedSlide, sizes: Sequence[int]) -> CachedSlide:
    """A slide with counts, embeddings, and niches of some sizes, read from its file where it does not hold them.

    Raises:
        DamagedCacheError: An array is not what was written, or has values that mean nothing.
        HistError: The file cannot be opened.
        InputError: Its arrays are not those that it had.
    """
    if slide.file is None:
        return slide
    niches = {size: f"niche/{size}" for size in sizes}
    with open_complete(slide.file) as file:
        _check_unchanged(slide, file, ("barcodes", "genes", *COUNT_ARRAYS, "embeddings", *niches.values()))
        whole = replace(
            slide,
            embeddings=file.array("embeddings"),
            niches={size: file.array(name) for size, name in niches.items()},
            neighbors={size: slide.neighbors[size] for size in sizes},
            counts=counts_of(file, len(slide), len(slide.genes)),
            file=None,
        )
    return checked_slide(slide.file, whole)


def _no_rows(file: CacheFile, name: str) -> np.ndarray:
    """An array of the width and the type of one in the file, without its rows."""
    dataset = file.dataset(name)
    if dataset.ndim != 2 or not dataset.shape[1]:
        raise DamagedCacheError(file.path, f"{name} has the shape {dataset.shape} where N x D is expected")
    if dataset.dtype not in EMBEDDING_TYPES:
        raise DamagedCacheError(file.path, f"{name} is of type {dataset.dtype.str}, which is not expected there")
    return np.empty((0, dataset.shape[1]), dtype=dataset.dtype)


def _check_unchanged(slide: CachedSlide, file: CacheFile, names: Iterable[str]) -> None:
    """`InputError`, which ends a command, where a file has other arrays than when the slide was read from it."""
    if any(file.digests.get(name) != slide.digests.get(name) for name in names):
        raise InputError(f"{file.path}: was written anew while this command was running; start it again")
