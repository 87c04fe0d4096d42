"""Pathways: gene sets from a GMT file, their scores in each spot, and how well predicted scores follow measured ones.

A score is the mean of the z-scores of a set's genes, so that a gene with much expression counts no more than another.
Mean and standard deviation are those of the measured expression in the test spots of the same slide: a run's folder
holds no train spots, and the level of a slide then says nothing of a pathway. Measured scores therefore have the mean 0
in each slide; predicted ones keep whatever offset the model has.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hist_cache.errors import InputError
from hist_cache.texts import bad_name, read_text, shortened
from train.metrics import MIN_SPOTS, gene_pcc
from train.relative_values import LEAST_SPREAD

GeneSets = dict[str, tuple[str, ...]]
"""Name of a pathway -> names of its genes."""

MIN_GENES = 3
"""A set with fewer genes in the panel says nothing of its pathway."""


@dataclass(frozen=True)
class PathwayMetrics:
    """How well the pathways of one fold are predicted."""

    pathways: dict[str, dict[str, float]]
    """Name -> `pcc` over the pooled test spots (an undefined one is 0), and `genes`, how many are in the panel."""
    mean: float | None
    """PCC, mean over the pathways; None where there are none."""


def read_gene_sets(file: Path) -> GeneSets:
    """Read a GMT file: a set a line, its name, a description and its genes, separated by tabs.

    Raises:
        InputError: It cannot be read, or a line has another form.
    """
    sets: GeneSets = {}
    try:
        for number, line in enumerate(read_text(file).split("\n"), 1):
            if line.strip():
                name, genes = _gene_set(line.rstrip("\r"), f"line {number}")
                if name in sets:
                    raise ValueError(f"line {number}: {shortened(name)} stands in it twice")
                sets[name] = genes
        if not sets:
            raise ValueError("no gene sets in it")
    except ValueError as error:
        raise InputError(f"--pathways {file}: {error}") from error
    return sets


def _gene_set(line: str, where: str) -> tuple[str, tuple[str, ...]]:
    """The name and the genes in a line; `ValueError` where it has another form."""
    name, *rest = (part.strip() for part in line.split("\t"))
    genes = tuple(dict.fromkeys(gene for gene in rest[1:] if gene))
    if not genes:
        raise ValueError(f"{where}: no GMT; give name, description and genes, separated by tabs")
    if problem := bad_name([name, *genes]):
        raise ValueError(f"{where}: {problem}")
    return name, genes


def sets_in_panel(sets: Mapping[str, Sequence[str]], panel: Collection[str]) -> GeneSets:
    """The sets with at least `MIN_GENES` genes in a panel, with these genes alone."""
    names = set(panel)
    kept = {name: tuple(gene for gene in genes if gene in names) for name, genes in sets.items()}
    return {name: genes for name, genes in kept.items() if len(genes) >= MIN_GENES}


def z_scores(expression: np.ndarray, truth: np.ndarray, slide: np.ndarray) -> np.ndarray:
    """Expression in standard deviations from the mean, both of the measured expression in the spots of the same slide.

    Args:
        expression: log2 expression, predicted or measured, `(N, G)`.
        truth: Measured log2 expression, `(N, G)`.
        slide: Name of the slide of each spot, `(N,)`.

    Returns:
        `(N, G)` float64; NaN where the measured expression of the gene is constant within the slide.
    """
    scores = np.empty(expression.shape)
    for name in np.unique(slide):
        rows = slide == name
        own = truth[rows].astype(np.float64)
        deviation = own.std(0)
        is_constant = deviation <= LEAST_SPREAD * np.abs(own).max(0)
        scores[rows] = (expression[rows] - own.mean(0)) / np.where(is_constant, np.nan, deviation)
    return scores


def pathway_scores(z: np.ndarray, panel: Sequence[str], sets: Mapping[str, Sequence[str]]) -> np.ndarray:
    """The mean of the z-scores of each set's genes in each spot.

    Args:
        z: Of `z_scores`, `(N, G)`. A gene is left out in the spots where it is NaN.
        panel: Names of the G genes.
        sets: P sets, whose genes are all in the panel.

    Returns:
        `(N, P)` float64; NaN where no gene of the set is left.
    """
    columns = {gene: j for j, gene in enumerate(panel)}
    members = np.zeros((len(panel), len(sets)))
    for i, genes in enumerate(sets.values()):
        members[[columns[gene] for gene in genes], i] = 1
    is_there = np.isfinite(z)
    n_genes = is_there @ members
    return np.where(is_there, z, 0.0) @ members / np.where(n_genes > 0, n_genes, np.nan)


def pathway_metrics(
    predicted: np.ndarray, truth: np.ndarray, slide: np.ndarray, panel: Sequence[str], sets: Mapping[str, Sequence[str]]
) -> PathwayMetrics:
    """PCC of predicted and measured scores of each pathway over the pooled test spots.

    Args:
        predicted: log2 expression, `(N, G)`.
        truth: log2 expression, `(N, G)`.
        slide: Name of the slide of each spot, `(N,)`.
        panel: Names of the G genes.
        sets: Gene sets; those with fewer than `MIN_GENES` genes in the panel are left out. Spots of a slide in which
            all genes of a set are constant do not count for this set.
    """
    kept = sets_in_panel(sets, panel)
    scores, true_scores = (pathway_scores(z_scores(e, truth, slide), panel, kept) for e in (predicted, truth))
    pathways = {
        name: {"pcc": _pcc(scores[:, i], true_scores[:, i]), "genes": float(len(genes))}
        for i, (name, genes) in enumerate(kept.items())
    }
    mean = float(np.mean([values["pcc"] for values in pathways.values()])) if pathways else None
    return PathwayMetrics(pathways, mean)


def _pcc(scores: np.ndarray, true_scores: np.ndarray) -> float:
    """PCC over the spots that have a score, `(N,)` each; 0 where it is undefined."""
    rows = np.isfinite(true_scores)
    if rows.sum() < MIN_SPOTS:
        return 0.0
    return float(np.nan_to_num(gene_pcc(scores[rows, None], true_scores[rows, None])[0], nan=0.0))
