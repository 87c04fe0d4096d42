"""Where runs differ, gene by gene and region by region, computed from their predictions and the truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hist_cache.errors import InputError
from hist_cache.h5ad import open_parts, table_part
from hist_cache.slides import TABLE_FOLDERS
from train.metrics import MIN_SPOTS, gene_pcc
from train.report.fold_values import read_values
from train.report.results import RunResult
from train.report.significance import paired

if TYPE_CHECKING:
    import anndata
    import pandas as pd

ALL_GENES = "all genes"
MAX_REGIONS = 50  # a column with more values than this is a measurement, not a region


@dataclass(frozen=True)
class RunSummary:
    """What one reading of a run's predictions gives."""

    fold_correlations: pd.DataFrame
    """(G, folds) by gene and number of the fold: PCC over the pooled test spots. An undefined PCC counts as 0. A gene
    that the fold's panel lacks has NaN."""
    radii: pd.DataFrame
    """Mean distance of the test spots from the origin: a fold a row, a column for each embedding (`image_spot`). No
    columns for a model without these embeddings."""

    @property
    def correlations(self) -> pd.Series:
        """(G,) by gene: PCC, mean over the folds that have it."""
        return self.fold_correlations.mean(axis=1)


def summarize_run(run: RunResult) -> RunSummary:
    """Read the predictions of each fold once."""
    import pandas as pd

    pcc, radii = {}, []
    for fold in run.folds:
        values = read_values(fold.fold)
        pcc[fold.number] = pd.Series(_correlations(values.predicted, values.truth), index=values.genes)
        radii.append(values.radii)
    return RunSummary(pd.concat(pcc, axis=1), pd.DataFrame(radii))


def _correlations(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.nan_to_num(gene_pcc(predicted, truth), nan=0.0)


def summarize_regions(run: RunResult, column: str, data_root: Path | None) -> dict[str, RunSummary]:
    """The correlations of a run within each region.

    Args:
        run: the run.
        column: of `obs`, as `regions` takes it.
        data_root: folder that holds the slides' `st/`.

    Returns:
        By region; a fold in which it has fewer than 3 spots is left out.

    Raises:
        InputError: As from `regions`.
    """
    import pandas as pd

    pcc: dict[str, dict[int, pd.Series]] = {}
    for fold in run.folds:
        table = fold.fold.predictions
        region = regions(table, column, data_root)
        for name in sorted(region.dropna().unique()):
            spots = (region == name).to_numpy()
            if spots.sum() >= MIN_SPOTS:
                own = _correlations(np.asarray(table.X)[spots], np.asarray(table.layers["truth"])[spots])
                pcc.setdefault(name, {})[fold.number] = pd.Series(own, index=table.var_names.astype(str))
    return {name: RunSummary(pd.concat(of_region, axis=1), pd.DataFrame()) for name, of_region in pcc.items()}


def improvement(first: RunSummary, second: RunSummary, pairs: Mapping[int, int]) -> pd.DataFrame:
    """Compare the correlations of two runs gene by gene (table 11).

    Args:
        first: of one run.
        second: of the other.
        pairs: of the folds to compare, the first run's number -> the second's; those that one has not are left out.

    Returns:
        The genes that both have, with the columns first, second and difference, means over the folds; the largest
        difference comes first. Empty where no fold is a pair.
    """
    import pandas as pd

    own, others = first.fold_correlations, second.fold_correlations
    both_folds = [(i, j) for i, j in pairs.items() if i in own and j in others]
    means = {"first": own[[i for i, _ in both_folds]], "second": others[[j for _, j in both_folds]]}
    both = pd.concat({name: frame.mean(axis=1) for name, frame in means.items()}, axis=1, join="inner").dropna()
    both["difference"] = both["first"] - both["second"]
    return both.sort_values("difference", ascending=False, kind="stable")


def regions(table: anndata.AnnData, column: str, data_root: Path | None) -> pd.Series:
    """The region of each test spot.

    Args:
        table: predictions of a fold.
        column: of `obs` of the predictions; else of `obs` of the slides' own tables, joined by barcode.
        data_root: folder with `st/<slide>.h5ad`.

    Returns:
        A text for each spot, NaN where it has no region.

    Raises:
        InputError: There is no such column or no such slide, or the column holds measurements.
    """
    names = table.obs[column].astype(object) if column in table.obs else _slide_regions(table, column, data_root)
    names = names.where(names.isna(), names.astype(str)).replace("", np.nan)
    if (n := names.nunique()) > MAX_REGIONS:
        raise InputError(f"--region {column}: has {n} different values; a column of regions has {MAX_REGIONS} at most")
    if not names.notna().any():
        raise InputError(f"--region {column}: is empty for every test spot")
    return names


def _slide_regions(table: anndata.AnnData, column: str, data_root: Path | None) -> pd.Series:
    import pandas as pd

    own_columns = ", ".join(table.obs.columns)
    if data_root is None:
        raise InputError(
            f"--region {column}: the predictions have no such column ({own_columns}); "
            "give --data-root or $HIST_DATA to look in the slides' own tables"
        )
    slides = table.obs["slide"].astype(str)
    names = pd.Series(np.nan, index=table.obs_names, dtype=object)
    for slide in slides.unique():
        folders = [data_root / name for name in TABLE_FOLDERS]
        file = next((f for f in folders if f.is_dir()), folders[0]) / f"{slide}.h5ad"
        obs = _slide_obs(slide, file)
        if column not in obs:
            raise InputError(
                f"--region {column}: neither in the predictions ({own_columns}) nor in "
                f"{file} ({', '.join(map(str, obs.columns)) or 'no columns'})"
            )
        rows = (slides == slide).to_numpy()
        barcodes = table.obs["barcode"].astype(str)[rows]
        if not barcodes.isin(obs.index).any():
            raise InputError(f"{file}: has none of the run's barcodes")
        names[rows] = obs[column].astype(object).reindex(barcodes).to_numpy()
    return names


def _slide_obs(slide: str, file: Path) -> pd.DataFrame:
    """`obs` of a slide's table by barcode, without its counts, which may be large."""
    from anndata.io import read_elem

    if not file.exists():
        raise InputError(f"{file}: not there; give --data-root or $HIST_DATA, the folder that holds st/")
    with open_parts(slide, file, ("obs",)) as opened:
        obs = read_elem(table_part(opened, "obs"))
        return obs.set_axis(obs.index.astype(str))


def region_metrics(table: anndata.AnnData, region: pd.Series, genes: list[str]) -> pd.DataFrame:
    """Metrics of one fold in each region, for some genes and for all genes together.

    Args:
        table: predictions of the fold.
        region: region of each spot; regions with fewer than 3 spots are left out.
        genes: names of genes.

    Returns:
        A gene in a region a row: region, gene, n_spots, pcc, mse, mae. An undefined PCC counts as 0.

    Raises:
        InputError: The panel lacks a gene.
    """
    import pandas as pd

    panel = list(table.var_names.astype(str))
    if missing := [g for g in genes if g not in panel]:
        raise InputError(f"{', '.join(missing)}: not in the run's gene panel")
    predicted, truth = np.asarray(table.X), np.asarray(table.layers["truth"])
    rows = []
    for name in sorted(region.dropna().unique()):
        spots = (region == name).to_numpy()
        if spots.sum() < MIN_SPOTS:
            continue
        pcc = np.nan_to_num(gene_pcc(predicted[spots], truth[spots]), nan=0.0)
        error = predicted[spots].astype(np.float64) - truth[spots]
        mse, mae = (error**2).mean(0), np.abs(error).mean(0)
        for gene in genes:
            j = panel.index(gene)
            rows.append((name, gene, int(spots.sum()), pcc[j], mse[j], mae[j]))
        rows.append((name, ALL_GENES, int(spots.sum()), pcc.mean(), mse.mean(), mae.mean()))
    frame = pd.DataFrame(rows, columns=["region", "gene", "n_spots", "pcc", "mse", "mae"])
    return frame.astype({"n_spots": int, "pcc": float, "mse": float, "mae": float})  # also without rows


def run_regions(run: RunResult, column: str, genes: list[str], data_root: Path | None) -> pd.DataFrame:
    """Metrics of all folds of a run in each region.

    Args:
        run: the run.
        column: of `obs`, as `regions` takes it.
        genes: names of genes.
        data_root: folder that holds the slides' `st/`.

    Returns:
        The rows of `region_metrics` with the columns run and fold.

    Raises:
        InputError: As from `regions` and `region_metrics`.
    """
    import pandas as pd

    frames = []
    for fold in run.folds:
        table = fold.fold.predictions
        frame = region_metrics(table, regions(table, column, data_root), genes)
        frames.append(frame.assign(run=run.label, fold=fold.number))
    return pd.concat(frames, ignore_index=True)


@dataclass(frozen=True)
class RegionGain:
    """A run against another across regions, for one gene."""

    gene: str
    n_regions: int
    percent: dict[str, float | None]
    """Gain in percent of the other run by metric (pcc, mse, mae), positive where the run is better; None where the
    other's PCC is not above 0."""
    p: dict[str, float | None]
    """Of the paired t-test, by metric."""


def region_gains(run: pd.DataFrame, other: pd.DataFrame, pairs: Mapping[int, int]) -> list[RegionGain]:
    """Compare two runs region by region (table 12).

    Args:
        run: `run_regions` of a run.
        other: `run_regions` of the run that it is compared with.
        pairs: of the folds to compare, the run's number -> the other's.

    Returns:
        One for each gene, over these folds. A region's mean over folds is one pair of the test.
    """
    own_numbers = {number: own for own, number in pairs.items()}
    renumbered = other.assign(fold=other["fold"].map(own_numbers)).dropna(subset="fold")
    both = run.merge(renumbered, on=["gene", "region", "fold"], suffixes=("", "_other"))
    metrics = ("pcc", "mse", "mae")
    means = both.groupby(["gene", "region"], sort=False)[[f"{m}{s}" for m in metrics for s in ("", "_other")]].mean()
    gains = []
    for gene, rows in means.groupby(level="gene", sort=False):
        percent: dict[str, float | None] = {}
        p: dict[str, float | None] = {}
        for m in metrics:
            own_mean, other_mean = rows[m].mean(), rows[f"{m}_other"].mean()
            gain = own_mean - other_mean if m == "pcc" else other_mean - own_mean
            percent[m] = float(100 * gain / other_mean) if other_mean > 0 else None
            p[m] = paired(rows[m].to_numpy(), rows[f"{m}_other"].to_numpy()).p_t
        gains.append(RegionGain(str(gene), len(rows), percent, p))
    return gains
