"""Metrics of predicted against true expression: PCC per gene, PCC@k, MSE, MAE (HiST, Eq. 15-18), rank correlations."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import numpy as np

from train.relative_values import LEAST_SPREAD, average_ranks, slide_centered

TOP_K = (10, 50, 200, 500, 1000, 2000, 3000)
"""Numbers of best predicted genes over which PCC@k is averaged; the last four are for the paper's table 9."""

MIN_SPOTS = 3
"""A correlation of fewer spots means nothing: of two it is 1 or -1, whatever was predicted."""

FAR_WORSE = 10.0
"""A run diverged whose MSE is more than so many times that of the train mean, and also ..."""

WORSE_THAN_NOTHING = 1.5
"""... so many times that of predicting 0, which a model that was hardly trained comes near."""

NON_FINITE = "had a non-finite gradient and were skipped"
"""A run whose tested epoch had such steps diverged too."""

_NAME = re.compile(r"pcc@[1-9][0-9]{0,5}|mse|mae", re.ASCII)


def gene_pcc(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Pearson correlation of each gene over spots (Eq. 15), in float64.

    Args:
        predicted: log2 expression, `(N, G)`.
        truth: log2 expression, `(N, G)`.

    Returns:
        Correlations in [-1, 1], `(G,)`; NaN where prediction or truth is constant.
    """
    p = predicted.astype(np.float64)
    t = truth.astype(np.float64)
    scale_p, scale_t = np.abs(p).max(0, initial=0), np.abs(t).max(0, initial=0)
    p -= p.mean(0)
    t -= t.mean(0)
    norm_p, norm_t = np.linalg.norm(p, axis=0), np.linalg.norm(t, axis=0)
    min_spread = LEAST_SPREAD * np.sqrt(len(p))
    defined = (norm_p > min_spread * scale_p) & (norm_t > min_spread * scale_t)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(defined, (p * t).sum(0) / (norm_p * norm_t), np.nan)


def gene_spearman(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of each gene over spots: `gene_pcc` of the ranks, where ties share their mean rank.

    Args:
        predicted: log2 expression, `(N, G)`.
        truth: log2 expression, `(N, G)`.

    Returns:
        Correlations in [-1, 1], `(G,)`; NaN where prediction or truth is constant.
    """
    return gene_pcc(average_ranks(predicted), average_ranks(truth))


def summarize(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """PCC@k for each k of `TOP_K`, MSE and MAE (Eq. 16-18).

    Args:
        predicted: log2 expression, `(N, G)`.
        truth: log2 expression, `(N, G)`.

    Returns:
        `{"pcc@10": ..., "mse": ..., "mae": ...}`. An undefined PCC counts as 0. PCC@k with k > G is left out, and all
        of them where there are fewer than `MIN_SPOTS` spots.
    """
    error = predicted.astype(np.float64) - truth.astype(np.float64)
    pcc_at_k = _best("pcc", gene_pcc(predicted, truth)) if len(truth) >= MIN_SPOTS else {}
    return pcc_at_k | {"mse": float((error**2).mean()), "mae": float(np.abs(error).mean())}


def summarize_centered(predicted: np.ndarray, truth: np.ndarray, slide: np.ndarray) -> dict[str, float]:
    """`summarize` after each gene's mean within each slide is taken from prediction and truth.

    Args:
        predicted: log2 expression, `(N, G)`.
        truth: log2 expression, `(N, G)`.
        slide: name or number of the slide of each spot, `(N,)`.
    """
    return summarize(slide_centered(predicted, slide), slide_centered(truth, slide))


def summarize_ranks(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """`{"spearman@10": ...}`: Spearman's correlation as `summarize` has Pearson's, for the same k."""
    return _best("spearman", gene_spearman(predicted, truth)) if len(truth) >= MIN_SPOTS else {}


def _best(name: str, correlations: np.ndarray) -> dict[str, float]:
    """The mean of the k highest correlations for each k of `TOP_K` that is no more than there are; NaN counts as 0."""
    highest = np.sort(np.nan_to_num(correlations, nan=0.0))[::-1]
    return {f"{name}@{k}": float(highest[:k].mean()) for k in TOP_K if k <= len(highest)}


def test_metrics(predicted: np.ndarray, truth: np.ndarray, slide: np.ndarray, complete: np.ndarray) -> dict[str, Any]:
    """Metrics of the test spots of one fold, pooled and slide by slide.

    Args:
        predicted: log2 expression, `(N, G)`.
        truth: log2 expression, `(N, G)`.
        slide: name of the slide of each spot, `(N,)`.
        complete: whether the niche of each spot is complete, `(N,)` bool.

    Returns:
        `summarize` over all spots (`pooled`), per slide (`slides`), as the mean over slides (`slide_mean`) and over
        the spots with a complete niche (`complete_niches`, None with fewer than `MIN_SPOTS` such spots), and over all
        spots with prediction and truth centred within each slide (`centered`): its MSE is what remains if a model knew
        the mean of each gene in each slide, and its PCC pools the deviations from these means; rank
        correlations over all spots (`ranks`) and as the mean over slides (`ranks_slide_mean`); the number of spots of
        each slide (`spots`); and the numbers of all spots, of complete niches and of genes whose pooled PCC is
        undefined (`n_*`).
    """
    slides = {str(s): summarize(predicted[slide == s], truth[slide == s]) for s in sorted(set(slide))}
    ranks_of_slides = [summarize_ranks(predicted[slide == s], truth[slide == s]) for s in slides]
    return {
        "pooled": summarize(predicted, truth),
        "slide_mean": mean_of(list(slides.values())),
        "slides": slides,
        "complete_niches": summarize(predicted[complete], truth[complete]) if complete.sum() >= MIN_SPOTS else None,
        "centered": summarize_centered(predicted, truth, slide),
        "ranks": summarize_ranks(predicted, truth) if len(slides) > 1 else ranks_of_slides[0],
        "ranks_slide_mean": mean_of(ranks_of_slides),
        "spots": {s: int((slide == s).sum()) for s in slides},
        "n_spots": len(truth),
        "n_complete_niches": int(complete.sum()),
        "n_undefined_genes": int(np.isnan(gene_pcc(predicted, truth)).sum()),
    }


def check_metric_names(names: Collection[str]) -> None:
    """`ValueError` where a name is none of a metric."""
    if unknown := sorted(name for name in names if not _NAME.fullmatch(name)):
        raise ValueError(f"{unknown[0][:40]!r} is no metric")


def divergence(mse: float, train_mean_mse: float, zero_mse: float) -> list[str]:
    """Why the predictions of a run are far worse than none; empty where they are not.

    Args:
        mse: Of the run.
        train_mean_mse: Of predicting each gene's mean over the train spots.
        zero_mse: Of predicting 0.
    """
    if mse <= FAR_WORSE * train_mean_mse or mse <= WORSE_THAN_NOTHING * zero_mse:
        return []
    return [f"its MSE of {mse:.4g} on test is far worse than that of the train mean, {train_mean_mse:.4g}"]


def mean_of(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each metric over the rows that have it."""
    return {key: float(np.mean(values)) for key, values in _by_metric(rows).items()}


def std_of(rows: list[dict[str, float]]) -> dict[str, float]:
    """Sample standard deviation (n - 1) of each metric, as in the paper's tables; 0 for a single row."""
    return {key: float(np.std(values, ddof=1)) if len(values) > 1 else 0.0 for key, values in _by_metric(rows).items()}


def _by_metric(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    """Each metric's values in the rows that have it; slides of few spots have no PCC."""
    return {key: [row[key] for row in rows if key in row] for key in dict.fromkeys(k for row in rows for k in row)}
