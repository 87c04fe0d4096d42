"""The affine map from an H&E image to the microscope's image of the same section, as Xenium Explorer exports it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hist_cache.errors import SlideError
from hist_cache.texts import read_text

MAX_UNEVEN_SCALE = 1.05  # of an image along one direction against the other
MATRIX_NEEDED = "give the matrix that Xenium Explorer exports (3 x 3 numbers), not the keypoints"


def read_alignment(slide: str, path: Path) -> NDArray[np.float64]:
    """Read a 3 x 3 matrix that maps px of an H&E image, (x, y, 1), to px of the microscope's image.

    Raises:
        SlideError: The file cannot be read, or is no such matrix.
    """
    try:
        rows = [row for row in csv.reader(read_text(path).splitlines()) if any(cell.strip() for cell in row)]
        matrix: NDArray[np.float64] = np.array([[float(cell) for cell in row] for row in rows])
    except ValueError as error:
        raise SlideError(slide, path, str(error), MATRIX_NEEDED) from error
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or not np.allclose(matrix[2], (0, 0, 1)):
        raise SlideError(slide, path, "no 3 x 3 matrix with 0, 0, 1 as its last row", MATRIX_NEEDED)
    largest, smallest = np.linalg.svd(matrix[:2, :2], compute_uv=False)
    if smallest == 0 or largest / smallest > MAX_UNEVEN_SCALE:
        problem = f"stretches one direction {largest / max(smallest, 1e-300):.3g} times as much as the other"
        raise SlideError(slide, path, problem, "align the image again: crops would be squeezed")
    return matrix


def scale_of(matrix: NDArray[np.float64]) -> float:
    """Return how many px of the microscope's image a px of the H&E image is long."""
    return float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))


def to_image(matrix: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map (N, 2) px of the microscope's image back to px of the H&E image."""
    return np.linalg.solve(matrix[:2, :2], (points - matrix[:2, 2]).T).T.astype(np.float64)
