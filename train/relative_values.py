"""Values of spots relative to those of other spots: without the level of their slide."""

from __future__ import annotations

import numpy as np

LEAST_SPREAD = 1e-12
"""A root mean square deviation below this share of the largest value is rounding: the values count as constant."""


def slide_centered(values: np.ndarray, slide: np.ndarray) -> np.ndarray:
    """Each gene minus its mean over the spots of the same slide, in float64.

    Args:
        values: log2 expression, `(N, G)`.
        slide: Name of the slide of each spot, `(N,)`.

    Returns:
        Differences from the slide's mean, `(N, G)`; exactly 0 where a gene is constant within a slide.
    """
    centered = values.astype(np.float64)
    for name in np.unique(slide):
        rows = slide == name
        own = centered[rows]
        scale = np.abs(own).max(0, initial=0)
        own -= own.mean(0)
        own[:, np.linalg.norm(own, axis=0) <= LEAST_SPREAD * np.sqrt(len(own)) * scale] = 0.0
        centered[rows] = own
    return centered
