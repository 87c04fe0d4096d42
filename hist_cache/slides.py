"""A slide on disk in the HEST-1k layout: `st/ID.h5ad`, `wsis/ID.tif`, `metadata/ID.json`."""

from __future__ import annotations

import csv
import json
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hist_cache.errors import InputError, SlideError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

log = logging.getLogger(__name__)

TABLE_FOLDERS = ("st", "adata")  # in HEST-1k and in HEST-bench
IMAGE_SUFFIXES = (".tif", ".tiff", ".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".jpg", ".jpeg", ".png")
SYMBOL_COLUMNS = ("gene_name", "gene_names", "gene_symbol", "gene_symbols", "symbol", "SYMBOL", "feature_name")
# Pitch and spot diameter in um, for slides whose metadata have only the name of the technology.
TECHNOLOGIES = {"Visium": (100.0, 55.0), "Spatial Transcriptomics": (200.0, 100.0)}
MAX_PIXEL_SIZE_ERROR = 0.05  # relative difference between embedded and estimated pixel size that causes no warning


@dataclass(frozen=True)
class SlideFiles:
    """The files of a slide, and what its metadata say.

    Attributes:
        id: Slide ID.
        image: The whole-slide image.
        table: The h5ad file with counts and spot positions.
        metadata: All metadata, by name.
        um_per_px: Pixel size of level 0.
        pitch_um: Distance between the centres of neighbouring spots.
        spot_um: Diameter of a spot.
        patient: Name of the patient; None where it is not known.
    """

    id: str
    image: Path
    table: Path
    metadata: dict[str, Any]
    um_per_px: float
    pitch_um: float
    spot_um: float
    patient: str | None


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


def table_folder(root: Path) -> Path:
    """Return the folder of h5ad files below `root`.

    Raises:
        InputError: `root` does not have the layout of HEST.
    """
    for name in TABLE_FOLDERS:
        if (root / name).is_dir() and (root / "wsis").is_dir():
            return root / name
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the HEST data with --data-root or $HIST_DATA")
    raise InputError(
        f"{root}: not a HEST folder (no st/ and wsis/ in it); --data-root names the folder that holds them"
    )


def slides_on_disk(root: Path) -> list[str]:
    """List the IDs of all slides that have a table below `root`, sorted."""
    return sorted(p.stem for p in table_folder(root).glob("*.h5ad"))


def is_absent(root: Path, slide: str) -> bool:
    """Tell whether `root` has no file of the slide, so that the slide is not downloaded rather than damaged."""
    files = [table_folder(root) / f"{slide}.h5ad", root / "metadata" / f"{slide}.json"]
    return not any(file.exists() for file in files) and not list((root / "wsis").glob(f"{slide}.*"))


def find_slide(root: Path, slide: str) -> SlideFiles:
    """Find the files of a slide and read its metadata.

    Raises:
        InputError: `root` does not have the layout of HEST.
        SlideError: A file is missing, or the metadata have no pixel size or spot size.
    """
    table = table_folder(root) / f"{slide}.h5ad"
    if not table.exists():
        raise SlideError(slide, table, "no such file", "hist-extract --download fetches missing slides")
    images = [root / "wsis" / f"{slide}{suffix}" for suffix in IMAGE_SUFFIXES]
    image = next((p for p in images if p.exists()), None)
    if image is None:
        raise SlideError(slide, images[0], "no image", "hist-extract --download fetches missing slides")
    file, metadata = read_metadata(root, slide)

    um_per_px = _pixel_size(slide, file, metadata)
    pitch, diameter = TECHNOLOGIES.get(str(metadata.get("st_technology")), (None, None))
    pitch = _number(metadata, "inter_spot_dist") or pitch
    diameter = _number(metadata, "spot_diameter") or diameter
    if not pitch or not diameter:
        raise SlideError(slide, file, "no spot size", "set spot_diameter and inter_spot_dist (um) in it")
    patient = metadata.get("patient")
    patient = patient if isinstance(patient, str) else None
    return SlideFiles(slide, image, table, metadata, um_per_px, pitch, diameter, patient)


def _pixel_size(slide: str, file: Path, metadata: dict[str, Any]) -> float:
    """Return the pixel size of level 0 in um, and warn if the image file states another one."""
    um_per_px = _number(metadata, "pixel_size_um_estimated")
    if not um_per_px or um_per_px <= 0:
        raise SlideError(slide, file, "no pixel size", "set pixel_size_um_estimated (um per level-0 pixel) in it")
    embedded = _number(metadata, "pixel_size_um_embedded")
    if embedded and abs(embedded / um_per_px - 1) > MAX_PIXEL_SIZE_ERROR:
        log.warning(
            f"{slide}: embedded pixel size {embedded:.4g} um differs from the estimated {um_per_px:.4g}; "
            "using the latter"
        )
    return um_per_px


def read_metadata(root: Path, slide: str) -> tuple[Path, dict[str, Any]]:
    """Read a slide's metadata from `metadata/ID.json` or, without that file, from HEST's table `HEST_v*.csv`.

    Returns:
        The file that has the metadata, and the metadata by name.

    Raises:
        SlideError: There are no metadata, or they are not JSON.
    """
    file = root / "metadata" / f"{slide}.json"
    if file.exists():
        try:
            metadata = json.loads(file.read_text(encoding="utf-8-sig"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise SlideError(slide, file, f"not JSON ({error})", "download it again") from None
        return file, metadata
    for csv_file in sorted(root.glob("HEST_v*.csv"), reverse=True):
        with csv_file.open(encoding="utf-8-sig", newline="") as lines:
            for row in csv.DictReader(lines):
                if row.get("id") == slide:
                    return csv_file, {k: v for k, v in row.items() if v}
    raise SlideError(slide, file, "no metadata", "hist-extract --download fetches missing slides")


def read_spots(files: SlideFiles) -> Spots:
    """Read and check the h5ad file of a slide.

    Raises:
        SlideError: The file cannot be read; it has no spots, no positions, repeated barcodes or no gene symbols; or
            its counts are not raw.
    """
    import anndata

    table_error = partial(SlideError, files.id, files.table)
    try:
        table = anndata.read_h5ad(files.table)
    except (OSError, KeyError, ValueError) as error:
        raise table_error(f"cannot be read ({str(error).splitlines()[0]})", "copy or download it again") from None
    if table.n_obs == 0:
        raise table_error("it has no spots")
    barcodes = [str(b) for b in table.obs_names]
    if len(set(barcodes)) < len(barcodes):
        repeat = next(b for i, b in enumerate(barcodes) if b in barcodes[:i])
        raise table_error(
            f"duplicate barcodes ({repeat} and {len(barcodes) - len(set(barcodes)) - 1} more)",
            "make obs_names unique",
        )
    if "spatial" not in table.obsm:
        raise table_error("no obsm['spatial']", "spot centres in level-0 pixels are needed")
    coords = np.asarray(table.obsm["spatial"], dtype=np.float64)[:, :2]
    if not np.isfinite(coords).all():
        raise table_error(f"{int((~np.isfinite(coords)).any(1).sum())} spots have no position")
    counts = _raw_counts(table.X, table_error)
    return Spots(barcodes, coords, _array_indices(table.obs), counts, _symbols(table, table_error))


def _raw_counts(x: Any, table_error: Callable[..., SlideError]) -> csr_matrix:
    from scipy.sparse import csr_matrix

    counts = csr_matrix(x)
    invalid = ~np.isfinite(counts.data) | (counts.data < 0)
    if invalid.any():
        raise table_error(f"{int(invalid.sum()):,} counts are NaN or negative", "X must hold raw counts")
    if (counts.data != np.round(counts.data)).any():
        raise table_error("counts are not whole numbers (normalised?)", "X must hold raw counts")
    counts = counts.astype(np.int32)
    counts.eliminate_zeros()
    counts.sort_indices()
    return counts


def _array_indices(obs: Any) -> NDArray[np.int32]:
    array = np.full((len(obs), 2), -1, dtype=np.int32)
    if {"array_row", "array_col"} <= set(obs.columns):
        values = obs[["array_row", "array_col"]].to_numpy(dtype=np.float64, na_value=np.nan)
        if np.isfinite(values).all():
            array[:] = np.round(values)
    return array


def _symbols(table: Any, table_error: Callable[..., SlideError]) -> list[str]:
    """Return the gene symbols of a table, made unique as in anndata: repeats get -1, -2 and so on."""
    names = [str(g) for g in table.var_names]
    if sum(g.startswith("ENS") for g in names) > len(names) / 2:
        column = next((c for c in SYMBOL_COLUMNS if c in table.var), None)
        if column is None:
            raise table_error("genes are named by Ensembl id", "add the symbols as a column var['gene_name']")
        symbols = table.var[column].astype(str)
        names = [s if s not in ("", "nan", "None") else e for s, e in zip(symbols, names, strict=True)]
    occurrences: dict[str, int] = {}
    unique = []
    for name in names:
        n = occurrences.get(name, 0)
        occurrences[name] = n + 1
        unique.append(f"{name}-{n}" if n else name)
    return unique


def _number(metadata: dict[str, Any], key: str) -> float | None:
    """Return a finite number from the metadata, or None if it is missing, null, NaN or empty."""
    try:
        value = float(metadata.get(key) or "nan")
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
