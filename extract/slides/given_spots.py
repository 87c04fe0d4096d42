"""Spots at places that the user gives: a CSV or Parquet file, Visium's own list of spots, or an h5ad file."""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from extract.slides.virtual_spots import VirtualSpots
from hist_cache.errors import FileProblemError, SlideError, slide_error
from hist_cache.spots import MAX_COUNT, MAX_POSITION, read_places
from hist_cache.texts import bad_name, first_names, read_text

log = logging.getLogger(__name__)

NAME_COLUMNS = ("barcode", "spot", "id")
VISIUM_COLUMNS = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")
ARRAY_COLUMNS = ("array_row", "array_col")
NEEDED = "a header with x and y (level-0 px) is needed, or Visium's tissue_positions.csv, or an .h5ad"
Columns = dict[str, list[str]]  # a column by name


class CoordsError(FileProblemError):
    """A file of coordinates cannot be used."""


def read_coords(slide: str, path: Path, size: tuple[int, int]) -> VirtualSpots:
    """Read the spots of a slide from a file.

    Args:
        slide: ID of the slide, for messages.
        path: A CSV file with a header and columns x and y in level-0 px, perhaps with names of the spots (a column
            barcode, spot or id, or else the first one) and array_row and array_col; Space Ranger's
            tissue_positions.csv, .parquet or tissue_positions_list.csv, of which spots that are not in tissue are left
            out; or an .h5ad with obsm['spatial'].
        size: Width and height of the slide, level-0 px.

    Returns:
        The spots in the order of the file.

    Raises:
        SlideError: The file cannot be read, a spot has no place, a name is repeated, or most spots lie outside.
    """
    spots = read_positions(slide, path)
    _check_inside(slide, path, spots.coords, size)
    return spots


def read_positions(slide: str, path: Path) -> VirtualSpots:
    """Read the spots of a file as `read_coords` does, wherever they lie.

    Raises:
        SlideError: The file cannot be read, a spot has no place, or a name is repeated.
    """
    suffix = path.suffix.lower()
    if suffix == ".h5ad":
        return VirtualSpots(*read_places(slide, path))
    try:
        return _from_columns(_read_parquet(path) if suffix == ".parquet" else _read_columns(path))
    except Exception as error:
        raise slide_error(slide, path, error, "cannot be read") from error


def _check_inside(slide: str, path: Path, coords: NDArray[np.float64], size: tuple[int, int]) -> None:
    if not len(coords):
        raise SlideError(slide, path, "no spots in it")
    outside = int(((coords < 0) | (coords >= size)).any(axis=1).sum())
    problem = f"{outside} of {len(coords)} spots lie outside the image"
    if outside > len(coords) / 2:
        problem += f" ({size[0]} x {size[1]} px)"
        raise SlideError(slide, path, problem, "coordinates must be x and y in level-0 pixels of this image")
    if outside:
        log.warning(f"{slide}: {path}: {problem}; white there")


def _read_columns(path: Path) -> Columns:
    """Read a CSV file as columns; names in lower case."""
    try:
        rows = [row for row in csv.reader(read_text(path).splitlines()) if row]
    except (ValueError, csv.Error) as error:
        raise CoordsError(str(error), NEEDED) from error
    if not rows:
        raise CoordsError("an empty file", NEEDED)
    # Space Ranger writes no header before version 2.0.
    headless = len(rows[0]) == len(VISIUM_COLUMNS) and all(_is_number(cell) for cell in rows[0][1:])
    names = list(VISIUM_COLUMNS) if headless else [name.strip().lower() for name in rows[0]]
    rows = rows if headless else rows[1:]
    short = next((i for i, row in enumerate(rows) if len(row) < len(names)), None)
    if short is not None:
        raise CoordsError(f"row {short + 1} after the header has {len(rows[short])} of {len(names)} columns", NEEDED)
    return {name: [row[i].strip() for row in rows] for i, name in reversed(list(enumerate(names)))}


def _read_parquet(path: Path) -> Columns:
    """Read a Parquet file as columns; names in lower case."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise CoordsError("Parquet files need pyarrow", "pip install 'hist-cache[parquet]'") from None
    if not path.is_file():
        raise CoordsError("no such file", NEEDED)
    table = pyarrow.parquet.read_table(path)
    columns = zip(table.column_names, table.columns, strict=True)
    return {name.strip().lower(): [str(v) for v in column.to_pylist()] for name, column in reversed(list(columns))}


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _from_columns(table: Columns) -> VirtualSpots:
    if all(name in table for name in VISIUM_COLUMNS[1:]):
        in_tissue = _numbers(table, ["in_tissue"])[:, 0] != 0
        places = ("pxl_col_in_fullres", "pxl_row_in_fullres")
    elif "x" in table and "y" in table:
        in_tissue = np.ones(len(table["x"]), dtype=bool)
        places = ("x", "y")
    else:
        raise CoordsError(f"its columns are {first_names(list(reversed(table)))}", NEEDED)
    coords = _numbers(table, places)
    if far := int((abs(coords) > MAX_POSITION).any(axis=1).sum()):
        raise CoordsError(f"{far} spots lie at {abs(coords).max():.3g} px", "no image is that large")
    array = np.full(coords.shape, -1, dtype=np.int32)
    if all(name in table for name in ARRAY_COLUMNS):
        stated = _numbers(table, ARRAY_COLUMNS)
        if (stated == np.round(stated)).all() and (abs(stated) <= MAX_COUNT).all():
            array = stated.astype(np.int32)
    names = _names(table, len(coords))
    return VirtualSpots(
        [name for name, keep in zip(names, in_tissue, strict=True) if keep], coords[in_tissue], array[in_tissue]
    )


def _numbers(table: Columns, columns: Sequence[str]) -> NDArray[np.float64]:
    """Return columns as (N, k) finite numbers."""
    values = []
    for name in columns:
        cells = table[name]
        if (bad := next((cell for cell in cells if not _is_number(cell)), None)) is not None:
            raise CoordsError(f"{name} is {bad[:40]!a} in a row", "it must be a number")
        values.append(np.array(cells, dtype=np.float64))
    numbers = np.stack(values, axis=1)
    if unknown := int((~np.isfinite(numbers)).any(axis=1).sum()):
        raise CoordsError(f"{unknown} spots have no finite {' and '.join(columns)}", "leave these spots out")
    return numbers


def _names(table: Columns, n: int) -> list[str]:
    """Return the names of the spots; numbered ones where the file has none."""
    first = next(reversed(table))
    column = next((name for name in NAME_COLUMNS if name in table), first)
    if column in ("x", "y", *VISIUM_COLUMNS[1:]):
        return [f"spot{i + 1}" for i in range(n)]
    names = table[column]
    if problem := bad_name(names):
        raise CoordsError(f"its column {column!r} has {problem}", "name each spot, or leave that column out")
    occurrences = Counter(names)
    if repeats := n - len(occurrences):
        repeated = next(name for name, times in occurrences.items() if times > 1)
        raise CoordsError(f"duplicate names of spots ({repeated} and {repeats - 1} more)", "make them unique")
    return names
