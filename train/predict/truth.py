"""Measured expression of the spots that are predicted, and how well it is predicted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from hist_cache.cached_slide import CachedSlide
from hist_cache.errors import SlideError
from hist_cache.slides import SlideFiles
from hist_cache.spots import read_spots
from train.expression import Transform, profiles
from train.metrics import test_metrics


def measured_expression(
    name: str, table: Path, slide: CachedSlide, size: int, genes: Sequence[str], transform: Transform
) -> NDArray[np.float32]:
    """What was measured of the predicted spots.

    Args:
        name: Of the slide, for messages.
        table: The h5ad with raw counts; its spots are the slide's.
        slide: The slide in the cache.
        size: Neighbourhood size.
        genes: The genes that are predicted.
        transform: Of the counts.

    Returns:
        `(N, G)`, NaN for genes that the table does not have.

    Raises:
        SlideError: It cannot be read, or has other spots.
    """
    um_per_px, pitch_um, spot_um = (float(slide.attributes[key]) for key in ("um_per_px", "pitch_um", "spot_um"))
    spots = read_spots(SlideFiles(name, table, table, {}, um_per_px, pitch_um, spot_um, None), any_scale=True)
    if spots.barcodes != slide.barcodes:
        raise SlideError(name, table, "its spots are not those that were predicted", "delete the slide's predictions")
    known = set(spots.genes)
    there = [gene for gene in genes if gene in known]
    if not there:
        raise SlideError(name, table, "has none of the genes that are predicted", "are genes named by symbols?")
    expression = np.full((len(spots), len(genes)), np.nan, dtype=np.float32)
    columns = [i for i, gene in enumerate(genes) if gene in known]
    expression[:, columns] = profiles(csr_matrix(spots.counts), spots.genes, slide.neighbors[size], there, transform)[0]
    return expression


def slide_metrics(
    name: str, predicted: NDArray[np.float32], measured: NDArray[np.float32], complete: NDArray[np.bool_]
) -> dict[str, Any]:
    """Metrics of a slide, as hist-train writes them of its test slides; of the genes that were measured.

    Args:
        name: Of the slide.
        predicted: `(N, G)`.
        measured: `(N, G)`.
        complete: `(N,)`, whether each spot's niche is complete.
    """
    there = np.isfinite(measured).all(0)
    slide = np.full(len(predicted), name)
    return test_metrics(predicted[:, there], measured[:, there], slide, complete) | {"n_genes": int(there.sum())}
