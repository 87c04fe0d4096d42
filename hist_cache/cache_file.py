"""One HDF5 file of the cache, open for reading: what is read from it is compared with the digests that it states.

A file has a SHA-256 for each array and one for its attributes (docs/cache-format.md). What does not agree with them is
`DamagedCacheError`, and so is whatever HDF5 raises on damaged bytes; `hist_cache.seal` checks what HDF5 must not even
see damaged. Every reading checks, and none leaves a record that a file was sound: a disk that loses bits changes
neither size nor time of a file, and the check takes a small share of the time that reading takes
(benchmarks/bench_train.py).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hist_cache.errors import DamagedCacheError, HistError, StaleCacheError, one_line
from hist_cache.files import atomic_file
from hist_cache.fingerprint import Fingerprint, array_digest
from hist_cache.packed import is_packed, unpack
from hist_cache.seal import check_seal, seal

SCHEMA = 1  # version of the file format
TOKEN_FILE = re.compile(r"(?P<slide>.+)\.tokens(?P<block>\d+)\.h5")
ATTRIBUTES = "attributes"  # name of the attributes' digest among those of the arrays; 0.1 wrote none
HDF5_ERRNO = re.compile(r"errno = ([1-9]\d*)")  # in the text of an error of HDF5
NO_SUCH_PLACE = {errno.EINVAL, errno.EOVERFLOW, errno.EFBIG}  # answers to reading at a place that no file has
SEALED = "sealed"  # attribute that says whether a seal follows; of files without it, none is expected
MAX_COMPRESSION = 1032  # that deflate can reach, so the largest array that a file of some size can hold is known


class CacheFile:
    """A complete file of the cache, open.

    Attributes:
        path: The file.
        hdf5: The file as h5py sees it.
        attributes: All its attributes.
        digests: Name of an array -> its SHA-256, as the file states it. They also say which arrays there are.
    """

    def __init__(self, path: Path, hdf5: h5py.File, sealed: bool) -> None:
        self.path, self.hdf5 = path, hdf5
        self.attributes = dict(hdf5.attrs)
        self.digests: dict[str, str] = {}
        if not self.attributes.get("complete", False):
            raise DamagedCacheError(path, "incomplete")
        if (schema := int(self.attributes.get("schema", 0))) != SCHEMA:
            raise HistError(f"{path}: cache format {schema}, this version reads {SCHEMA}; extract again")
        self.digests = dict(json.loads(self.attributes["digests"]))
        expected = self.digests.pop(ATTRIBUTES, None)
        if expected not in (None, attributes_digest(self.attributes)):
            raise DamagedCacheError(path, "its attributes or digests have other values than when it was written")
        if self.attributes.get(SEALED, False) and not sealed:
            raise DamagedCacheError(path, "its end is missing: it was cut off, or changed by another program")
        if missing := [name for name in self.digests if name not in hdf5]:
            raise DamagedCacheError(path, f"{missing[0]} is missing")
        match = TOKEN_FILE.fullmatch(path.name)
        slide, own = match["slide"] if match else path.stem, self.attributes.get("slide")
        if own not in (None, slide):
            raise StaleCacheError(f"{path}: is a file of slide {own}, copied or renamed; delete it")

    @property
    def sizes(self) -> list[int]:
        """Neighbourhood sizes of the niches, sorted."""
        return sorted(int(name.removeprefix("niche/")) for name in self.digests if name.startswith("niche/"))

    @property
    def spots(self) -> int:
        """Number of spots."""
        return len(self.dataset("barcodes"))

    @property
    def fingerprint(self) -> Fingerprint:
        """What the file was made from."""
        return Fingerprint.from_json(self.attributes["fingerprint"])

    def dataset(self, name: str) -> h5py.Dataset:
        """Find an array, without reading it.

        Raises:
            DamagedCacheError: It is not there, or is larger than the file can hold.
        """
        if name not in self.hdf5:
            raise DamagedCacheError(self.path, f"{name} is missing")
        dataset = self.hdf5[name]
        ratio = MAX_COMPRESSION if dataset.compression else 1
        if dataset.nbytes > ratio * self.path.stat().st_size:
            raise DamagedCacheError(self.path, f"{name} has the shape {dataset.shape}, more than the file can hold")
        return dataset

    def array(self, name: str) -> NDArray[Any]:
        """Read an array, and compare it with its digest.

        Raises:
            DamagedCacheError: It is not there, or is not what was written.
        """
        dataset = self.dataset(name)
        try:
            values: NDArray[Any] = unpack(dataset) if is_packed(dataset) else dataset[:]
        except (OSError, RuntimeError) as error:
            raise read_error(self.path, error, f"{name} cannot be read ({one_line(error)})") from error
        if array_digest(values) != self.digests.get(name):
            raise DamagedCacheError(self.path, f"{name} has other values than when it was written")
        return values

    def texts(self, name: str) -> list[str]:
        """Read an array of texts, and compare it with its digest."""
        return [text.decode() for text in self.array(name)]


@contextmanager
def new_file(path: Path) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
    """Write a file of a cache, which gets its name and its seal when all is in it; `complete` must end the writing.

    Yields:
        The file, and what raises the error of a write that failed, which is raised at the end in any case.
    """
    with atomic_file(path) as raw:
        with h5py.File(raw, "w") as hdf5:
            yield hdf5, raw.check
        raw.check()
        seal(raw)


@contextmanager
def open_complete(path: Path) -> Iterator[CacheFile]:
    """Open a file of a cache for reading, in a `with` statement that does nothing else.

    Raises:
        DamagedCacheError: The file is not readable or not complete, or what is read is not what was written.
        HistError: The disk does not answer, or the file has another format or is another slide's.
    """
    if path.exists() and not path.is_file():
        raise HistError(f"{path}: not a file; remove it")
    try:
        sealed = check_seal(path)
        hdf5 = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise read_error(path, error, f"not a readable cache file ({one_line(error)})") from error
    with hdf5:
        try:
            yield CacheFile(path, hdf5, sealed)
        except (HistError, MemoryError):
            raise
        except Exception as error:  # of any type, where the bytes that HDF5 reads are not what it wrote
            reason = f"damaged ({type(error).__name__}: {one_line(error)})"
            raise read_error(path, error, reason) from error


def read_error(path: Path, error: Exception, problem: str) -> HistError:
    """Return the error of a file that cannot be read: damaged, unless the system says that the disk is to blame.

    Args:
        path: The file.
        error: What was raised.
        problem: What is wrong if the file is damaged.
    """
    if number := system_error(error):
        return HistError(f"{path}: cannot be read ({os.strerror(number)})")
    return DamagedCacheError(path, problem)


def system_error(error: Exception) -> int:
    """Return the number of the system's error, such as a disk that does not answer; 0 if it is none.

    HDF5 states it in its text only where reading fails. Damaged bytes can make HDF5 read at places that no file has.
    """
    stated = HDF5_ERRNO.search(str(error))
    number = int(getattr(error, "errno", None) or (stated[1] if stated else 0))
    return 0 if number in NO_SUCH_PLACE else number


def attributes_digest(attributes: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a file's attributes, the digests of its arrays among them: as JSON, sorted by name."""
    stated = {name: value for name, value in attributes.items() if name not in ("complete", "digests")}
    stated["digests"] = {k: v for k, v in json.loads(attributes["digests"]).items() if k != ATTRIBUTES}
    text = json.dumps(stated, sort_keys=True, default=lambda value: np.asarray(value).tolist())
    return hashlib.sha256(text.encode()).hexdigest()


def complete(hdf5: h5py.File, attributes: Mapping[str, Any], fingerprint: Fingerprint, digests: dict[str, str]) -> None:
    """Write what makes a file of the cache complete, once its arrays are in it.

    Args:
        hdf5: The file, open for writing.
        attributes: Facts about the slide.
        fingerprint: What the arrays were made from.
        digests: Name of an array -> SHA-256.
    """
    hdf5.attrs.update(attributes)
    hdf5.attrs["schema"] = SCHEMA
    hdf5.attrs[SEALED] = True
    hdf5.attrs["fingerprint"] = fingerprint.to_json()
    of_attributes = attributes_digest({**hdf5.attrs, "digests": json.dumps(digests)})
    hdf5.attrs["digests"] = json.dumps(digests | {ATTRIBUTES: of_attributes}, sort_keys=True)
    hdf5.flush()
    hdf5.attrs["complete"] = True
