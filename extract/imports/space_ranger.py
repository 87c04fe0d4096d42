"""The `outs/` folder of Space Ranger 1, 2 and 3 and later for slides of Visium (not Visium HD)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from extract.imports.options import ImportOptions
from extract.imports.pitch import VISIUM_PITCH_UM, VISIUM_SPOT_UM, measure_pitch, visium_scale
from extract.imports.sample import Sample, sample_name
from extract.imports.tenx_matrix import MATRIX_FILES, FeatureMatrix, read_matrix_folder, read_matrix_h5
from extract.slides.given_spots import read_positions
from extract.slides.virtual_spots import VirtualSpots
from hist_cache.errors import SlideError
from hist_cache.texts import first_names, read_json

COUNTS_FILE, COUNTS_FOLDER = "filtered_feature_bc_matrix.h5", "filtered_feature_bc_matrix"
POSITION_FILES = ("tissue_positions.csv", "tissue_positions.parquet", "tissue_positions_list.csv")  # 2, 3, 1
SCALES_FILE, LOW_RESOLUTION_FILE, LOW_RESOLUTION_KEY = (
    "scalefactors_json.json",
    "tissue_lowres_image.png",
    "tissue_lowres_scalef",
)
COPY_ALL = "copy the whole outs/ folder of Space Ranger"


class SpaceRangerReader:
    """Reads the spots in tissue; the pixel size is that by which they are 100 um apart."""

    name = "Space Ranger"
    expected = f"an outs/ folder with {COUNTS_FILE} and spatial/"
    uses: tuple[str, ...] = ()

    def recognises(self, source: Path) -> bool:
        """Tell whether the folder, or `outs` in it, has spatial/ with positions beside counts."""
        outs = _outs(source)
        counts = [outs / COUNTS_FILE, outs / COUNTS_FOLDER / MATRIX_FILES[0]]
        return (outs / "spatial").is_dir() and any(file.exists() for file in counts)

    def read(self, source: Path, options: ImportOptions) -> Sample:
        """Read the folder; see `SampleReader`."""
        outs, slide = _outs(source), options.id or sample_name(source)
        folder = outs / "spatial"
        scales = _read_scales(slide, folder / SCALES_FILE)
        counts = _read_counts(slide, outs)
        spots = read_positions(slide, _positions_file(slide, folder))
        rows, notes = _in_both(slide, outs, counts, spots)
        spot_rows = _rows_of(spots, [counts.barcodes[i] for i in rows])
        coords, array = spots.coords[spot_rows], spots.array[spot_rows]
        scale = visium_scale(measure_pitch(coords, array), scales.get("spot_diameter_fullres"))
        low, factor = folder / LOW_RESOLUTION_FILE, scales.get(LOW_RESOLUTION_KEY)
        return Sample(
            name=slide,
            counts=counts.counts[rows],
            barcodes=[counts.barcodes[i] for i in rows],
            genes=counts.genes,
            gene_ids=counts.gene_ids,
            coords=coords,
            array=array,
            technology="Visium",
            pitch_um=VISIUM_PITCH_UM,
            spot_um=VISIUM_SPOT_UM,
            um_per_px=scale.um_per_px if scale else None,
            um_per_px_source=scale.source if scale else "",
            image=None,
            low_resolution=(low, factor) if factor is not None and low.is_file() else None,
            notes=(*counts.notes, *notes, *(scale.notes if scale else ())),
        )


def _outs(source: Path) -> Path:
    return source / "outs" if (source / "outs").is_dir() else source


def _read_counts(slide: str, outs: Path) -> FeatureMatrix:
    file = outs / COUNTS_FILE
    return read_matrix_h5(slide, file) if file.exists() else read_matrix_folder(slide, outs / COUNTS_FOLDER)


def _read_scales(slide: str, file: Path) -> dict[str, float]:
    """Read the numbers of scalefactors_json.json; none where the file is not there."""
    if not file.exists():
        return {}
    try:
        values: Any = read_json(file)
    except ValueError as error:
        raise SlideError(slide, file, str(error), COPY_ALL) from error
    if not isinstance(values, dict):
        raise SlideError(slide, file, "holds no names with values", COPY_ALL)
    if "bin_size_um" in values:
        raise SlideError(slide, file, "bins of Visium HD", "give the outs/ folder that has binned_outputs/ in it")
    numbers = {
        key: float(v) for key, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool) and v > 0
    }
    return {key: value for key, value in numbers.items() if np.isfinite(value)}


def _positions_file(slide: str, folder: Path) -> Path:
    files = [folder / name for name in POSITION_FILES]
    found = next((file for file in files if file.exists()), None)
    if found is None:
        raise SlideError(slide, folder, f"none of {first_names(POSITION_FILES)} in it", COPY_ALL)
    return found


def _in_both(slide: str, outs: Path, counts: FeatureMatrix, spots: VirtualSpots) -> tuple[list[int], tuple[str, ...]]:
    """Return the rows of the counts whose spots have a place on the tissue, and lines about those that are left out."""
    placed = set(spots.names)
    rows = [i for i, barcode in enumerate(counts.barcodes) if barcode in placed]
    if not rows:
        example = f"{counts.barcodes[0]} and {spots.names[0]}" if counts.barcodes and spots.names else "none"
        raise SlideError(slide, outs, f"counts and positions share no barcode ({example})", COPY_ALL)
    notes = []
    if without := len(counts.barcodes) - len(rows):
        notes.append(f"{without} of {len(counts.barcodes)} spots with counts are not in tissue and left out")
    if empty := len(placed) - len(rows):
        notes.append(f"{empty} of {len(placed)} spots in tissue have no counts and are left out")
    return rows, tuple(notes)


def _rows_of(spots: VirtualSpots, names: list[str]) -> list[int]:
    row = {name: i for i, name in enumerate(spots.names)}
    return [row[name] for name in names]
