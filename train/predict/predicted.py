"""One predicted slide, as the files that show it read it: its name, its picture, its genes and its sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hist_cache.errors import InputError
from hist_cache.texts import first_names, shortened

if TYPE_CHECKING:
    import anndata

MEASURED, DISAGREEMENT = "truth", "disagreement"  # layers that a table may have beside X
DISTANCE, OUT_OF_DISTRIBUTION = "distance", "out_of_distribution"  # columns of obs that it may have
SPOTS_A_BLOCK = 1024  # X may be a file that is read in parts
GENES_A_BLOCK = 64  # as X has chunks of so many
PERCENTILES = 2, 98  # of values: the ends of their colours


class SlidePicture(NamedTuple):
    """A picture of a whole slide, from its top left corner."""

    pixels: np.ndarray
    """`(h, w, 3)` uint8, RGB."""
    downsample: float
    """Level-0 px per px of the picture."""


def predicted_slide(table: anndata.AnnData) -> str:
    """The slide that a table is of."""
    return str(table.obs["slide"].iloc[0])


def stored_picture(table: anndata.AnnData) -> SlidePicture:
    """The small picture that a table has of its slide."""
    stored = table.uns["spatial"][predicted_slide(table)]
    return SlidePicture(stored["images"]["lowres"], 1 / float(stored["scalefactors"]["tissue_lowres_scalef"]))


def spot_diameter(table: anndata.AnnData) -> float:
    """Diameter of a spot, in level-0 px."""
    return float(table.uns["spatial"][predicted_slide(table)]["scalefactors"]["spot_diameter_fullres"])


def um_per_px(table: anndata.AnnData) -> float:
    """Size of a level-0 px, in um."""
    return float(table.uns["hist_predict"]["um_per_px"])


def gene_columns(table: anndata.AnnData, genes: Sequence[str]) -> list[int]:
    """The columns of named genes, in the order of the names; a name that comes twice counts once.

    Raises:
        InputError: A gene was not predicted.
    """
    place = {str(name): i for i, name in enumerate(table.var_names)}
    wanted = list(dict.fromkeys(genes))
    if unknown := [gene for gene in wanted if gene not in place]:
        raise InputError(
            f"{predicted_slide(table)}: {shortened(unknown[0])} is not among its {len(place):,} predicted genes "
            f"({first_names(list(place))})"
        )
    return [place[gene] for gene in wanted]


def gene_values(table: anndata.AnnData, columns: Sequence[int], layer: str | None = None) -> np.ndarray:
    """Values of some genes, `(N, genes)` float32; where X is a file, only the parts are read that hold them.

    Args:
        table: of one slide.
        columns: of the genes.
        layer: its name; None is the predicted expression.
    """
    matrix: Any = table.X if layer is None else table.layers[layer]
    result = np.empty((table.n_obs, len(columns)), dtype=np.float32)
    for start in sorted({column - column % GENES_A_BLOCK for column in columns}):
        part = np.asarray(matrix[:, start : start + GENES_A_BLOCK])
        for k, column in enumerate(columns):
            if start <= column < start + GENES_A_BLOCK:
                result[:, k] = part[:, column - start]
    return result


def row_blocks(table: anndata.AnnData, columns: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Predicted expression of some genes from the first spot to the last, so that little of it is held at once.

    Args:
        table: of one slide.
        columns: of the genes.

    Yields:
        The number of the first spot, and `(spots, genes)` float32.
    """
    for start in range(0, table.n_obs, SPOTS_A_BLOCK):
        yield start, np.asarray(table.X[start : start + SPOTS_A_BLOCK], dtype=np.float32)[:, list(columns)]


def nearest_distance(coords: np.ndarray) -> float:
    """Median distance of a spot to the nearest other spot, in the unit of `(N, 2)` coordinates; 0 of a single spot."""
    from scipy.spatial import cKDTree

    if len(coords) < 2:
        return 0.0
    return float(np.median(np.asarray(cKDTree(coords).query(coords, 2)[0])[:, 1]))


def value_range(values: np.ndarray) -> list[float]:
    """Between which values colours run: `PERCENTILES` of the finite ones, or all of them where most are equal."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return [0.0, 0.0]
    low, high = np.percentile(finite, PERCENTILES)
    return [float(low), float(high)] if high > low else [float(finite.min()), float(finite.max())]


def spatial_variance(table: anndata.AnnData, neighbors: int = 6) -> np.ndarray:
    """How much of each gene's variance is in space: the covariance of a spot with the mean of the nearest spots.

    It is Moran's I times the variance. So a gene ranks high that both varies and varies smoothly: what can be seen on
    a map. Missing values count as the gene's mean.

    Args:
        table: of one slide.
        neighbors: nearest spots that a spot is compared with.

    Returns:
        `(G,)` float64; 0 where there is one spot.
    """
    from scipy.spatial import cKDTree

    k = min(neighbors, table.n_obs - 1)
    result = np.zeros(table.n_vars)
    if k < 1:
        return result
    coords = np.asarray(table.obsm["spatial"], dtype=np.float64)
    nearest = np.asarray(cKDTree(coords).query(coords, k + 1)[1])[:, 1:]
    for start in range(0, table.n_vars, GENES_A_BLOCK):
        part = slice(start, start + GENES_A_BLOCK)
        values = np.asarray(table.X[:, part], dtype=np.float32)
        there = np.isfinite(values)
        mean = values.sum(axis=0, where=there, dtype=np.float64) / np.maximum(there.sum(axis=0), 1)
        centered = np.where(there, values - mean, 0).astype(np.float32)
        around = sum(centered[nearest[:, i]] for i in range(k)) / np.float32(k)
        result[part] = np.einsum("ng,ng->g", centered, around) / table.n_obs
    return result
