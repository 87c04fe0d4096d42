"""A slide on disk in the HEST-1k layout: `st/ID.h5ad`, `wsis/ID.tif`, `metadata/ID.json`."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hist_cache.console import warn
from hist_cache.errors import InputError, SlideError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

TABLE_FOLDERS = ("st", "adata")  # HEST-1k, HEST-bench
IMAGE_SUFFIXES = (".tif", ".tiff", ".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".jpg", ".jpeg", ".png")
SYMBOL_COLUMNS = (
    "gene_name",
    "gene_names",
    "gene_symbol",
    "gene_symbols",
    "symbol",
    "SYMBOL",
    "feature_name",
)
# (pitch, spot diameter) in um, for slides whose metadata name the technology only.
TECHNOLOGIES = {"Visium": (100.0, 55.0), "Spatial Transcriptomics": (200.0, 100.0)}
PIXEL_SIZE_TOLERANCE = 0.05


@dataclass(frozen=True)
class SlideFiles:
    """Where a slide's three parts are, and what its metadata say."""

    id: str
    image: Path
    table: Path
    metadata: dict[str, Any]
    um_per_px: float
    pitch_um: float  # centre to centre
    spot_um: float  # diameter
    patient: str | None


@dataclass(frozen=True)
class Spots:
    """A slide's spots, in the order of its h5ad.

    barcodes (N,); coords (N, 2) float64, spot centres in level-0 px, x then y; array (N, 2) int32, array_row and
    array_col, -1 if unknown; counts (N, G) raw; genes (G,) symbols.
    """

    barcodes: list[str]
    coords: np.ndarray
    array: np.ndarray
    counts: csr_matrix
    genes: list[str]

    def __len__(self) -> int:
        return len(self.barcodes)


def table_folder(root: Path) -> Path:
    """The folder of h5ad files; `InputError` where `root` is not in the HEST layout."""
    for name in TABLE_FOLDERS:
        if (root / name).is_dir() and (root / "wsis").is_dir():
            return root / name
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the HEST data with --data-root or $HIST_DATA")
    raise InputError(
        f"{root}: not a HEST folder (no st/ and wsis/ in it); --data-root names the folder that holds them"
    )


def slides_on_disk(root: Path) -> list[str]:
    """IDs of all slides that have a table under `root`, sorted."""
    return sorted(p.stem for p in table_folder(root).glob("*.h5ad"))


def is_absent(root: Path, slide: str) -> bool:
    """True where nothing of the slide is under `root`: not downloaded, rather than damaged."""
    parts = [table_folder(root) / f"{slide}.h5ad", root / "metadata" / f"{slide}.json"]
    return not any(p.exists() for p in parts) and not list((root / "wsis").glob(f"{slide}.*"))


def find_slide(root: Path, slide: str) -> SlideFiles:
    """Locate a slide and read its metadata; `SlideError` names what is missing."""
    table = table_folder(root) / f"{slide}.h5ad"
    if not table.exists():
        raise SlideError(slide, table, "no such file", "hist-extract --download fetches missing slides")
    images = [root / "wsis" / f"{slide}{suffix}" for suffix in IMAGE_SUFFIXES]
    image = next((p for p in images if p.exists()), None)
    if image is None:
        raise SlideError(slide, images[0], "no image", "hist-extract --download fetches missing slides")
    file, metadata = read_metadata(root, slide)

    um_per_px = _number(metadata, "pixel_size_um_estimated")
    if not um_per_px or um_per_px <= 0:
        raise SlideError(slide, file, "no pixel size", "set pixel_size_um_estimated (um per level-0 pixel) in it")
    embedded = _number(metadata, "pixel_size_um_embedded")
    if embedded and abs(embedded / um_per_px - 1) > PIXEL_SIZE_TOLERANCE:
        warn(
            f"{slide}: embedded pixel size {embedded:.4g} um differs from the estimated {um_per_px:.4g}; "
            "using the latter"
        )

    pitch, diameter = TECHNOLOGIES.get(str(metadata.get("st_technology")), (None, None))
    pitch = _number(metadata, "inter_spot_dist") or pitch
    diameter = _number(metadata, "spot_diameter") or diameter
    if not pitch or not diameter:
        raise SlideError(slide, file, "no spot size", "set spot_diameter and inter_spot_dist (um) in it")
    patient = metadata.get("patient")
    return SlideFiles(
        slide,
        image,
        table,
        metadata,
        um_per_px,
        pitch,
        diameter,
        patient if isinstance(patient, str) else None,
    )


def read_metadata(root: Path, slide: str) -> tuple[Path, dict[str, Any]]:
    """The slide's metadata from `metadata/ID.json`, else from HEST's table `HEST_v*.csv` in `root`."""
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
    """Read and check a slide's h5ad; `SlideError` says what is wrong with it."""
    import anndata
    from scipy.sparse import csr_matrix

    def wrong(problem: str, advice: str = "") -> SlideError:
        return SlideError(files.id, files.table, problem, advice)

    try:
        table = anndata.read_h5ad(files.table)
    except (OSError, KeyError, ValueError) as error:
        raise wrong(f"cannot be read ({str(error).splitlines()[0]})", "copy or download it again") from None
    if table.n_obs == 0:
        raise wrong("it has no spots")
    barcodes = [str(b) for b in table.obs_names]
    if len(set(barcodes)) < len(barcodes):
        twice = next(b for i, b in enumerate(barcodes) if b in barcodes[:i])
        raise wrong(
            f"duplicate barcodes ({twice} and {len(barcodes) - len(set(barcodes)) - 1} more)",
            "make obs_names unique",
        )
    if "spatial" not in table.obsm:
        raise wrong("no obsm['spatial']", "spot centres in level-0 pixels are needed")
    coords = np.asarray(table.obsm["spatial"], dtype=np.float64)[:, :2]
    if not np.isfinite(coords).all():
        raise wrong(f"{int((~np.isfinite(coords)).any(1).sum())} spots have no position")

    counts = csr_matrix(table.X)
    bad = ~np.isfinite(counts.data) | (counts.data < 0)
    if bad.any():
        raise wrong(f"{int(bad.sum()):,} counts are NaN or negative", "X must hold raw counts")
    if (counts.data != np.round(counts.data)).any():
        raise wrong("counts are not whole numbers (normalised?)", "X must hold raw counts")
    counts = counts.astype(np.int32)
    counts.eliminate_zeros()
    counts.sort_indices()
    return Spots(barcodes, coords, _array_indices(table.obs), counts, _symbols(table, wrong))


def _array_indices(obs: Any) -> np.ndarray:
    array = np.full((len(obs), 2), -1, dtype=np.int32)
    if {"array_row", "array_col"} <= set(obs.columns):
        values = obs[["array_row", "array_col"]].to_numpy(dtype=np.float64, na_value=np.nan)
        if np.isfinite(values).all():
            array[:] = np.round(values)
    return array


def _symbols(table: Any, wrong: Any) -> list[str]:
    names = [str(g) for g in table.var_names]
    if sum(g.startswith("ENS") for g in names) > len(names) / 2:
        column = next((c for c in SYMBOL_COLUMNS if c in table.var), None)
        if column is None:
            raise wrong("genes are named by Ensembl id", "add the symbols as a column var['gene_name']")
        symbols = table.var[column].astype(str)
        names = [s if s not in ("", "nan", "None") else e for s, e in zip(symbols, names, strict=True)]
    seen: dict[str, int] = {}
    unique = []
    for name in names:  # repeats get -1, -2, ... as in anndata
        n = seen.get(name, 0)
        seen[name] = n + 1
        unique.append(f"{name}-{n}" if n else name)
    return unique


def _number(metadata: dict[str, Any], key: str) -> float | None:
    """A finite number, or None for absent, null, NaN or empty."""
    try:
        value = float(metadata.get(key) or "nan")
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None
