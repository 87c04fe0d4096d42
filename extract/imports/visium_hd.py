"""Visium HD: the `outs/` folder of Space Ranger 3 or 4, with bins of 2, 8 and 16 um in `binned_outputs/`.

Bins of 8 or 16 um are spots as they are. Bins of 2 um are less than a cell, and a crop of 2 um has hardly any pixels:
they are read only to be pooled into pseudo-spots.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from extract.imports.matrix_rows import MatrixRows, open_matrix
from extract.imports.options import ImportOptions
from extract.imports.parquet import parquet_columns
from extract.imports.pitch import MAX_DISAGREEMENT
from extract.imports.pseudo_spots import POINTS_AT_ONCE, Points, pool
from extract.imports.sample import Sample, sample_name
from hist_cache.errors import InputError, SlideError
from hist_cache.memory import free_memory
from hist_cache.spots import MAX_POSITION
from hist_cache.texts import read_json

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

BINNED = "binned_outputs"
BIN_COUNTS, BIN_POSITIONS = "filtered_feature_bc_matrix.h5", "tissue_positions.parquet"
SCALES = "scalefactors_json.json"
BIN_COLUMNS = ("barcode", "array_row", "array_col", "pxl_col_in_fullres", "pxl_row_in_fullres")
BINS_UM = (2, 8, 16)
COPY_OUTS = f"copy the whole outs/ folder of Space Ranger, with {BINNED}/"
LOW_RESOLUTION = "tissue_lowres_image.png"
BINS_MEASURED = 20_000  # of which the distance is measured
BYTES_A_COUNT = 40  # of memory, for a count of a bin while all bins are read


class VisiumHDReader:
    """Reads bins of one size, or pools the finest ones."""

    name = "Visium HD"
    expected = f"an outs/ folder with {BINNED}/"
    uses: tuple[str, ...] = ("bin",)

    def recognises(self, source: Path) -> bool:
        """Tell whether the folder is, or has, `binned_outputs/`, or is one folder of bins in it."""
        return any(_bin_folder(source, um).is_dir() for um in BINS_UM)

    def read(self, source: Path, options: ImportOptions) -> Sample:
        """Read the folder; see `SampleReader`."""
        slide, bin_um = options.id or _name(source), _bin_size(source, options)
        folder = _bin_folder(source, bin_um)
        scales = _read_scales(slide, folder / "spatial" / SCALES)
        with open_matrix(slide, folder / BIN_COUNTS) as matrix:
            coords, array = _places(slide, folder / "spatial" / BIN_POSITIONS, matrix)
            um_per_px, um_source = _pixel_size(slide, folder / "spatial" / SCALES, scales, coords, array, bin_um)
            notes = _notes(matrix, coords)
            if options.pseudo_spots is None:
                spots = _bins(slide, folder / BIN_COUNTS, matrix, coords, array, bin_um)
            else:
                spots = _pseudo_spots(matrix, coords, um_per_px, options.pseudo_spots, bin_um)
            genes, gene_ids = matrix.genes, matrix.gene_ids
        return Sample(
            name=slide,
            counts=spots.counts,
            barcodes=spots.names,
            genes=genes,
            gene_ids=gene_ids,
            coords=spots.coords,
            array=spots.array,
            technology="Visium HD",
            pitch_um=spots.pitch_um,
            spot_um=spots.spot_um,
            um_per_px=um_per_px,
            um_per_px_source=um_source,
            image=None,
            low_resolution=_low_resolution(folder, scales),
            notes=(*notes, *spots.notes),
        )


@dataclass(frozen=True)
class _Spots:
    """Bins or pseudo-spots, with the attributes of a `Sample`."""

    counts: csr_matrix
    names: list[str]
    coords: NDArray[np.float64]
    array: NDArray[np.int32]
    pitch_um: float
    spot_um: float
    notes: tuple[str, ...]


def _bins(
    slide: str, path: Path, matrix: MatrixRows, coords: NDArray[np.float64], array: NDArray[np.int32], bin_um: int
) -> _Spots:
    """Take the bins that have a place as they are."""
    if matrix.n_counts * BYTES_A_COUNT > free_memory():
        problem = f"its {matrix.n_counts:,} counts take {matrix.n_counts * BYTES_A_COUNT / 1e9:,.1f} GB of memory"
        raise SlideError(slide, path, problem, "give --bin 16 or --pseudo-spots 55")
    keep = np.flatnonzero(np.isfinite(coords[:, 0]))
    counts = matrix.read(0, len(matrix))
    note = f"its spots are bins of {bin_um} um; --bin 8, --bin 16 and --pseudo-spots 55 choose what they are"
    names = [matrix.barcodes[i].decode() for i in keep]
    return _Spots(counts[keep], names, coords[keep], array[keep], float(bin_um), float(bin_um), (note,))


def _pseudo_spots(
    matrix: MatrixRows, coords: NDArray[np.float64], um_per_px: float, spot_um: float, bin_um: int
) -> _Spots:
    """Pool the bins that have a place."""

    def chunks() -> Iterator[Points]:
        for part, counts in matrix.blocks(POINTS_AT_ONCE):
            keep = np.flatnonzero(np.isfinite(coords[part, 0]))
            yield coords[part][keep] * um_per_px, counts[keep]

    if spot_um <= bin_um:
        raise InputError(f"--pseudo-spots {spot_um:g}: no larger than the bins of {bin_um} um to be pooled")
    spots = pool(chunks(), spot_um)
    notes = (f"bins of {bin_um} um are {spots.notes[0]}", *spots.notes[1:])
    places = spots.centers / um_per_px
    return _Spots(spots.counts, spots.names, places, spots.array, spots.pitch_um, spots.spot_um, notes)


def _bin_folder(source: Path, um: int) -> Path:
    """Return where the bins of a size are, or would be."""
    name = f"square_{um:03d}um"
    if source.name == name:
        return source
    places = [source / name, source / BINNED / name, source / "outs" / BINNED / name]
    return next((place for place in places if place.is_dir()), places[1])


def _name(source: Path) -> str:
    """Propose an ID: the name of the folder above `outs/`."""
    place = source.absolute()
    while place.name.startswith("square_") or place.name == BINNED:
        place = place.parent
    return sample_name(place)


def _bin_size(source: Path, options: ImportOptions) -> int:
    """Return which bins are read: the finest ones for pseudo-spots, else those that are asked for."""
    bins = [um for um in BINS_UM if _bin_folder(source, um).is_dir()]
    wanted = bins[0] if options.pseudo_spots is not None else int(options.bin)
    if wanted not in bins:
        there = " and ".join(f"{um} um" for um in bins)
        advice = "--bin 16, or --pseudo-spots 55 to pool bins" if 16 in bins else "--pseudo-spots 55 to pool bins"
        raise InputError(f"{source}: no bins of {wanted} um in it, only of {there}; give {advice}")
    return wanted


def _read_scales(slide: str, file: Path) -> dict[str, Any]:
    try:
        scales = read_json(file)
    except ValueError as error:
        raise SlideError(slide, file, str(error), COPY_OUTS) from error
    if not isinstance(scales, dict):
        raise SlideError(slide, file, "holds no names with values", COPY_OUTS)
    return scales


def _number(scales: dict[str, Any], name: str) -> float | None:
    value = scales.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if np.isfinite(value) and value > 0 else None


def _low_resolution(folder: Path, scales: dict[str, Any]) -> tuple[Path, float] | None:
    image, factor = folder / "spatial" / LOW_RESOLUTION, _number(scales, "tissue_lowres_scalef")
    return (image, factor) if factor is not None and image.is_file() else None


def _places(slide: str, file: Path, matrix: MatrixRows) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Return the (N, 2) places of the bins of a matrix, NaN where there is none, and their array row and column."""
    columns = parquet_columns(slide, file, BIN_COLUMNS)
    import pyarrow as pa
    import pyarrow.compute as pc

    named = pa.array(matrix.barcodes, pa.binary())
    rows = pc.index_in(named, value_set=pc.cast(columns["barcode"], pa.binary()))
    known = pc.is_valid(rows).to_numpy(zero_copy_only=False)
    if not known.any():
        problem = f"has none of the barcodes of {BIN_COUNTS} ({matrix.barcodes[0].decode()})"
        raise SlideError(slide, file, problem, COPY_OUTS)
    at = rows.to_numpy(zero_copy_only=False)[known].astype(np.int64)
    coords = np.full((len(known), 2), np.nan)
    array = np.full((len(known), 2), -1, dtype=np.int32)
    for axis, name in enumerate(("pxl_col_in_fullres", "pxl_row_in_fullres")):
        coords[known, axis] = columns[name].to_numpy(zero_copy_only=False)[at]
    for axis, name in enumerate(("array_row", "array_col")):
        array[known, axis] = columns[name].to_numpy(zero_copy_only=False)[at]
    bad = ~(abs(coords[known]) <= MAX_POSITION).all(axis=1)
    if bad.any():
        raise SlideError(slide, file, f"{bad.sum():,} bins have no position, or one that no image reaches", COPY_OUTS)
    return coords, array


def _pixel_size(
    slide: str, file: Path, scales: dict[str, Any], coords: NDArray[np.float64], array: NDArray[np.int32], bin_um: int
) -> tuple[float, str]:
    """Return the stated pixel size, which the distance of bins must confirm, or that by this distance; and its source.

    Raises:
        SlideError: The two differ, or the file states other bins.
    """
    stated_bin, stated = _number(scales, "bin_size_um"), _number(scales, "microns_per_pixel")
    if stated_bin is not None and stated_bin != bin_um:
        raise SlideError(slide, file, f"states bins of {stated_bin:g} um in a folder of bins of {bin_um} um", COPY_OUTS)
    known = np.flatnonzero(np.isfinite(coords[:, 0]))
    some = known[:: max(1, len(known) // BINS_MEASURED)]
    design = np.column_stack([array[some], np.ones(len(some))])
    vectors, _, rank, _ = np.linalg.lstsq(design, coords[some], rcond=None)
    measured = bin_um / float(np.sqrt((vectors[:2] ** 2).sum(axis=1).mean())) if rank == 3 else None
    if stated is None:
        if measured is None:
            raise SlideError(slide, file, "no microns_per_pixel", COPY_OUTS)
        return measured, f"the bins of {bin_um} um"
    if measured is not None and abs(measured / stated - 1) > MAX_DISAGREEMENT:
        problem = f"microns_per_pixel is {stated:.4g}, but by its bins of {bin_um} um a pixel has {measured:.4g} um"
        raise SlideError(slide, file, problem, COPY_OUTS)
    return stated, f"microns_per_pixel of {SCALES}"


def _notes(matrix: MatrixRows, coords: NDArray[np.float64]) -> tuple[str, ...]:
    notes = []
    if without := int(np.isnan(coords[:, 0]).sum()):
        notes.append(f"{without:,} of {len(matrix):,} bins have no position and are left out")
    if matrix.n_others:
        notes.append(f"{matrix.n_others} features that are no genes are left out")
    return tuple(notes)
