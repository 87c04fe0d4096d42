"""Counts as 10x Genomics' programs write them: HDF5 (`filtered_feature_bc_matrix.h5`), or a folder of Matrix Market.

The formats: https://www.10xgenomics.com/support/software/space-ranger/latest/analysis/feature-barcode-matrix
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hist_cache.errors import FileProblemError, slide_error
from hist_cache.h5ad import open_parts, table_part

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

EXPRESSION = "Gene Expression"  # the feature type that is kept; others are antibodies, probes for controls and so on
GROUPS = ("matrix",)
ARRAYS = ("barcodes", "data", "indices", "indptr", "shape", "features/id", "features/name", "features/feature_type")
MATRIX_FILES = ("matrix.mtx.gz", "features.tsv.gz", "barcodes.tsv.gz")
AGAIN = "copy it again from the output of Space Ranger"


class MatrixError(FileProblemError):
    """A matrix of counts cannot be used."""


@dataclass(frozen=True)
class FeatureMatrix:
    """Counts of genes.

    Attributes:
        counts: (N, G) counts.
        barcodes: (N,) names of the spots.
        genes: (G,) gene symbols; they may repeat.
        gene_ids: (G,) Ensembl ids.
        notes: What was left out, each a line for the user.
    """

    counts: csr_matrix
    barcodes: list[str]
    genes: list[str]
    gene_ids: list[str]
    notes: tuple[str, ...] = ()


def read_matrix_h5(slide: str, path: Path) -> FeatureMatrix:
    """Read the genes of an HDF5 file of counts.

    Args:
        slide: ID of the slide, for messages.
        path: The file.

    Raises:
        SlideError: The file cannot be read, or holds no genes.
    """
    with open_parts(slide, path, GROUPS) as file:
        if "matrix" not in file:
            raise MatrixError("no group 'matrix'", "a matrix of Space Ranger, or of Cell Ranger 3 or later, is needed")
        group = table_part(file, "matrix")
        arrays = [_array(group, name) for name in ARRAYS]
        barcodes, ids, names, kinds = (_texts(arrays[i]) for i in (0, 5, 6, 7))
        data, indices, indptr, shape = arrays[1:5]
        return _genes_of(_sparse(data, indices, indptr, shape), barcodes, ids, names, kinds)


def read_matrix_folder(slide: str, folder: Path) -> FeatureMatrix:
    """Read the genes of a folder with matrix.mtx.gz, features.tsv.gz and barcodes.tsv.gz.

    Args:
        slide: ID of the slide, for messages.
        folder: The folder.

    Raises:
        SlideError: A file is missing or cannot be read, or there are no genes.
    """
    from scipy.io import mmread
    from scipy.sparse import csr_matrix

    path = folder
    try:
        matrix, features, barcodes = (folder / name for name in MATRIX_FILES)
        path = matrix
        with gzip.open(matrix) as stream:
            counts = csr_matrix(mmread(stream).T)
        path = features
        columns = list(zip(*(line.split("\t") for line in _lines(features)), strict=True))
        if len(columns) < 3:
            raise MatrixError(f"{len(columns)} columns", "id, name and feature type are needed")
        path = barcodes
        return _genes_of(counts, _lines(barcodes), *(list(column) for column in columns[:3]))
    except Exception as error:
        raise slide_error(slide, path, error, "cannot be read") from error


def _array(group: h5py.Group, name: str) -> NDArray[Any]:
    item = group.get(name)
    if not isinstance(item, h5py.Dataset):
        raise MatrixError(f"no matrix/{name}", AGAIN)
    return np.asarray(item)


def _texts(array: NDArray[Any]) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in array.tolist()]


def _lines(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return stream.read().splitlines()


def _sparse(data: NDArray[Any], indices: NDArray[Any], indptr: NDArray[Any], shape: NDArray[Any]) -> csr_matrix:
    """Make (N, F) counts of the arrays of the file, which hold (F, N) by columns, and check that they are a matrix."""
    from scipy.sparse import csr_matrix

    if shape.shape != (2,) or data.dtype.kind not in "iuf":
        raise MatrixError("its arrays are no matrix of counts", AGAIN)
    try:
        counts = csr_matrix((data, indices, indptr), shape=(int(shape[1]), int(shape[0])))
        counts.check_format(full_check=True)
    except ValueError as error:
        raise MatrixError(f"its arrays are no matrix of counts ({error})", AGAIN) from error
    return counts


def _genes_of(
    counts: csr_matrix, barcodes: list[str], ids: list[str], names: list[str], kinds: list[str]
) -> FeatureMatrix:
    """Keep the features that are genes."""
    if counts.shape != (len(barcodes), len(ids)) or not len(ids) == len(names) == len(kinds):
        raise MatrixError(f"counts of {counts.shape} for {len(barcodes)} barcodes and {len(ids)} features", AGAIN)
    keep = np.flatnonzero([kind == EXPRESSION for kind in kinds])
    if not len(keep):
        raise MatrixError(f"no features of the type {EXPRESSION!r}", "counts of genes are needed")
    others = sorted(set(kinds) - {EXPRESSION})
    notes = (f"{len(ids) - len(keep)} features that are no genes are left out ({', '.join(others)})",) if others else ()
    return FeatureMatrix(counts[:, keep], barcodes, [names[i] for i in keep], [ids[i] for i in keep], notes)
