"""Counts in the HDF5 format of 10x Genomics, some barcodes at a time: a slide of 2 um bins has 10 million of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
from numpy.typing import NDArray

from extract.imports.tenx_matrix import ARRAYS, EXPRESSION, MatrixError
from hist_cache.errors import HistError
from hist_cache.h5ad import open_parts

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

DAMAGED = "copy it again from the output of Space Ranger"


class MatrixRows:
    """An open file of counts.

    Attributes:
        barcodes: (N,) bytes.
        genes: (G,) gene symbols; they may repeat.
        gene_ids: (G,) Ensembl ids.
        n_others: Number of features that are no genes.
    """

    def __init__(self, group: h5py.Group) -> None:
        for name in ARRAYS:
            item = group.get(name)
            if not isinstance(item, h5py.Dataset) or item.is_virtual or item.external:
                raise MatrixError(f"no matrix/{name}", DAMAGED)
        self._data, self._indices = group["data"], group["indices"]
        self._indptr: NDArray[np.int64] = group["indptr"][...].astype(np.int64)
        self.barcodes: NDArray[np.bytes_] = group["barcodes"][...].astype(np.bytes_)
        ids, names, kinds = (group[f"features/{k}"].asstr()[...].tolist() for k in ("id", "name", "feature_type"))
        self._n_features = len(ids)
        self._keep = np.flatnonzero([kind == EXPRESSION for kind in kinds])
        self.genes, self.gene_ids = [names[i] for i in self._keep], [ids[i] for i in self._keep]
        self.n_others = len(ids) - len(self._keep)
        steps = np.diff(self._indptr)
        if not len(ids) == len(names) == len(kinds) or len(steps) != len(self.barcodes) or (steps < 0).any():
            raise MatrixError("its arrays are no matrix of counts", DAMAGED)
        if not self.genes:
            raise MatrixError(f"no features of the type {EXPRESSION!r}", "counts of genes are needed")

    def __len__(self) -> int:
        return len(self.barcodes)

    @property
    def n_counts(self) -> int:
        """Number of counts that are stored."""
        return int(self._indptr[-1])

    def read(self, start: int, stop: int) -> csr_matrix:
        """Read the (stop - start, G) counts of some barcodes.

        Raises:
            MatrixError: The arrays are no matrix.
        """
        from scipy.sparse import csr_matrix

        part = slice(int(self._indptr[start]), int(self._indptr[stop]))
        indptr = self._indptr[start : stop + 1] - self._indptr[start]
        try:
            shape = (stop - start, self._n_features)
            counts = csr_matrix((self._data[part], self._indices[part], indptr), shape=shape)
            counts.check_format(full_check=True)
        except ValueError as error:
            raise MatrixError(f"its arrays are no matrix of counts ({error})", DAMAGED) from error
        return counts[:, self._keep] if self.n_others else counts

    def blocks(self, rows: int) -> Iterator[tuple[slice, csr_matrix]]:
        """Read all counts, `rows` barcodes at a time."""
        for start in range(0, len(self), rows):
            stop = min(start + rows, len(self))
            yield slice(start, stop), self.read(start, stop)


@contextmanager
def open_matrix(slide: str, path: Path) -> Iterator[MatrixRows]:
    """Open a file of counts; what goes wrong while it is read becomes a `SlideError`, other errors stay as they are.

    Args:
        slide: ID of the slide, for messages.
        path: The file.
    """
    of_others: HistError | None = None
    with open_parts(slide, path, ("matrix",)) as file:
        if not isinstance(file.get("matrix"), h5py.Group):
            raise MatrixError("no group 'matrix'", "a matrix of Space Ranger or of a Xenium analyser is needed")
        try:
            yield MatrixRows(file["matrix"])
        except HistError as error:
            of_others = error
    if of_others is not None:
        raise of_others
