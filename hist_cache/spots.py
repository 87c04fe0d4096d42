"""The spots of a slide, read from its h5ad file: only what is needed of it, and all of that is checked."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hist_cache.errors import one_line
from hist_cache.h5ad import TableError, has_column, open_parts, open_table, table_column, table_names, table_part
from hist_cache.metadata import ANY_SCALE
from hist_cache.slides import SlideFiles
from hist_cache.texts import bad_name

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

log = logging.getLogger(__name__)

SYMBOL_COLUMNS = ("gene_name", "gene_names", "gene_symbol", "gene_symbols", "symbol", "SYMBOL", "feature_name")
MAX_COUNT = np.iinfo(np.int32).max
MAX_SPOTS = 20_000_000  # a Visium HD slide has 11 million bins
MAX_POSITION = 1e8  # px; no image is that large
MIN_SPOTS_WITH_GAPS = 10  # fewer may lie anywhere
MIN_GAP, MAX_GAP = 0.5, 2.0  # of the pitch: the distance to the nearest spot, typical and smallest


@dataclass(frozen=True)
class Spots:
    """The spots of a slide, in the order of its h5ad file.

    Attributes:
        barcodes: (N,) barcodes.
        coords: (N, 2) spot centres in level-0 px, x then y.
        array: (N, 2) array row and array column; -1 where they are not known.
        counts: (N, G) raw counts.
        genes: (G,) gene symbols.
    """

    barcodes: list[str]
    coords: NDArray[np.float64]
    array: NDArray[np.int32]
    counts: csr_matrix
    genes: list[str]

    def __len__(self) -> int:
        return len(self.barcodes)


def count_spots(files: SlideFiles) -> int:
    """Read the number of spots from the header of a slide's h5ad.

    Raises:
        SlideError: The file cannot be read.
    """
    with open_table(files, only_shape=True) as file:
        return _shape(file)[0]


def read_spots(files: SlideFiles, any_scale: bool = False) -> Spots:
    """Read and check the h5ad file of a slide.

    Args:
        files: The slide.
        any_scale: Accept spots that are not as far from each other as the metadata say.

    Raises:
        SlideError: The file cannot be read; it has no spots, no positions, repeated barcodes or no gene symbols; or
            its counts are not raw.
    """
    with open_table(files) as file:
        shape = _shape(file)
        if shape[0] == 0:
            raise TableError("it has no spots")
        if shape[1] == 0:
            raise TableError("it has no genes")
        barcodes = _barcodes(file, shape[0])
        genes = gene_symbols(file, shape[1])
        coords = _positions(file, shape[0])
        if not any_scale:
            _check_gaps(coords * files.um_per_px, files.pitch_um)
        if shared := len(coords) - len(np.unique(coords, axis=0)):
            log.warning(f"{files.id}: {files.table}: {shared} of {len(coords)} spots lie where another one does")
        array = _array_indices(file, shape[0])
        if array is None:
            log.warning(f"{files.id}: {files.table}: array_row and array_col are no whole numbers and are not used")
            array = np.full((len(coords), 2), -1, dtype=np.int32)
        return Spots(barcodes, coords, array, _raw_counts(file, shape), genes)


def read_places(slide: str, path: Path) -> tuple[list[str], NDArray[np.float64], NDArray[np.int32]]:
    """Read where the spots of an h5ad file are, which needs no counts.

    Args:
        slide: ID of the slide, for messages.
        path: The h5ad file.

    Returns:
        (N,) names, (N, 2) centres in level-0 px, x then y, and (N, 2) array row and column, -1 where not known.

    Raises:
        SlideError: The file cannot be read, has no positions or repeats a name.
    """
    with open_parts(slide, path, ("obs", "obsm")) as file:
        if "obsm" not in file or not has_column(file, "obsm", "spatial"):
            raise TableError("no obsm['spatial']", "spot centres in level-0 pixels are needed")
        n = len(table_part(file, "obsm", "spatial"))
        array = _array_indices(file, n)
        unknown = np.full((n, 2), -1, dtype=np.int32)
        return _barcodes(file, n), _positions(file, n), unknown if array is None else array


def _shape(file: h5py.File) -> tuple[int, int]:
    """Return the numbers of spots and genes that X states."""
    x = table_part(file, "X")
    stated = x.shape if isinstance(x, h5py.Dataset) else x.attrs.get("shape", x.attrs.get("h5sparse_shape"))
    if np.shape(stated) != (2,) or not all(isinstance(n, int | np.integer) for n in stated):
        raise TableError("X states no number of spots and of genes", "X must hold raw counts, (spots, genes)")
    rows, columns = int(stated[0]), int(stated[1])
    if not (0 <= rows <= MAX_SPOTS and 0 <= columns <= MAX_SPOTS):
        raise TableError(f"X has a size of {rows:,} x {columns:,}", "it must be (spots, genes)")
    return rows, columns


def _barcodes(file: h5py.File, n: int) -> list[str]:
    names = table_names(file, "obs", n)
    occurrences = Counter(names)
    if repeats := n - len(occurrences):
        first = next(name for name, times in occurrences.items() if times > 1)
        raise TableError(f"duplicate barcodes ({first} and {repeats - 1} more)", "make obs_names unique")
    return names


def gene_symbols(file: h5py.File | h5py.Group, n: int) -> list[str]:
    """Return the gene symbols of a table, made unique as in anndata: repeats get -1, -2 and so on.

    Args:
        file: The table, or its group `raw`.
        n: Its number of genes.

    Raises:
        TableError: There are no symbols.
    """
    names = table_names(file, "var", n)
    if sum(g.startswith("ENS") for g in names) > n / 2:
        column = next((c for c in SYMBOL_COLUMNS if has_column(file, "var", c)), None)
        if column is None:
            raise TableError("genes are named by Ensembl id", "add the symbols as a column var['gene_name']")
        symbols = [str(v) for v in table_column(file, "var", column, n)]
        names = [s if s not in ("", "nan", "None", "<NA>") else e for s, e in zip(symbols, names, strict=True)]
        if problem := bad_name(names):
            raise TableError(f"var[{column!r}] has {problem}")
    return unique_names(names)


def unique_names(names: Sequence[str]) -> list[str]:
    """Make names unique as anndata does: repeats get -1, -2 and so on."""
    taken, occurrences, unique = set(names), Counter[str](), []
    for name in names:
        free, number = name, occurrences[name]
        while number and (free := f"{name}-{number}") in taken:
            number += 1
        occurrences[name] = number + 1
        taken.add(free)
        unique.append(free)
    return unique


def _positions(file: h5py.File, n: int) -> NDArray[np.float64]:
    import anndata

    if "obsm" not in file or not has_column(file, "obsm", "spatial"):
        raise TableError("no obsm['spatial']", "spot centres in level-0 pixels are needed")
    stored = np.asarray(anndata.io.read_elem(table_part(file, "obsm", "spatial")))
    if stored.ndim != 2 or len(stored) != n or stored.shape[1] < 2:
        raise TableError(f"obsm['spatial'] has shape {stored.shape}", f"it must be ({n}, 2): x and y in level-0 pixels")
    if stored.dtype.kind not in "iuf":
        raise TableError(f"obsm['spatial'] holds {stored.dtype}", "it must be numbers: x and y in level-0 pixels")
    coords = stored[:, :2].astype(np.float64)
    if unknown := int((~np.isfinite(coords)).any(1).sum()):
        raise TableError(f"{unknown} spots have no position")
    if far := int((abs(coords) > MAX_POSITION).any(1).sum()):
        raise TableError(f"{far} spots lie at {abs(coords).max():.3g} px", "no image is that large")
    return coords


def _check_gaps(coords_um: NDArray[np.float64], pitch_um: float) -> None:
    """`TableError` where the spots lie much closer, or all much farther, than the metadata say."""
    from scipy.spatial import cKDTree

    if len(coords_um) < MIN_SPOTS_WITH_GAPS:
        return
    gaps = cKDTree(coords_um).query(coords_um, k=2)[0][:, 1]
    typical, smallest = float(np.median(gaps)), float(gaps.min())
    if typical < MIN_GAP * pitch_um or smallest > MAX_GAP * pitch_um:
        gap = typical if typical < MIN_GAP * pitch_um else smallest
        raise TableError(f"spots lie {gap:.4g} um apart, and inter_spot_dist is {pitch_um:g} um", ANY_SCALE)


def _array_indices(file: h5py.File, n: int) -> NDArray[np.int32] | None:
    """Return (n, 2) array row and column, -1 where they are not stated; None where they are something else."""
    array = np.full((n, 2), -1, dtype=np.int32)
    if not all(has_column(file, "obs", name) for name in ("array_row", "array_col")):
        return array
    try:
        columns = [table_column(file, "obs", name, n).astype(np.float64) for name in ("array_row", "array_col")]
    except (ValueError, TypeError):
        return None
    values = np.stack(columns, axis=1)
    if np.isnan(values).any():
        return array
    if (values != np.round(values)).any() or (abs(values) > MAX_COUNT).any():
        return None
    return values.astype(np.int32)


def _read_matrix(file: h5py.File) -> Any:
    """Return X as anndata reads it: an array or a sparse matrix."""
    import anndata

    stored = table_part(file, "X")
    data = stored.get("data") if isinstance(stored, h5py.Group) else None
    if isinstance(data, h5py.Dataset) and not data.dtype.isnative:
        raise TableError("X is a sparse matrix in another byte order", "write it in the byte order of this machine")
    return anndata.io.read_elem(stored)


def _raw_counts(file: h5py.File, shape: tuple[int, int]) -> csr_matrix:
    from scipy.sparse import csr_matrix, issparse

    x = _read_matrix(file)
    if not issparse(x):
        x = np.asarray(x)
    if x.shape != shape or x.dtype.kind not in "biuf":
        raise TableError(f"X holds {x.dtype} of shape {x.shape}", "X must hold raw counts, (spots, genes)")
    if x.dtype == np.float16:  # scipy has none
        x = x.astype(np.float32)
    if issparse(x):
        try:
            x.check_format(full_check=True)
        except ValueError as error:
            raise TableError(f"X is no valid sparse matrix ({one_line(error)})", "write the table again") from error
    counts = csr_matrix(x, dtype=np.float64)
    counts.sum_duplicates()
    data = counts.data
    if invalid := int((~np.isfinite(data) | (data < 0)).sum()):
        raise TableError(f"{invalid:,} counts are NaN or negative", "X must hold raw counts")
    if (data != np.round(data)).any():
        raise TableError("counts are not whole numbers (normalised?)", "X must hold raw counts")
    if data.max(initial=0) > MAX_COUNT:
        raise TableError(f"a count of {data.max():.4g}", f"X must hold raw counts, {MAX_COUNT:,} at most")
    if not data.any():
        raise TableError("all counts are 0", "X must hold raw counts")
    counts = counts.astype(np.int32)
    counts.eliminate_zeros()
    counts.sort_indices()
    return counts
