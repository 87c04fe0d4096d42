"""Legacy Spatial Transcriptomics: a table of counts whose rows or columns are spots such as `10x13`, and their places.

Places are a table with the columns x, y, pixel_x and pixel_y, as ST Spot Detector writes it (`*_selection.tsv`, where
`selected` is 0 for spots beside the tissue), or one whose rows are named `10x13` and have pixels in X and Y.
"""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from extract.imports.options import ImportOptions
from extract.imports.pitch import measure_pitch
from extract.imports.sample import Sample, sample_name
from hist_cache.errors import FileProblemError, InputError, SlideError, slide_error
from hist_cache.metadata import TECHNOLOGIES
from hist_cache.texts import first_names

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

TECHNOLOGY = "Spatial Transcriptomics"
SPOT_NAME = re.compile(r"(\d{1,4})x(\d{1,4})")
TABLE_ENDINGS = (".tsv", ".tsv.gz", ".txt", ".txt.gz", ".csv", ".csv.gz")
PIXEL_COLUMNS = ("pixel_x", "pixel_y")
MAX_TABLE_BYTES = 1_000_000_000  # unpacked; tables of counts have tens of MB
NAMED_SPOTS = "spots must be named by column and row, such as 10x13"
Rows = list[list[str]]
_T = TypeVar("_T")


class SpotTableError(FileProblemError):
    """A table of counts or of positions cannot be used."""


class LegacyReader:
    """Reads a table of counts, and of the spots' positions beside it or of `--positions`."""

    name = TECHNOLOGY
    expected = "a table of counts (.tsv, .csv, also .gz) with spots such as 10x13"
    uses: tuple[str, ...] = ("positions",)

    def recognises(self, source: Path) -> bool:
        """Tell whether it is a file with the ending of a table."""
        return source.is_file() and source.name.lower().endswith(TABLE_ENDINGS)

    def read(self, source: Path, options: ImportOptions) -> Sample:
        """Read both tables; see `SampleReader`."""
        slide = options.id or sample_name(source)
        spots, genes, counts = _read_file(slide, source, read_count_rows)
        positions = Path(options.positions) if options.positions else _positions_beside(source)
        places = _read_file(slide, positions, read_places_of_spots)
        rows = [i for i, spot in enumerate(spots) if spot in places]
        if not rows:
            raise SlideError(slide, positions, f"has none of the spots of {source.name}", "give --positions")
        left_out = len(spots) - len(rows)
        coords = np.array([places[spots[i]] for i in rows])
        array = np.array([spots[i][::-1] for i in rows], dtype=np.int32)  # row, then column
        pitch_um, spot_um = TECHNOLOGIES[TECHNOLOGY]
        measured = measure_pitch(coords, array)
        return Sample(
            name=slide,
            counts=counts[rows],
            barcodes=[f"{x}x{y}" for x, y in (spots[i] for i in rows)],
            genes=genes,
            gene_ids=None,
            coords=coords,
            array=array,
            technology=TECHNOLOGY,
            pitch_um=pitch_um,
            spot_um=spot_um,
            um_per_px=None if measured is None else pitch_um / measured.px,
            um_per_px_source="" if measured is None else f"the pitch of {pitch_um:g} um",
            image=None,
            notes=(f"{left_out} of {len(spots)} spots with counts have no place and are left out",) if left_out else (),
        )


def _read_file(slide: str, path: Path, read: Callable[[Rows], _T]) -> _T:
    try:
        return read(read_cells(path))
    except Exception as error:
        raise slide_error(slide, path, error, "cannot be read") from error


def read_cells(path: Path) -> Rows:
    """Read a table of tabs or commas, packed or not, as lists of cells.

    Raises:
        SpotTableError: It is too large, or empty.
    """
    if not path.is_file():
        raise SpotTableError("no such file")
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
        data = stream.read(MAX_TABLE_BYTES + 1)
    if len(data) > MAX_TABLE_BYTES:
        raise SpotTableError(f"larger than {MAX_TABLE_BYTES / 1e9:g} GB")
    lines = data.decode("utf-8-sig").splitlines()
    separator = "\t" if lines and "\t" in lines[0] else ","
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator) if row]
    if len(rows) < 2:
        raise SpotTableError("no rows in it")
    if len(rows[0]) == len(rows[1]) - 1:  # R writes no name above the names of rows
        rows[0].insert(0, "")
    if bad := next((i for i, row in enumerate(rows) if len(row) != len(rows[0])), None):
        raise SpotTableError(f"row {bad} after the header has {len(rows[bad])} of {len(rows[0])} columns")
    return rows


def read_count_rows(rows: Rows) -> tuple[list[tuple[int, int]], list[str], csr_matrix]:
    """Read a table of counts with spots as rows or as columns.

    Returns:
        (N,) column and row of each spot, (G,) genes, (N, G) counts.

    Raises:
        SpotTableError: Neither rows nor columns are spots, or a cell is no number.
    """
    from scipy.sparse import csr_matrix

    names, header = [row[0] for row in rows[1:]], rows[0][1:]
    try:
        values: NDArray[np.float64] = np.array([row[1:] for row in rows[1:]], dtype=np.float64)
    except ValueError as error:
        raise SpotTableError(f"its cells are no counts ({error})", NAMED_SPOTS) from error
    spots, genes = [_spot(name) for name in names], header
    if None in spots:
        spots, genes, values = [_spot(name) for name in header], names, values.T
    if None in spots:
        raise SpotTableError(f"neither rows ({first_names(names, 2)}) nor columns are spots", NAMED_SPOTS)
    return [spot for spot in spots if spot is not None], genes, csr_matrix(values)


def read_places_of_spots(rows: Rows) -> dict[tuple[int, int], tuple[float, float]]:
    """Read where spots are: (column, row) -> (x, y) in px.

    Raises:
        SpotTableError: Columns are missing, or a cell is no number.
    """
    header = [name.lower() for name in rows[0]]
    column = {name: i for i, name in enumerate(header)}
    try:
        if all(name in column for name in ("x", "y", *PIXEL_COLUMNS)):
            kept = [row for row in rows[1:] if "selected" not in column or float(row[column["selected"]]) != 0]
            spots = [(round(float(row[column["x"]])), round(float(row[column["y"]]))) for row in kept]
            wanted: tuple[str, ...] = PIXEL_COLUMNS
        elif all(name in column for name in ("x", "y")) and _spot(rows[1][0]):
            kept = [row for row in rows[1:] if _spot(row[0])]
            spots = [spot for spot in (_spot(row[0]) for row in kept) if spot]
            wanted = ("x", "y")
        else:
            raise SpotTableError(f"its columns are {first_names(header)}", "x, y, pixel_x and pixel_y are needed")
        places = [(float(row[column[wanted[0]]]), float(row[column[wanted[1]]])) for row in kept]
    except ValueError as error:
        raise SpotTableError(str(error), "positions must be numbers") from error
    return dict(zip(spots, places, strict=True))


def _spot(name: str) -> tuple[int, int] | None:
    match = SPOT_NAME.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def _positions_beside(source: Path) -> Path:
    """Find the one table beside the counts that has the columns of positions."""
    tables = [file for file in sorted(source.parent.iterdir()) if file.name.lower().endswith(TABLE_ENDINGS)]
    found = [file for file in tables if file.is_file() and file != source and _has_pixels(file)]
    if len(found) > 1:
        own = re.compile(re.escape(sample_name(source)) + "[^A-Za-z0-9]")  # A1_selection.tsv of A1.tsv, not of A10.tsv
        found = [file for file in found if own.match(file.name)] or found
    if len(found) != 1:
        names = first_names([file.name for file in found]) or "none"
        raise InputError(f"{source}: which file beside it has its spots' positions ({names})? give --positions")
    return found[0]


def _has_pixels(path: Path) -> bool:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            return b"pixel_x" in stream.readline(10_000)
    except (OSError, EOFError, zlib.error):  # another file, which is damaged
        return False
