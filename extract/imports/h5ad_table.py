"""An h5ad file with positions in `obsm["spatial"]`, of whatever program: counts in X, `layers["counts"]` or `raw`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from extract.imports.options import ImportOptions
from extract.imports.pitch import (
    VISIUM_PITCH_UM,
    VISIUM_SPOT_UM,
    MeasuredPitch,
    SpotSizes,
    given_sizes,
    measure_pitch,
    sizes_by_pitch,
    visium_scale,
)
from extract.imports.sample import Sample, sample_name
from hist_cache.errors import InputError
from hist_cache.h5ad import TableError, has_column, open_parts, table_column, table_names, table_part
from hist_cache.spots import gene_symbols, read_places

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

H5AD_PARTS = ("X", "obs", "var", "obsm", "layers", "raw", "uns/spatial")
RAW_NEEDED = "raw counts are needed in layers['counts'], X or raw"
ID_COLUMNS = ("gene_ids", "gene_id", "ensembl_id")


class H5adReader:
    """Reads a table; pitch and pixel size are Visium's where its spots are on Visium's lattice, else as options say."""

    name = "h5ad"
    expected = "an .h5ad file with obsm['spatial']"
    uses: tuple[str, ...] = ("pitch", "spot")

    def recognises(self, source: Path) -> bool:
        """Tell whether it is a file with this ending."""
        return source.suffix.lower() == ".h5ad" and source.is_file()

    def read(self, source: Path, options: ImportOptions) -> Sample:
        """Read the file; see `SampleReader`."""
        slide = options.id or sample_name(source)
        barcodes, coords, array = read_places(slide, source)
        with open_parts(slide, source, H5AD_PARTS) as file:
            counts, home, where = _raw_counts(file, len(barcodes))
            genes = gene_symbols(home, counts.shape[1])
            gene_ids = _gene_ids(home, counts.shape[1])
            diameter_px = _stated_diameter(file)
        measured = measure_pitch(coords, array)
        sizes, notes = _sizes(source, options, measured, diameter_px)
        return Sample(
            name=slide,
            counts=counts,
            barcodes=barcodes,
            genes=genes,
            gene_ids=gene_ids,
            coords=coords,
            array=array,
            image=None,
            notes=(f"counts are those of {where}", *notes),
            **sizes,
        )


def _sizes(
    source: Path, options: ImportOptions, measured: MeasuredPitch | None, diameter_px: float | None
) -> tuple[SpotSizes, tuple[str, ...]]:
    """Return the sizes of spots and of a px, and lines about what says otherwise.

    Bins of Visium HD come with a diameter too; on their square lattice they are never taken for Visium's spots.
    """
    if sizes := given_sizes(options, measured):
        return sizes, ()
    stated = diameter_px is not None and (measured is None or measured.kind == "hex")
    is_visium = stated or (measured is not None and measured.is_visium)
    if options.pitch is None and options.spot is None and is_visium:
        sizes = sizes_by_pitch("Visium", VISIUM_PITCH_UM, VISIUM_SPOT_UM, measured)
        if scale := visium_scale(measured, diameter_px):
            sizes["um_per_px"], sizes["um_per_px_source"] = scale.um_per_px, scale.source
        return sizes, scale.notes if scale else ()
    raise InputError(f"{source}: how large are its spots, and how far apart? give --pitch and --spot, both in um")


def _raw_counts(file: h5py.File, n: int) -> tuple[csr_matrix, Any, str]:
    """Return the first of layers["counts"], X and raw that holds whole numbers.

    Returns:
        (N, G) counts, the group that has their `var`, and what they are called.

    Raises:
        TableError: None of them holds raw counts.
    """
    places = [(file, ("layers", "counts"), "layers['counts']"), (file, ("X",), "X"), (file, ("raw", "X"), "raw")]
    tried = []
    for table, path, name in places:
        if "/".join(path) not in table:
            continue
        counts = _matrix(table, path)
        if counts is not None and counts.shape[0] == n and _is_raw(counts):
            return counts, file["raw"] if name == "raw" else file, name
        tried.append(name)
    raise TableError(f"no raw counts in {' or '.join(tried) or 'it'} (normalised?)", RAW_NEEDED)


def _matrix(table: h5py.File, path: tuple[str, ...]) -> csr_matrix | None:
    import anndata
    from scipy.sparse import csr_matrix, issparse

    values = anndata.io.read_elem(table_part(table, *path))
    values = values if issparse(values) else np.asarray(values)
    if values.ndim != 2 or values.dtype.kind not in "biuf":
        return None
    return csr_matrix(values if values.dtype != np.float16 else values.astype(np.float32))


def _is_raw(counts: csr_matrix) -> bool:
    data = counts.data
    return bool(np.isfinite(data).all() and (data >= 0).all() and (data == np.round(data)).all() and data.any())


def _gene_ids(home: Any, n: int) -> list[str] | None:
    """Return Ensembl ids, from a column of var or its names; None where neither has any."""
    column = next((name for name in ID_COLUMNS if has_column(home, "var", name)), None)
    ids = [str(v) for v in table_column(home, "var", column, n)] if column else table_names(home, "var", n)
    return ids if sum(i.startswith("ENS") for i in ids) > n / 2 else None


def _stated_diameter(file: h5py.File) -> float | None:
    """Return `spot_diameter_fullres` of the first slide in `uns["spatial"]`; None where it is not stated."""
    with suppress(KeyError, TypeError, ValueError, AttributeError, OSError):
        for library in file["uns/spatial"].values():
            value = float(library["scalefactors/spot_diameter_fullres"][()])
            if np.isfinite(value) and value > 0:
                return value
    return None
