"""Predicted spots for other programs: GeoJSON as QuPath imports it, and CSV. Both are written spot by spot.

QuPath (File > Import objects) wants a FeatureCollection in level-0 px. `properties.objectType` makes a feature a
detection; `name` is shown with it, `measurements` has numbers by name and nothing else, and `id` is a UUID. A spot has
the same one in every file, so QuPath notices what it has already.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hist_cache.console import size
from hist_cache.files import atomic_write
from train.predict.predicted import (
    DISAGREEMENT,
    DISTANCE,
    OUT_OF_DISTRIBUTION,
    gene_columns,
    predicted_slide,
    row_blocks,
    spot_diameter,
    um_per_px,
)

if TYPE_CHECKING:
    import anndata

log = logging.getLogger(__name__)

VERTICES = 16  # of the polygon that stands for a circle
MEASUREMENTS = {  # what QuPath calls columns of obs; no gene has such a name
    DISTANCE: "Distance to the training data",
    OUT_OF_DISTRIBUTION: "Out of distribution (1: yes)",
    DISAGREEMENT: "Disagreement of models, mean over genes",
}


def write_geojson(
    path: Path, table: anndata.AnnData, genes: Sequence[str], origin: tuple[float, float] = (0.0, 0.0)
) -> Path:
    """Write each spot as a detection for QuPath: a circle in level-0 px, and its numbers as measurements.

    Args:
        path: the GeoJSON file.
        table: of one slide; X may be a file, which is read some spots at a time.
        genes: names of the genes whose predicted expression is written.
        origin: x and y where QuPath's image begins, in level-0 px. QuPath crops what it opens with OpenSlide to
            `openslide.bounds-x` and `-y`, where a file has them (as MIRAX has), and counts from there.

    Returns:
        The GeoJSON file.

    Raises:
        InputError: A gene was not predicted.
    """
    columns = gene_columns(table, genes)
    slide, names = predicted_slide(table), [str(table.var_names[column]) for column in columns]
    angles = 2 * np.pi * np.arange(VERTICES) / VERTICES
    circle = spot_diameter(table) / 2 * np.stack([np.cos(angles), np.sin(angles)], axis=1) - origin
    with atomic_write(path) as aside, aside.open("w", encoding="ascii") as file:
        file.write('{"type":"FeatureCollection","features":[')
        separator = "\n"
        for spot, (x, y), more, values in _spots(table, columns):
            ring = [[round(x + dx, 2), round(y + dy, 2)] for dx, dy in circle.tolist()]
            measured = {MEASUREMENTS[key]: value for key, value in more.items()} | dict(zip(names, values, strict=True))
            feature = {
                "type": "Feature",
                "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"hist-predict:{slide}/{spot}")),
                "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]},
                "properties": {
                    "objectType": "detection",
                    "name": spot,
                    "measurements": {key: _short(value) for key, value in measured.items() if math.isfinite(value)},
                },
            }
            file.write(separator + json.dumps(feature, separators=(",", ":"), allow_nan=False))
            separator = ",\n"
        file.write("\n]}\n")
    log.info(f"{path}: {table.n_obs:,} spots with {len(columns):,} genes, {size(path.stat().st_size)}")
    return path


def write_spot_table(path: Path, table: anndata.AnnData, genes: Sequence[str]) -> Path:
    """Write a CSV with a row a spot: its name, centre in level-0 px and in um, what is known of it, and the genes.

    Args:
        path: the CSV file.
        table: of one slide; X may be a file, which is read some spots at a time.
        genes: names of the genes whose predicted expression is written.

    Returns:
        The CSV file; what is missing is empty there.

    Raises:
        InputError: A gene was not predicted.
    """
    columns, um = gene_columns(table, genes), um_per_px(table)
    of_spots = [key for key in MEASUREMENTS if key in table.obs]
    head = ["spot", "x_px", "y_px", "x_um", "y_um", *of_spots, *(str(table.var_names[column]) for column in columns)]
    with atomic_write(path) as aside, aside.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        for spot, (x, y), more, values in _spots(table, columns):
            numbers = [more[key] for key in of_spots] + values
            place = [round(length, 2) for length in (x, y, x * um, y * um)]
            writer.writerow([spot, *place, *(_short(value) if math.isfinite(value) else "" for value in numbers)])
    log.info(f"{path}: {table.n_obs:,} spots with {len(columns):,} genes, {size(path.stat().st_size)}")
    return path


def _spots(
    table: anndata.AnnData, columns: list[int]
) -> Iterator[tuple[str, tuple[float, float], dict[str, float], list[float]]]:
    """Name, centre in level-0 px, numbers of obs and predicted expression of each spot."""
    coords = np.asarray(table.obsm["spatial"], dtype=np.float64)
    of_spots: dict[str, Any] = {key: table.obs[key].to_numpy(float) for key in MEASUREMENTS if key in table.obs}
    names = table.obs_names.tolist()
    for start, values in row_blocks(table, columns):
        for i, row in enumerate(values.tolist(), start):
            x, y = coords[i].tolist()
            yield str(names[i]), (x, y), {key: float(part[i]) for key, part in of_spots.items()}, row


def _short(value: float) -> float | int:
    """A number in five digits, without a decimal point where it has none."""
    rounded = float(f"{value:.5g}")
    return int(rounded) if rounded.is_integer() else rounded
