"""What a Xenium analyser measured, as points with counts: its transcripts chunk by chunk, or its cells."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from extract.imports.matrix_rows import open_matrix
from extract.imports.parquet import parquet_batches, parquet_columns
from extract.imports.pseudo_spots import Points
from hist_cache.errors import FileProblemError, SlideError, slide_error

if TYPE_CHECKING:
    import pyarrow as pa

TRANSCRIPTS, CELL_COUNTS = "transcripts.parquet", "cell_feature_matrix.h5"
CELLS, CELLS_CSV = "cells.parquet", "cells.csv.gz"
MIN_QUALITY = 20.0  # Phred-scaled; the analyser itself counts no transcripts below it
# Names of probes and codewords that measure no gene; files of newer analysers have a column `is_gene` instead.
CONTROLS = (
    *("NegControlProbe_", "NegControlCodeword_", "antisense_", "BLANK_"),
    *("UnassignedCodeword_", "DeprecatedCodeword_", "Intergenic_Region_"),
)
CELL_COLUMNS = ("cell_id", "x_centroid", "y_centroid")
COPY_XENIUM = "copy the whole output folder of the Xenium analyser"


@dataclass
class Genes:
    """The genes of a slide; those that only transcripts name are added while these are read.

    Attributes:
        names: Gene symbols, each once.
        ids: Their Ensembl ids; None where one is not known.
    """

    names: list[str] = field(default_factory=list)
    ids: list[str] | None = None

    @classmethod
    def of_panel(cls, slide: str, path: Path) -> Genes:
        """Read all genes of the panel from the table of cells, also those of no transcript; none where it is absent."""
        if not path.is_file():
            return cls()
        with open_matrix(slide, path) as matrix:
            panel = dict(zip(reversed(matrix.genes), reversed(matrix.gene_ids), strict=True))
        names = sorted(panel)
        return cls(names, [panel[name] for name in names])

    def numbers(self, names: list[str]) -> NDArray[np.int64]:
        """Return the numbers of genes by their names; new names get new numbers."""
        number = {name: i for i, name in enumerate(self.names)}
        for name in names:
            if name not in number:
                number[name] = len(self.names)
                self.names.append(name)
                self.ids = None
        return np.array([number[name] for name in names], dtype=np.int64)


@dataclass
class Counted:
    """What was read, and what of it was left out.

    Attributes:
        total: Number of transcripts.
        low: Those whose quality is too low.
        controls: Those of controls, of the others.
        cells: Number of cells, where these were read.
        n_others: Features of the cells' table that are no genes.
    """

    total: int = 0
    low: int = 0
    controls: int = 0
    cells: int = 0
    n_others: int = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user must know of it."""
        if self.cells:
            others = f"; {self.n_others} features that are no genes are left out" if self.n_others else ""
            return (f"no {TRANSCRIPTS}: the counts of {self.cells:,} whole cells are placed at their centres{others}",)
        return (
            f"of {self.total:,} transcripts {self.low:,} with a quality (qv) below {MIN_QUALITY:g} and "
            f"{self.controls:,} of controls are left out",
        )


def transcripts(slide: str, path: Path, genes: Genes, counted: Counted) -> Iterator[Points]:
    """Read the transcripts of genes that are of sufficient quality.

    Args:
        slide: ID of the slide, for messages.
        path: transcripts.parquet.
        genes: The genes; new ones are added.
        counted: What was read is added to it.

    Yields:
        (n, 2) positions in um, and (n, G) counts, one in each row.

    Raises:
        SlideError: The file cannot be read.
    """
    from scipy.sparse import csr_matrix

    needed = ("x_location", "y_location", "feature_name", "qv")
    for batch in parquet_batches(slide, path, needed, optional=("is_gene",)):
        names, feature = _features(slide, path, batch["feature_name"])
        good = _floats(batch["qv"]) >= MIN_QUALITY
        if "is_gene" in batch:
            of_gene = batch["is_gene"].to_numpy(zero_copy_only=False).astype(bool)
        else:
            of_gene = np.array([not name.startswith(CONTROLS) for name in names], dtype=bool)[feature]
        keep = np.flatnonzero(good & of_gene)
        counted.total += len(good)
        counted.low += int((~good).sum())
        counted.controls += int((good & ~of_gene).sum())
        points = np.stack([_floats(batch["x_location"])[keep], _floats(batch["y_location"])[keep]], axis=1)
        if not np.isfinite(points).all():
            raise SlideError(slide, path, "transcripts without a position", COPY_XENIUM)
        used = np.unique(feature[keep])
        number = np.zeros(len(names), dtype=np.int64)
        number[used] = genes.numbers([names[i] for i in used])
        ones, ends = np.ones(len(keep), dtype=np.int32), np.arange(len(keep) + 1)
        yield points, csr_matrix((ones, number[feature[keep]], ends), shape=(len(keep), max(1, len(genes.names))))


def cells(slide: str, folder: Path, genes: Genes, counted: Counted) -> Iterator[Points]:
    """Read the cells: `cell_feature_matrix.h5` with `cells.parquet` or `cells.csv.gz`.

    Args:
        slide: ID of the slide, for messages.
        folder: The folder with these files.
        genes: The genes of the table.
        counted: What was read is added to it.

    Yields:
        (n, 2) centres in um, and (n, G) counts.

    Raises:
        SlideError: A file is missing or cannot be read.
    """
    from scipy.sparse import coo_matrix

    path = folder / CELLS if (folder / CELLS).is_file() else folder / CELLS_CSV
    columns = _cell_table(slide, path)
    row = {str(cell): i for i, cell in enumerate(columns["cell_id"])}
    centers = np.stack([columns["x_centroid"], columns["y_centroid"]], axis=1).astype(np.float64)
    if not np.isfinite(centers).all():
        raise SlideError(slide, path, "cells without a position", COPY_XENIUM)
    with open_matrix(slide, folder / CELL_COUNTS) as matrix:
        places = [row.get(cell.decode(), -1) for cell in matrix.barcodes]
        if -1 in places:
            missing = matrix.barcodes[places.index(-1)].decode()
            raise SlideError(slide, path, f"has no cell {missing} of {CELL_COUNTS}", COPY_XENIUM)
        counts = matrix.read(0, len(matrix))
        counted.cells, counted.n_others = len(matrix), matrix.n_others
        names = matrix.genes
    number = genes.numbers(names)
    counts = counts.tocoo()
    shape = (counts.shape[0], len(genes.names))
    yield centers[places], coo_matrix((counts.data, (counts.row, number[counts.col])), shape=shape).tocsr()


def _cell_table(slide: str, path: Path) -> dict[str, Any]:
    """Read the columns of the cells, from either kind of file."""
    if path.name == CELLS:
        columns = parquet_columns(slide, path, CELL_COLUMNS)
        return {name: _texts(v) if name == "cell_id" else _floats(v) for name, v in columns.items()}
    try:
        if not path.is_file():
            raise FileProblemError("no such file", COPY_XENIUM)
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            if missing := [name for name in CELL_COLUMNS if name not in (reader.fieldnames or ())]:
                raise FileProblemError(f"no column {missing[0]}", COPY_XENIUM)
            rows = [[line[name] for name in CELL_COLUMNS] for line in reader]
        x, y = (np.array([line[axis] for line in rows], dtype=np.float64) for axis in (1, 2))
    except Exception as error:
        raise slide_error(slide, path, error, "cannot be read") from error
    return {"cell_id": [line[0] for line in rows], "x_centroid": x, "y_centroid": y}


def _features(slide: str, path: Path, column: pa.Array) -> tuple[list[str], NDArray[np.int64]]:
    """Return the names in a column, and (n,) the number of each row's name among them."""
    import pyarrow as pa

    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    if encoded.null_count:
        raise SlideError(slide, path, "transcripts without a feature_name", COPY_XENIUM)
    return _texts(encoded.dictionary), encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)


def _texts(column: pa.Array) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in column.to_pylist()]


def _floats(column: pa.Array) -> NDArray[np.float64]:
    return column.to_numpy(zero_copy_only=False).astype(np.float64)
