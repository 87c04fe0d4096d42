"""Predicted slides as hist-predict leaves them, small and made up."""

from __future__ import annotations

from typing import Any

import anndata
import numpy as np
import pandas as pd

PITCH, DIAMETER, UM_PER_PX = 200.0, 120.0, 0.5  # level-0 px, level-0 px, um
DOWNSAMPLE = 8.0  # of the small picture


def predicted_table(
    rows: int = 10,
    columns: int = 12,
    *,
    genes: list[str] | int = 5,
    slide: str = "SLIDE1",
    truth: bool = False,
    distance: bool = False,
    disagreement: bool = False,
    seed: int = 0,
) -> anndata.AnnData:
    """A square lattice; gene k is a wave along x of k + 1 half periods, with a little noise."""
    rng = np.random.default_rng(seed)
    names = [f"GENE{i}" for i in range(genes)] if isinstance(genes, int) else genes
    row, column = (a.ravel() for a in np.mgrid[0:rows, 0:columns])
    n = len(row)
    spatial = np.stack([(column + 1) * PITCH, (row + 1) * PITCH], axis=1)
    phase = np.pi * column[:, None] / max(columns - 1, 1) * (1 + np.arange(len(names)))
    x = (3 + 2 * np.cos(phase) + 0.1 * rng.standard_normal((n, len(names)))).astype(np.float32)
    obs: dict[str, Any] = {"slide": pd.Categorical([slide] * n)}
    layers = {}
    if truth:
        layers["truth"] = (x + 0.7 * rng.standard_normal(x.shape)).astype(np.float32)
    if distance:
        obs["distance"] = rng.gamma(2.0, 1.0, n).astype(np.float32)
        obs["out_of_distribution"] = obs["distance"] > 4
    if disagreement:
        layers["disagreement"] = rng.gamma(2.0, 0.1, x.shape).astype(np.float32)
        obs["disagreement"] = layers["disagreement"].mean(1)
    size = np.array([(rows + 1) * PITCH, (columns + 1) * PITCH]) / DOWNSAMPLE
    picture = np.full((*np.ceil(size).astype(int), 3), (230, 200, 220), dtype=np.uint8)
    picture[: len(picture) // 2, :, 1] = 120  # the upper half is darker
    stored = {
        "images": {"lowres": picture},
        "scalefactors": {"tissue_lowres_scalef": 1 / DOWNSAMPLE, "spot_diameter_fullres": DIAMETER},
    }
    return anndata.AnnData(
        X=x,
        obs=pd.DataFrame(obs, index=[f"{r}x{c}" for r, c in zip(row, column, strict=True)]),
        var=pd.DataFrame(index=names),
        obsm={"spatial": spatial.astype(np.float64)},
        layers=layers,
        uns={
            "expression": "log2(1 + count)",
            "spatial": {slide: stored},
            "hist_predict": {"um_per_px": UM_PER_PX, "pitch_um": PITCH * UM_PER_PX, "spot_um": DIAMETER * UM_PER_PX,
                             "lattice": "square", "run": "kidney/full", "folds": 3, "encoder": "uni"},
        },
    )  # fmt: skip
