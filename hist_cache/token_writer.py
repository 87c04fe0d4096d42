"""Write token files (see `hist_cache.token_files`), crop by crop in any order, with a digest of each crop."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hist_cache.cache_file import complete, new_file
from hist_cache.errors import DamagedCacheError, HistError
from hist_cache.fingerprint import Fingerprint, array_digest, same_origin
from hist_cache.slide_file import read_fingerprint
from hist_cache.token_files import CROP_DIGESTS, TOKEN_TYPE, Tokens, crops_digest

COPIED_AT_ONCE = 32  # crops in memory while a file is copied


class TokenWriter:
    """Writes the tokens of crops in any order, and computes the digest of each crop."""

    def __init__(
        self,
        file: h5py.File,
        names: Sequence[str],
        crops: int,
        shape: tuple[int, int],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Create empty tokens in a file.

        Args:
            file: The file, open for writing.
            names: Names of the tokens (see `token_files.token_names`).
            crops: Number of crops under each name.
            shape: (T, W), tokens of a crop and values of a token.
            check: Called now and then; raises the error of a write that failed.
        """
        self._file, self._shape, self._check = file, (crops, *shape), check
        self._sums: dict[str, NDArray[np.uint8]] = {}
        self._written: dict[str, NDArray[np.bool_]] = {}
        for name in names:
            self.add(name)

    def add(self, name: str) -> None:
        """Make room for the tokens of another name."""
        crops, *shape = self._shape
        self._sums[name], self._written[name] = np.zeros((crops, 32), np.uint8), np.zeros(crops, np.bool_)
        self._file.create_dataset(name, self._shape, TOKEN_TYPE, chunks=(1, *shape))

    def copy(self, old: Tokens) -> None:
        """Copy what another file has under other names."""
        for name in old.names:
            if name not in self._sums:
                self.add(name)
                _copy(old, name, self)

    def put(self, name: str, rows: NDArray[np.integer[Any]], values: NDArray[np.float16]) -> None:
        """Write the tokens of some crops.

        Args:
            name: Name of the tokens, such as `niche/6`.
            rows: (k,) rows of the crops.
            values: (k, T, W) tokens.

        Raises:
            HistError: The values have another shape or type.
        """
        if values.dtype != TOKEN_TYPE or values.shape != (len(rows), *self._shape[1:]):
            raise HistError(f"{name}: tokens of {values.shape} {values.dtype} for {len(rows)} of {self._shape} crops")
        dataset, sums = self._file[name].id, self._sums[name]
        for row, crop in zip(rows.tolist(), np.ascontiguousarray(values), strict=True):
            dataset.write_direct_chunk((row, 0, 0), crop)
            sums[row] = np.frombuffer(hashlib.sha256(crop).digest(), dtype=np.uint8)
        self._check()
        self._written[name][rows] = True

    def digests(self) -> dict[str, str]:
        """Write the digests of single crops to the file, and return the digest of the tokens of each name.

        Raises:
            HistError: A crop was not written.
        """
        for name, written in self._written.items():
            if not written.all():
                raise HistError(f"{name}: {int((~written).sum())} of {len(written)} crops were not written")
        for name, sums in self._sums.items():
            self._file.create_dataset(f"{CROP_DIGESTS}/{name}", data=sums)
        return {name: crops_digest(self._shape, sums) for name, sums in self._sums.items()}


@contextmanager
def write_tokens(
    path: Path,
    names: Sequence[str],
    barcodes: list[str],
    shape: tuple[int, int],
    fingerprint: Fingerprint,
    attributes: dict[str, Any],
) -> Iterator[TokenWriter]:
    """Write a token file, which gets its name when all crops are written.

    Tokens of other names in an existing file at `path` are copied to the new one, so they need not be computed again;
    so are those that another command has added to it in the meantime.

    Args:
        path: The token file.
        names: Names of the tokens to write (see `token_files.token_names`).
        barcodes: (N,) barcodes of the spots.
        shape: (T, W), tokens of a crop and values of a token.
        fingerprint: What the tokens are made from.
        attributes: Attributes of the file, such as `block`.

    Yields:
        The writer that takes the crops.

    Raises:
        WriteError: The disk is full, or nothing can be written there for another reason.
    """
    with _open_earlier(path) as old, new_file(path) as (file, check):
        texts = np.array(barcodes, dtype=object)
        file.create_dataset("barcodes", data=texts, dtype=h5py.string_dtype("utf-8"))
        digests = {"barcodes": array_digest(texts)}
        writer = TokenWriter(file, names, len(barcodes), shape, check)
        if old is not None:
            writer.copy(old)
        yield writer
        with _open_earlier(path) as now:
            if now is not None and now.barcodes == barcodes and same_origin(read_fingerprint(path), fingerprint):
                writer.copy(now)
        complete(file, attributes, fingerprint, digests | writer.digests())


def _open_earlier(path: Path) -> AbstractContextManager[Tokens | None]:
    """Open the file that is to be replaced; None where there is none, or where it is damaged."""
    if path.exists():
        with suppress(DamagedCacheError):
            return Tokens(path, whole=True)
    return nullcontext()


def _copy(old: Tokens, name: str, writer: TokenWriter) -> None:
    """Copy the tokens of one name, a part at a time; each crop is compared with its digest."""
    for rows in np.array_split(np.arange(len(old)), len(old) // COPIED_AT_ONCE + 1):
        writer.put(name, rows, old.read(name, rows))
