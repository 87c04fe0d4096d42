"""What is written of a predicted slide: an h5ad that scanpy and squidpy open, filled some spots at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from hist_cache.cached_slide import CachedSlide
from hist_cache.files import atomic_file
from hist_cache.h5ad import name_pictures
from hist_cache.interrupts import held_interrupts
from train.experiments.outputs import squidpy_picture

RECORD = "hist_predict"  # in `uns`: what the predictions were made from
BESIDE = (".png", ".html", ".geojson", ".csv", ".zarr", ".extras.json")  # endings of files that show an h5ad
CHUNK_ROWS = 1024  # spots a chunk of the file
Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class SlideTable:
    """All of an h5ad but its matrices.

    Attributes:
        name: Of the slide.
        slide: In the cache.
        kept: Rows of the spots that are predicted.
        genes: Names.
        unit: Of the expression.
    """

    name: str
    slide: CachedSlide
    kept: NDArray[np.int64]
    genes: list[str]
    unit: str

    def table(self) -> anndata.AnnData:
        """As anndata has it."""
        spots = [self.slide.barcodes[row] for row in self.kept]
        obs = pd.DataFrame({"slide": pd.Categorical([self.name] * len(spots))}, index=spots)
        return anndata.AnnData(
            obs=obs,
            var=pd.DataFrame(index=self.genes),
            obsm={"spatial": self.slide.coords[self.kept]},
            uns={
                "expression": self.unit,
                "spatial": {self.name: squidpy_picture(self.slide)},
            },
        )


class TableWriter:
    """An h5ad that is being written: matrices in parts, the rest at the end."""

    def __init__(self, file: h5py.File, table: anndata.AnnData, layers: Sequence[str]) -> None:
        self._file = file
        self._matrices = {"X": self._matrix("X", table.shape)}
        self._matrices |= {name: self._matrix(f"layers/{name}", table.shape) for name in layers}

    def _matrix(self, name: str, shape: tuple[int, int]) -> h5py.Dataset:
        if name in self._file:  # new versions of anndata write that there is none
            del self._file[name]
        chunks = (min(CHUNK_ROWS, shape[0]), min(64, shape[1]))
        dataset = self._file.create_dataset(name, shape, np.float32, chunks=chunks, compression="gzip")
        dataset.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        return dataset

    def put(self, start: int, **matrices: Matrix) -> None:
        """Write rows from `start` on; `X` and layers by name."""
        for name, values in matrices.items():
            self._matrices[name][start : start + len(values)] = values

    def read_all(self) -> Matrix:
        """All predictions `(N, G)`, back from the file."""
        values: Matrix = self._matrices["X"][:]
        return values

    def finish(self, columns: Mapping[str, NDArray[Any]], record: dict[str, Any]) -> None:
        """Add columns to `obs`, and what the predictions were made from to `uns`."""
        from anndata.io import read_elem, write_elem

        obs = read_elem(self._file["obs"])
        write_elem(self._file, "obs", obs.assign(**columns))
        write_elem(self._file["uns"], RECORD, record)


@contextmanager
def write_table(path: Path, table: SlideTable, layers: Sequence[str]) -> Iterator[TableWriter]:
    """Write an h5ad, which gets its name when the block ends.

    Args:
        path: The file.
        table: All but the matrices.
        layers: Names of further matrices beside `X`.
    """
    from anndata.io import write_elem

    content = table.table()
    with held_interrupts(), atomic_file(path) as raw, h5py.File(raw, "w") as file:
        write_elem(file, "/", content, dataset_kwargs={"compression": "gzip"})
        file.pop("raw", None)  # new versions of anndata write that there is none, which old ones cannot read
        name_pictures(file)
        yield TableWriter(file, content, layers)


def beside(path: Path) -> list[Path]:
    """The files that may show the predictions in an h5ad, beside it."""
    return [path.with_name(f"{path.stem}{ending}") for ending in BESIDE]


def remove(path: Path) -> None:
    """Remove a file or a folder that may be there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def read_record(path: Path) -> dict[str, Any]:
    """What predictions were made from; {} where there are none, or the file cannot be read."""
    from anndata.io import read_elem

    try:
        with h5py.File(path, "r", locking=False) as file:
            record = read_elem(file[f"uns/{RECORD}"])
    except Exception:  # of any type, where the file is damaged: it is written again
        return {}
    return record if isinstance(record, dict) else {}


def mean_of_spots(path: Path) -> tuple[list[str], NDArray[np.float64]]:
    """Names of the genes, and the mean over all spots of each, of predictions; read some spots at a time."""
    from anndata.io import read_elem

    with h5py.File(path, "r", locking=False) as file:
        genes = list(read_elem(file["var"]).index)
        x = file["X"]
        total = sum(x[i : i + CHUNK_ROWS].sum(0, dtype=np.float64) for i in range(0, len(x), CHUNK_ROWS))
        return genes, total / len(x)
