"""Write token files (see `hist_cache.token_files`), crop by crop in any order, with a digest of each crop."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hist_cache.cache import SCHEMA, open_complete
from hist_cache.errors import HistError
from hist_cache.files import atomic_file
from hist_cache.fingerprint import Fingerprint, array_digest
from hist_cache.token_files import TOKEN_TYPE


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
        self._sums = {name: np.zeros((crops, 32), dtype=np.uint8) for name in names}
        self._written = {name: np.zeros(crops, dtype=bool) for name in names}
        for name in names:
            file.create_dataset(name, self._shape, TOKEN_TYPE, chunks=(1, *shape))

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
        """Return the digest of the tokens of each name.

        Raises:
            HistError: A crop was not written.
        """
        for name, written in self._written.items():
            if not written.all():
                raise HistError(f"{name}: {int((~written).sum())} of {len(written)} crops were not written")
        return {name: crops_digest(self._shape, sums) for name, sums in self._sums.items()}


def crops_digest(shape: tuple[int, ...], sums: NDArray[np.uint8]) -> str:
    """Return one SHA-256 for all crops, made from the digests of single crops, which can be computed in any order.

    Args:
        shape: (N, T, W) of the tokens.
        sums: (N, 32) SHA-256 of each crop.
    """
    return hashlib.sha256(f"{TOKEN_TYPE.str} {shape}".encode() + sums.tobytes()).hexdigest()


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

    Tokens of other names in an existing file at `path` are copied to the new one, so they need not be computed again.

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
    with atomic_file(path) as raw, h5py.File(raw, "w") as file:
        texts = np.array(barcodes, dtype=object)
        file.create_dataset("barcodes", data=texts, dtype=h5py.string_dtype("utf-8"))
        digests = {"barcodes": array_digest(texts)}
        if path.exists():
            with open_complete(path) as old:
                old_digests = json.loads(old.attrs["digests"])
                for name in old_digests.keys() - {"barcodes", *names}:
                    old.copy(old[name], file, name)
                    digests[name] = old_digests[name]
        writer = TokenWriter(file, names, len(barcodes), shape, raw.check)
        yield writer
        file.attrs.update(attributes)
        file.attrs["schema"] = SCHEMA
        file.attrs["fingerprint"] = fingerprint.to_json()
        file.attrs["digests"] = json.dumps(digests | writer.digests(), sort_keys=True)
        file.flush()
        file.attrs["complete"] = True
