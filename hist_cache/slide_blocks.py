"""The file of a slide, written and read some spots at a time, so that memory does not grow with the slide."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from hist_cache.cache_file import complete, new_file, open_complete
from hist_cache.cached_slide import CachedSlide, find_problem, not_finite
from hist_cache.errors import DamagedCacheError, HistError
from hist_cache.fingerprint import Fingerprint
from hist_cache.slide_file import as_stored, other_arrays, small_arrays, write_arrays

ROWS_IN_MEMORY = 4096  # of embeddings, that are in memory together

Block = tuple[NDArray[np.int64], Mapping[str, NDArray[np.float16]]]
"""Rows (k,) of a slide, and their embeddings (k, D) by the names of the arrays in the file."""


def write_slide_in_blocks(
    path: Path, slide: CachedSlide, fingerprint: Fingerprint, names: Sequence[str], width: int, blocks: Iterable[Block]
) -> None:
    """Write one complete cache file, as `write_slide` does, from embeddings that come block by block.

    Args:
        path: The file; there is never an incomplete file of this name.
        slide: The slide without embeddings.
        fingerprint: What it was made from.
        names: Names of the arrays of embeddings: `embeddings`, `niche/6`.
        width: D, of the embeddings.
        blocks: Each spot in one of them.

    Raises:
        HistError: The arrays do not fit together, or would not be read again.
        WriteError: The disk is full, or nothing can be written there for another reason.
    """
    n = len(slide)
    sound = (1 + np.arange(n) % 2)[:, None].astype(np.float16)  # embeddings are checked as they come
    slide = as_stored(replace(slide, embeddings=sound, niches=dict.fromkeys(slide.neighbors, sound)))
    if problem := find_problem(slide):
        raise HistError(f"{path}: cannot be written: {problem}")
    with new_file(path) as (file, check):
        digests = write_arrays(file, other_arrays(slide))
        datasets = {name: file.create_dataset(name, (n, width), np.float16) for name in names}
        _fill(path, datasets, blocks)
        check()
        digests |= {name: dataset_digest(dataset) for name, dataset in datasets.items()}
        complete(file, slide.attributes, fingerprint, digests)


def _fill(path: Path, datasets: Mapping[str, h5py.Dataset], blocks: Iterable[Block]) -> None:
    """Write blocks to their places; `HistError` for what `find_problem` would say of embeddings."""
    first: dict[str, NDArray[np.float16]] = {}
    same = dict.fromkeys(datasets, True)
    written = 0
    for rows, arrays in blocks:
        order = np.argsort(rows)
        for name, dataset in datasets.items():
            values = arrays[name]
            if bad := int(not_finite(values).any(axis=1).sum()):
                raise HistError(f"{path}: cannot be written: {name}: {bad:,} spots have NaN or infinite embeddings")
            first.setdefault(name, values[0])
            same[name] = same[name] and bool((values == first[name]).all())
            dataset[rows[order]] = values[order]
        written += len(rows)
    for name, dataset in datasets.items():
        if written != len(dataset):
            raise HistError(f"{path}: cannot be written: {name} of {written:,} of {len(dataset):,} spots")
        if same[name] and (len(dataset) > 1 or not first[name].any()):
            raise HistError(f"{path}: cannot be written: {name} are the same for all {len(dataset):,} spots")


def dataset_digest(dataset: h5py.Dataset) -> str:
    """The digest of an array of a file, as `array_digest` has it, without all of it in memory."""
    digest = hashlib.sha256(f"{dataset.dtype.str} {dataset.shape}".encode())
    for start in range(0, len(dataset), ROWS_IN_MEMORY):
        digest.update(np.ascontiguousarray(dataset[start : start + ROWS_IN_MEMORY]).data)
    return digest.hexdigest()


def read_slide_without_embeddings(path: Path, size: int) -> CachedSlide:
    """Read a slide as `read_slide` does, but for its embeddings, whose digests are compared all the same.

    Args:
        path: The cache file.
        size: Neighbourhood size.

    Raises:
        DamagedCacheError: An array is not what was written.
        HistError: The file cannot be opened, has another format or is another slide's.
    """
    with open_complete(path) as file:
        for name in ("embeddings", f"niche/{size}"):
            if dataset_digest(file.dataset(name)) != file.digests.get(name):
                raise DamagedCacheError(path, f"{name} has other values than when it was written")
        slide, width = small_arrays(file, [size]), file.dataset("embeddings").shape[1]
    no_counts = csr_matrix((len(slide), 0), dtype=np.int32)
    return replace(slide, embeddings=np.empty((0, width)), counts=no_counts, genes=[])


def read_embeddings(path: Path, names: Sequence[str], blocks: Iterable[tuple[int, int]]) -> Iterator[list[Any]]:
    """Read embeddings of some rows at a time.

    Args:
        path: The cache file, whose digests `read_slide_without_embeddings` has compared.
        names: Names of the arrays.
        blocks: First row, and the one after the last.

    Yields:
        For each block an array (k, D) float16 of each name.
    """
    with h5py.File(path, "r", locking=False) as file:
        for start, end in blocks:
            yield [file[name][start:end] for name in names]
