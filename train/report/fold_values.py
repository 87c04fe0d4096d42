"""What a fold predicted and what was measured, without the rest of its predictions, so that many folds can be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from hist_cache.runs import PANEL, PREDICTIONS, Fold, readable_file

RADIUS_PREFIX = "radius_"


@dataclass(frozen=True)
class FoldValues:
    """Predictions of the test spots of a fold.

    Attributes:
        genes: Names of the G genes.
        predicted: (N, G) expression.
        truth: (N, G) measured expression.
        slides: (N,) ID of each spot's slide.
        coords: (N, 2) centres of the spots, x and y, in level-0 px.
        radii: By name of an embedding (`image_spot`): the spots' mean distance from the origin; empty for a model
            without embeddings.
    """

    genes: list[str]
    predicted: np.ndarray
    truth: np.ndarray
    slides: np.ndarray
    coords: np.ndarray
    radii: dict[str, float]


def read_values(fold: Fold) -> FoldValues:
    """Read the values of a fold's predictions, in a fraction of the time that all of them take.

    Raises:
        InputError: The file cannot be read, or lacks something.
    """
    genes = fold.panel
    with readable_file(fold.folder / PREDICTIONS) as path, h5py.File(path, "r", locking=False) as file:
        values = _read(file, genes)
        if problem := _problem(values):
            raise ValueError(problem)
        return values


def _read(file: h5py.File, genes: list[str]) -> FoldValues:
    from anndata.io import read_elem

    for name in ("layers/truth", "obs/slide", "obsm/spatial"):
        if name not in file:
            place, _, last = name.partition("/")
            raise ValueError(f"no {last} in {place}")
    arrays = [file[name] for name in ("X", "layers/truth")]
    if not all(isinstance(array, h5py.Dataset) for array in arrays):
        raise ValueError("its expression is no array")
    names = [name for name in file["obs"] if name.startswith(RADIUS_PREFIX)]
    var = file["var"]
    if list(map(str, read_elem(var[var.attrs["_index"]]))) != genes:
        raise ValueError(f"its genes are not those of {PANEL}")
    predicted, truth = (np.asarray(array[()]) for array in arrays)
    return FoldValues(
        genes,
        predicted,
        truth,
        np.asarray(read_elem(file["obs/slide"]), dtype=object).astype(str),
        np.asarray(file["obsm/spatial"][()]),
        {name.removeprefix(RADIUS_PREFIX): float(np.mean(file[f"obs/{name}"][()])) for name in names},
    )


def _problem(values: FoldValues) -> str:
    """What the tables and maps of a report need and do not find; "" where all is there."""
    n, coords = len(values.slides), values.coords
    if not n:
        return "no spots in it"
    if any(part.shape != (n, len(values.genes)) for part in (values.predicted, values.truth)):
        return "its expression is not one of spots and genes"
    if coords.shape != (n, 2) or coords.dtype.kind not in "fiu" or not np.isfinite(coords).all():
        return "obsm/spatial holds no x and y of each spot"
    return ""


def read_picture(fold: Fold, slide: str) -> dict[str, Any]:
    """The small picture of a slide and its scales, as `uns["spatial"]` of the predictions has them.

    Raises:
        InputError: They cannot be read.
    """
    from anndata.io import read_elem

    with readable_file(fold.folder / PREDICTIONS) as path, h5py.File(path, "r", locking=False) as file:
        if f"uns/spatial/{slide}" not in file:
            raise ValueError(f"no picture of {slide} in uns/spatial")
        return read_elem(file[f"uns/spatial/{slide}"])
