"""The seal of a cache file: a digest of what HDF5 keeps besides the values of arrays, checked before HDF5 reads it.

HDF5 trusts its own structures in a file: with one wrong bit among them it may crash, or never come back. So their bytes
are checked first. The seal stands after the end of HDF5's part, where HDF5 does not look: JSON with the byte ranges of
the arrays' values (these have digests of their own) and the SHA-256 of everything else, then its length and a mark.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import h5py

from hist_cache.errors import DamagedCacheError

MARK = b"hist-cache seal1"
FOOTER = struct.Struct(f"<Q{len(MARK)}s")  # length of the JSON, and the mark
BLOCK = 1 << 20  # bytes hashed at a time

Range = Sequence[int]  # the first byte, and the one after the last


def seal(file: BinaryIO) -> None:
    """Add the seal to a file that HDF5 has closed.

    Args:
        file: The same file, open for reading and writing.
    """
    values = _value_ranges(file)
    end = file.seek(0, 2)
    text = json.dumps({"values": values, "sha256": _digest(file, end, values)}).encode()
    file.seek(end)
    file.write(text + FOOTER.pack(len(text), MARK))


def check_seal(path: Path) -> bool:
    """Compare a file with its seal, if it has one: files of version 0.1 and those that other programs wrote have none.

    Returns:
        Whether it has one.

    Raises:
        DamagedCacheError: They do not agree.
        OSError: The file cannot be opened or read.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - FOOTER.size, 0))
        footer = file.read()
        if not footer.endswith(MARK) or len(footer) < FOOTER.size:
            return False
        end = size - FOOTER.size - FOOTER.unpack(footer)[0]
        try:
            if end < 0:
                raise ValueError("the footer states more than there is")
            file.seek(end)
            stated = json.loads(file.read(size - FOOTER.size - end))
            sound = _digest(file, end, stated["values"]) == stated["sha256"]
        except (ValueError, KeyError, TypeError, RecursionError):
            sound = False
    if not sound:
        raise DamagedCacheError(path, "has other bytes than when it was written")
    return True


def _value_ranges(file: BinaryIO) -> list[Range]:
    """List where the values of arrays are, in order. Texts are not among them: they are part of HDF5's structures."""
    found: list[tuple[int, int]] = []

    def add(name: str, node: h5py.Group | h5py.Dataset) -> None:
        if not isinstance(node, h5py.Dataset) or node.dtype == object:
            return
        if node.chunks:
            node.id.chunk_iter(lambda chunk: found.append((chunk.byte_offset, chunk.byte_offset + chunk.size)))
        elif node.id.get_offset() is not None:
            found.append((node.id.get_offset(), node.id.get_offset() + node.id.get_storage_size()))

    with h5py.File(file, "r") as hdf5:
        hdf5.visititems(add)
    merged: list[list[int]] = []
    for start, end in sorted(found):
        if merged and merged[-1][1] == start:
            merged[-1][1] = end
        else:
            merged.append([start, end])
    return [*merged]


def _digest(file: BinaryIO, end: int, skipped: Sequence[Range]) -> str:
    """Return the SHA-256 of the first `end` bytes without some ranges, and of the list of these.

    Raises:
        ValueError: The ranges are not in order.
    """
    digest = hashlib.sha256(json.dumps([[*r] for r in skipped]).encode())
    at = 0
    for start, after in [*skipped, (end, end)]:
        if not at <= start <= after <= end:
            raise ValueError(f"{start}, {after} after {at}, before {end}")
        file.seek(at)
        while at < start:
            block = file.read(min(BLOCK, start - at))
            if not block:
                raise ValueError("ends too early")
            digest.update(block)
            at += len(block)
        at = after
    return digest.hexdigest()
