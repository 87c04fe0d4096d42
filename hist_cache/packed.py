"""Packed arrays, unpacked here instead of by HDF5, which lets one thread of a process in at a time."""

from __future__ import annotations

import zlib
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

FILTERS = [h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE]  # in the order in which they were applied


def is_packed(dataset: h5py.Dataset) -> bool:
    """Test whether an array is what `unpack` reads: whole numbers in a row, shuffled and compressed by gzip."""
    numbers = dataset.ndim == 1 and dataset.dtype.kind in "iu" and dataset.dtype.str[0] in "<|"
    made = dataset.id.get_create_plist()
    filters = [made.get_filter(i)[0] for i in range(made.get_nfilters())]
    return bool(numbers and filters == FILTERS and len(dataset))


def unpack(dataset: h5py.Dataset) -> NDArray[Any]:
    """Read an array for which `is_packed` is true; other threads may unpack at the same time.

    Raises:
        OSError: The disk does not answer, or a chunk is missing or not what was written.
        RuntimeError: HDF5 cannot find a chunk.
    """
    in_chunk, kind = dataset.chunks[0], dataset.dtype
    if dataset.id.get_num_chunks() < -(-len(dataset) // in_chunk):  # of a missing one h5py raises MemoryError
        raise OSError("chunks are missing")
    values = np.empty(len(dataset), dtype=kind)
    for start in range(0, len(values), in_chunk):
        skipped_filters, packed = dataset.id.read_direct_chunk((start,))
        if skipped_filters:  # a program may write a chunk without some of them
            values[start : start + in_chunk] = dataset[start : start + in_chunk]
            continue
        unpacker = zlib.decompressobj()
        try:
            content = unpacker.decompress(packed, in_chunk * kind.itemsize + 1)  # one more, so that it meets the end
        except zlib.error as error:
            raise OSError(f"a chunk cannot be decompressed: {error}") from error
        if len(content) != in_chunk * kind.itemsize or not unpacker.eof:
            raise OSError(f"a chunk has {len(content)} bytes where {in_chunk * kind.itemsize} are expected")
        part = values[start : start + in_chunk]
        part[:] = _unshuffled(content, kind.itemsize, len(part)).view(kind)
    return values


def _unshuffled(content: bytes, itemsize: int, count: int) -> NDArray[Any]:
    """The first numbers of a chunk in which the lowest bytes of all numbers come first, then the next ones."""
    planes = np.frombuffer(content, dtype=np.uint8).reshape(itemsize, -1)[:, :count]
    kind = np.dtype(f"<u{itemsize}")
    numbers: NDArray[Any] = planes[0].astype(kind)
    for i in range(1, itemsize):
        if planes[i].any():  # most counts are small
            numbers |= planes[i].astype(kind) << kind.type(8 * i)
    return numbers
