"""The file of one slide: its arrays written and read, each compared with its digest (docs/cache-format.md)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from hist_cache.cache_file import CacheFile, complete, new_file, open_complete
from hist_cache.cached_slide import COUNT_ARRAYS, CachedSlide, find_problem, zero_rows
from hist_cache.errors import DamagedCacheError, HistError, InputError
from hist_cache.fingerprint import Fingerprint, array_digest

log = logging.getLogger(__name__)

FORMAT_ATTRIBUTES = (
    "schema",
    "fingerprint",
    "digests",
    "complete",
    "sealed",
)  # attributes that do not describe the slide


def write_slide(path: Path, slide: CachedSlide, fingerprint: Fingerprint) -> None:
    """Write one complete cache file.

    Args:
        path: The file; there is never an incomplete file of this name.
        slide: The arrays to write.
        fingerprint: What the slide was made from.

    Raises:
        HistError: The arrays do not fit together, or would not be read again (see `find_problem`).
        WriteError: The disk is full, or nothing can be written there for another reason.
    """
    slide = as_stored(slide)
    if problem := find_problem(slide):
        raise HistError(f"{path}: cannot be written: {problem}")
    with new_file(path) as (file, _):
        arrays = embedding_arrays(slide) | other_arrays(slide)
        complete(file, slide.attributes, fingerprint, write_arrays(file, arrays))


def embedding_arrays(slide: CachedSlide) -> dict[str, NDArray[Any]]:
    """The arrays of a slide's file that an encoder has made, by name."""
    return {"embeddings": slide.embeddings} | {f"niche/{size}": niche for size, niche in sorted(slide.niches.items())}


def other_arrays(slide: CachedSlide) -> dict[str, NDArray[Any]]:
    """All further arrays of a slide's file, by name."""
    arrays: dict[str, NDArray[Any]] = {
        "barcodes": np.array(slide.barcodes, dtype=object),
        "coords": slide.coords,
        "array": slide.array,
        "counts/data": slide.counts.data,
        "counts/indices": slide.counts.indices,
        "counts/indptr": slide.counts.indptr.astype(np.int64),
        "genes": np.array(slide.genes, dtype=object),
        "thumbnail": slide.thumbnail,
    }
    return arrays | {f"neighbors/{size}": rows for size, rows in sorted(slide.neighbors.items())}


def write_arrays(file: h5py.File, arrays: dict[str, NDArray[Any]]) -> dict[str, str]:
    """Write arrays to a file that is open; returns the digest of each."""
    for name, array in arrays.items():
        if array.dtype == object:
            file.create_dataset(name, data=array, dtype=h5py.string_dtype("utf-8"))
        else:
            packed = array.size and name.startswith(("counts/", "thumbnail"))
            compression = {"compression": "gzip", "compression_opts": 1, "shuffle": True} if packed else {}
            file.create_dataset(name, data=array, **compression)
        if name.startswith("neighbors/"):
            file[name].attrs["K"] = array.shape[1]
    return {name: array_digest(array) for name, array in arrays.items()}


def as_stored(slide: CachedSlide) -> CachedSlide:
    """Return a slide with the types of the file; `HistError` where that would change counts."""
    with np.errstate(invalid="ignore"):
        counts = slide.counts.astype(np.int32)
    if (counts.data != slide.counts.data).any():
        raise HistError("counts are not whole numbers, or too large for 32 bits")
    return replace(
        slide,
        coords=slide.coords.astype(np.float64),
        array=slide.array.astype(np.int32),
        embeddings=slide.embeddings.astype(np.float16),
        counts=counts,
        niches={size: niche.astype(np.float16) for size, niche in slide.niches.items()},
        neighbors={size: rows.astype(np.int32) for size, rows in slide.neighbors.items()},
    )


@dataclass(frozen=True)
class CacheHeader:
    """What a file of a cache states besides its arrays, read at one opening.

    Attributes:
        fingerprint: What it was made from.
        sizes: Neighbourhood sizes, sorted.
        spots: Number of spots.
    """

    fingerprint: Fingerprint
    sizes: list[int]
    spots: int


def read_header(path: Path) -> CacheHeader:
    """Read what a file of a cache states besides its arrays."""
    with open_complete(path) as file:
        return CacheHeader(file.fingerprint, file.sizes, file.spots)


def read_fingerprint(path: Path) -> Fingerprint:
    """Read what a file of a cache was made from."""
    with open_complete(path) as file:
        return file.fingerprint


def read_slide(path: Path, sizes: list[int] | None = None) -> CachedSlide:
    """Read a slide from its cache file. Each array is compared with its digest, and checked for what it must mean.

    Args:
        path: The cache file.
        sizes: Neighbourhood sizes to read; None means all that the file has.

    Raises:
        InputError: The file has no niches of one of the sizes.
        DamagedCacheError: An array is not what was written, or has values that mean nothing.
        HistError: The file cannot be opened, has another format or is another slide's.
    """
    with open_complete(path) as file:
        check_sizes(file, sizes or [])
        sizes = file.sizes if sizes is None else sizes
        slide = small_arrays(file, sizes)
        slide = replace(
            slide,
            embeddings=file.array("embeddings"),
            niches={size: file.array(f"niche/{size}") for size in sizes},
            counts=counts_of(file, len(slide), len(slide.genes)),
        )
    return checked_slide(path, slide)


def check_sizes(file: CacheFile, sizes: Sequence[int]) -> None:
    """`InputError` for a neighbourhood size that a file has no niches of."""
    for size in sizes:
        if size not in file.sizes:
            raise InputError(f"{file.path}: no niches of {size} neighbours; run hist-extract --neighbors {size}")


def small_arrays(file: CacheFile, sizes: Sequence[int]) -> CachedSlide:
    """Read all of a slide but embeddings, niches and counts, of which it gets none; nothing is checked yet."""
    return CachedSlide(
        barcodes=file.texts("barcodes"),
        coords=file.array("coords"),
        array=file.array("array"),
        embeddings=np.empty((0, 0)),
        counts=csr_matrix((0, 0), dtype=np.int32),
        genes=file.texts("genes"),
        thumbnail=file.array("thumbnail"),
        neighbors={size: file.array(f"neighbors/{size}") for size in sizes},
        attributes={k: v for k, v in file.attributes.items() if k not in FORMAT_ATTRIBUTES},
        digests=file.digests,
        image=str(file.fingerprint.slide.get("image", "")),
    )


def counts_of(file: CacheFile, rows: int, columns: int) -> csr_matrix:
    """Read the counts of a file, whose arrays may not fit together: `count_problems` says whether they do."""
    counts = csr_matrix((rows, columns), dtype=np.int32)
    # Given to the constructor, arrays that do not fit would end in an error of SciPy.
    counts.data, counts.indices, counts.indptr = (file.array(name) for name in COUNT_ARRAYS)
    return counts


def checked_slide(path: Path, slide: CachedSlide) -> CachedSlide:
    """Return a slide that was read from a file, ready for use.

    Raises:
        DamagedCacheError: It has arrays that do not fit together, or values that mean nothing.
    """
    if problem := find_problem(slide):
        raise DamagedCacheError(path, problem)
    if zeros := zero_rows(slide):
        _warn_of_zeros(path, zeros)
    return replace(slide, counts=usable_counts(slide.counts))


@cache  # a process reads a file again for each key of its tensors, and says it once
def _warn_of_zeros(path: Path, zeros: str) -> None:
    log.warning(f"{path}: all zero: {zeros}")


def usable_counts(counts: csr_matrix) -> csr_matrix:
    """Return counts of `counts_of` as SciPy expects them: the constructor gives both kinds of indices the same type."""
    return csr_matrix((counts.data, counts.indices, counts.indptr), shape=counts.shape)
