"""Where runs differ: gene by gene, region by region. Computed from a run's predictions and truth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hist_cache.errors import InputError
from train.metrics import gene_pcc
from train.report.results import FoldResult, RunResult
from train.report.significance import paired

if TYPE_CHECKING:
    import anndata
    import pandas as pd

ALL_GENES = "all genes"
RADIUS = "radius_"
MOST_REGIONS = 50  # a column with more values than this is a measurement, not a region
FEWEST_SPOTS = 3  # below this a region has no correlation worth the name


@dataclass(frozen=True)
class Digest:
    """What one reading of a run's predictions gives."""

    correlations: pd.Series
    """(G,) by gene: PCC over the pooled test spots, mean over folds; an undefined one counts as 0. A gene that some
    folds' panels lack is the mean of those that have it."""
    radii: pd.DataFrame
    """(folds, up to 4) mean distance from the origin of each embedding (image_spot, ...) of the test spots."""


def digest(run: RunResult) -> Digest:
    """Read each fold's predictions once."""
    import pandas as pd

    pcc, radii = [], []
    for fold in run.folds:
        table = fold.fold.predictions
        values = np.nan_to_num(gene_pcc(np.asarray(table.X), np.asarray(table.layers["truth"])), nan=0.0)
        pcc.append(pd.Series(values, index=table.var_names.astype(str)))
        columns = [c for c in table.obs if c.startswith(RADIUS)]
        radii.append(table.obs[columns].mean().rename(lambda c: c.removeprefix(RADIUS)))
    return Digest(pd.concat(pcc, axis=1).mean(axis=1), pd.DataFrame(radii))


def improvement(first: pd.Series, second: pd.Series) -> pd.DataFrame:
    """first, second, difference of the genes that both have, the largest difference first (table 11)."""
    import pandas as pd

    both = pd.concat({"first": first, "second": second}, axis=1, join="inner")
    both["difference"] = both["first"] - both["second"]
    return both.sort_values("difference", ascending=False, kind="stable")


def regions(table: anndata.AnnData, column: str, data_root: Path | None) -> pd.Series:
    """The region of each test spot, as text, NaN where there is none.

    From the predictions' obs, else from the slides' own, `<data_root>/st/<slide>.h5ad`, joined by barcode.
    `InputError` naming the columns there are, for a slide that is not there, or for a column of measurements.
    """
    import pandas as pd

    slides = table.obs["slide"].astype(str)
    if column in table.obs:
        found = table.obs[column].astype(object)
    elif data_root is None:
        raise InputError(
            f"--region {column}: the predictions have no such column ({', '.join(table.obs.columns)}); "
            "give --data-root or $HIST_DATA to look in the slides' own tables"
        )
    else:
        found = pd.Series(np.nan, index=table.obs_names, dtype=object)
        for slide in slides.unique():
            obs = _slide_obs(data_root / "st" / f"{slide}.h5ad")
            if column not in obs:
                raise InputError(
                    f"--region {column}: neither in the predictions ({', '.join(table.obs.columns)}) nor in "
                    f"{data_root / 'st' / f'{slide}.h5ad'} ({', '.join(map(str, obs.columns)) or 'no columns'})"
                )
            rows = (slides == slide).to_numpy()
            barcodes = table.obs["barcode"].astype(str)[rows]
            if not barcodes.isin(obs.index).any():
                raise InputError(f"{data_root / 'st' / f'{slide}.h5ad'}: has none of the run's barcodes")
            found[rows] = obs[column].astype(object).reindex(barcodes).to_numpy()
    found = found.where(found.isna(), found.astype(str)).replace("", np.nan)
    if (n := found.nunique()) > MOST_REGIONS:
        raise InputError(f"--region {column}: has {n} different values; a column of regions has {MOST_REGIONS} at most")
    if not found.notna().any():
        raise InputError(f"--region {column}: is empty for every test spot")
    return found


def _slide_obs(path: Path) -> pd.DataFrame:
    """Only obs of a slide's table, by barcode: its counts may be large."""
    import h5py
    from anndata.io import read_elem

    if not path.exists():
        raise InputError(f"{path}: not there; give --data-root or $HIST_DATA, the folder that holds st/")
    with h5py.File(path, "r") as file:
        obs = read_elem(file["obs"])
    return obs.set_axis(obs.index.astype(str))


def region_metrics(table: anndata.AnnData, region: pd.Series, genes: list[str]) -> pd.DataFrame:
    """region, gene, n_spots, pcc, mse, mae of one fold, for named genes and for all; an undefined PCC counts as 0.

    Regions of fewer than 3 spots are left out. `InputError` for a gene that the panel lacks.
    """
    import pandas as pd

    panel = list(table.var_names.astype(str))
    if missing := [g for g in genes if g not in panel]:
        raise InputError(f"{', '.join(missing)}: not in the run's gene panel")
    predicted, truth = np.asarray(table.X), np.asarray(table.layers["truth"])
    rows = []
    for name in sorted(region.dropna().unique()):
        spots = (region == name).to_numpy()
        if spots.sum() < FEWEST_SPOTS:
            continue
        pcc = np.nan_to_num(gene_pcc(predicted[spots], truth[spots]), nan=0.0)
        error = predicted[spots].astype(np.float64) - truth[spots]
        mse, mae = (error**2).mean(0), np.abs(error).mean(0)
        for gene in genes:
            j = panel.index(gene)
            rows.append((name, gene, int(spots.sum()), pcc[j], mse[j], mae[j]))
        rows.append((name, ALL_GENES, int(spots.sum()), pcc.mean(), mse.mean(), mae.mean()))
    return pd.DataFrame(rows, columns=["region", "gene", "n_spots", "pcc", "mse", "mae"])


def run_regions(run: RunResult, column: str, genes: list[str], data_root: Path | None) -> pd.DataFrame:
    """`region_metrics` of all folds, with the columns run, split and tested."""
    import pandas as pd

    frames = []
    for fold in run.folds:
        table = fold.fold.predictions
        frames.append(region_metrics(table, regions(table, column, data_root), genes).assign(**_where(run, fold)))
    return pd.concat(frames, ignore_index=True)


def _where(run: RunResult, fold: FoldResult) -> dict[str, str]:
    return {"run": run.label, "split": fold.split, "tested": fold.tested}


@dataclass(frozen=True)
class RegionGain:
    """A run against a baseline, across regions, for one gene: percent of the baseline, and the paired t-test's p."""

    gene: str
    n_regions: int
    percent: dict[str, float | None]
    """By metric (pcc, mse, mae), positive where the run is better; None where the baseline's PCC is not above 0."""
    p: dict[str, float | None]


def region_gains(run: pd.DataFrame, baseline: pd.DataFrame) -> list[RegionGain]:
    """Table 12 from two `run_regions`, over the folds that both have: each region's mean over folds is one pair."""
    key = ["gene", "region", "split", "tested"]
    both = run.merge(baseline, on=key, suffixes=("", "_base"))
    metrics = ("pcc", "mse", "mae")
    means = both.groupby(["gene", "region"], sort=False)[[f"{m}{s}" for m in metrics for s in ("", "_base")]].mean()
    gains = []
    for gene, rows in means.groupby(level="gene", sort=False):
        percent: dict[str, float | None] = {}
        p: dict[str, float | None] = {}
        for m in metrics:
            ours, base = rows[m].mean(), rows[f"{m}_base"].mean()
            gain = ours - base if m == "pcc" else base - ours
            percent[m] = float(100 * gain / base) if base > 0 else None
            p[m] = paired(rows[m].to_numpy(), rows[f"{m}_base"].to_numpy()).p_t
        gains.append(RegionGain(str(gene), len(rows), percent, p))
    return gains
