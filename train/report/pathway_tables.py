"""Pathways of a report: how well each run predicts the scores of gene sets, computed from its predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hist_cache.errors import InputError
from train.pathways import MIN_GENES, GeneSets, pathway_metrics, read_gene_sets
from train.report.paper_tables import group_name, run_groups
from train.report.results import Results, RunResult
from train.report.table import HIGHER, Cell, Column, Row, Table, mean_cell, slug

if TYPE_CHECKING:
    import pandas as pd

ALL_PATHWAYS = "mean over pathways"


def pathway_tables(results: Results, file: Path) -> list[Table]:
    """A table for each group of runs that are compared.

    Args:
        results: the runs.
        file: with gene sets, as GMT.

    Raises:
        InputError: The file holds no gene sets, or none of them has enough genes in the panel of any run.
    """
    sets = read_gene_sets(file)
    tables = []
    for runs in run_groups(results):
        frames = {run.label: run_pathways(run, sets) for run in runs}
        if any(len(frame) for frame in frames.values()):
            tables.append(pathway_table(frames, group_name(runs[0])))
    if not tables:
        raise InputError(f"--pathways {file}: none of its {len(sets)} gene sets has {MIN_GENES} genes in a run's panel")
    return tables


def run_pathways(run: RunResult, sets: GeneSets) -> pd.DataFrame:
    """The pathways of all folds of a run.

    Returns:
        A pathway of a fold a row: fold, pathway, genes (how many are in the panel), pcc. `ALL_PATHWAYS` is the fold's
        mean, whose genes are NaN. No rows where no set has enough genes in the panel.
    """
    import pandas as pd

    rows: list[tuple[int, str, float, float]] = []
    for fold in run.folds:
        table = fold.fold.predictions
        predicted, truth = np.asarray(table.X), np.asarray(table.layers["truth"])
        slide = table.obs["slide"].astype(str).to_numpy()
        metrics = pathway_metrics(predicted, truth, slide, list(table.var_names.astype(str)), sets)
        if metrics.mean is not None:
            rows.append((fold.number, ALL_PATHWAYS, np.nan, metrics.mean))
        rows += [(fold.number, name, values["genes"], values["pcc"]) for name, values in metrics.pathways.items()]
    return pd.DataFrame(rows, columns=["fold", "pathway", "genes", "pcc"])


def pathway_table(frames: Mapping[str, pd.DataFrame], group: str) -> Table:
    """PCC of every pathway in every run, mean over folds; the mean comes first, then the first run's best pathway.

    Args:
        frames: label of a run -> its `run_pathways`.
        group: name of the group of runs.
    """
    import pandas as pd

    every = pd.concat(frames.values())
    rows = []
    for pathway in _ordered(list(frames.values())):
        genes = every.loc[every["pathway"] == pathway, "genes"].mean()
        count = Cell("–") if np.isnan(genes) else Cell(f"{genes:.0f}", float(genes))
        cells = [mean_cell(frame.loc[frame["pathway"] == pathway, "pcc"]) for frame in frames.values()]
        rows.append(Row(pathway, "run", (count, *cells)))
    columns = (Column("genes"), *(Column(label, HIGHER) for label in frames))
    notes = (
        "PCC of predicted and measured scores over the pooled test spots, ± over folds; an undefined one counts as 0. "
        "A score is the mean of the z-scores of the set's genes in the panel, with mean and standard deviation of the "
        f"measured test spots of each slide; sets with fewer than {MIN_GENES} genes in the panel are left out",
    )
    return Table(slug(f"pathways {group}"), f"PCC pathway by pathway, {group}", columns, tuple(rows), notes, "pathway")


def _ordered(frames: Sequence[pd.DataFrame]) -> list[str]:
    """The mean, then the pathways by their PCC in the first run that has each."""
    names: list[str] = [ALL_PATHWAYS]
    for frame in frames:
        means = frame.groupby("pathway", sort=False)["pcc"].mean().sort_values(ascending=False, kind="stable")
        names += [str(name) for name in means.index if name not in names]
    return names
