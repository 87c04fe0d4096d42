"""Metrics of predicted against true expression: PCC per gene over spots, PCC@k, MSE, MAE (HiST, equations 15-18)."""

from __future__ import annotations

from typing import Any

import numpy as np

TOP = (10, 50, 200, 500, 1000, 2000, 3000)  # the last four for table 9
CONSTANT = 1e-12  # a spread below this, relative to the values, is rounding


def gene_pcc(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(G,) Pearson correlation of each gene over spots, in float64; NaN where prediction or truth is constant.

    predicted, truth (N, G), log2 expression.
    """
    p = predicted.astype(np.float64)
    t = truth.astype(np.float64)
    scale_p, scale_t = np.abs(p).max(0, initial=0), np.abs(t).max(0, initial=0)
    p -= p.mean(0)
    t -= t.mean(0)
    norm_p, norm_t = np.linalg.norm(p, axis=0), np.linalg.norm(t, axis=0)
    floor = CONSTANT * np.sqrt(len(p))
    defined = (norm_p > floor * scale_p) & (norm_t > floor * scale_t)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(defined, (p * t).sum(0) / (norm_p * norm_t), np.nan)


def summarize(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """`{"pcc@10": ..., "mse": ..., "mae": ...}`; an undefined PCC counts as 0, PCC@k with k > G is left out."""
    pcc = np.sort(np.nan_to_num(gene_pcc(predicted, truth), nan=0.0))[::-1]
    error = predicted.astype(np.float64) - truth.astype(np.float64)
    top = {f"pcc@{k}": float(pcc[:k].mean()) for k in TOP if k <= len(pcc)}
    return top | {"mse": float((error**2).mean()), "mae": float(np.abs(error).mean())}


def test_metrics(predicted: np.ndarray, truth: np.ndarray, slide: np.ndarray, complete: np.ndarray) -> dict[str, Any]:
    """Pooled over all test spots, per slide, the mean over slides, and pooled over spots with a complete niche.

    slide (N,) names; complete (N,) bool. `complete_niches` is None where there are fewer than two such spots.
    """
    slides = {str(s): summarize(predicted[slide == s], truth[slide == s]) for s in sorted(set(slide))}
    return {
        "pooled": summarize(predicted, truth),
        "slide_mean": mean_of(list(slides.values())),
        "slides": slides,
        "complete_niches": summarize(predicted[complete], truth[complete]) if complete.sum() > 1 else None,
        "n_spots": len(truth),
        "n_complete_niches": int(complete.sum()),
        "n_undefined_genes": int(np.isnan(gene_pcc(predicted, truth)).sum()),
    }


def mean_of(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def std_of(rows: list[dict[str, float]]) -> dict[str, float]:
    """Sample standard deviation (n - 1), as the paper's tables print it; 0 for a single row."""
    return {key: float(np.std([row[key] for row in rows], ddof=1)) if len(rows) > 1 else 0.0 for key in rows[0]}
