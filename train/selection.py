"""How good predictions of validation spots are, by each rule that an epoch or a penalty may be selected by."""

from __future__ import annotations

import torch
from torch import Tensor

from hist_cache.values import SelectBy

MIN_SPREAD = 1e-12
"""A gene's sum of squares in a slide below this share of that of its raw values is rounding: it is constant there."""


def centered_mse(predicted: Tensor, truth: Tensor, slide: Tensor) -> Tensor:
    """MSE without the slides' offsets: each gene less its mean over the slide, averaged over spots, then over slides.

    Args:
        predicted: `(n, G)` expression.
        truth: `(n, G)` expression.
        slide: `(n,)` index of each spot's slide.
    """
    error = (predicted - truth).double()
    means = []
    for i in slide.unique():
        of_slide = error[slide == i]
        means.append((of_slide - of_slide.mean(0)).square().mean())
    return torch.stack(means).mean()


def slide_pcc(predicted: Tensor, truth: Tensor, slide: Tensor) -> Tensor:
    """Mean over slides of the mean PCC of all genes within a slide. See `centered_mse`.

    That of a gene which is constant is 0; with a prediction that is not finite it is NaN, so that nothing selects it.
    """
    means = []
    for i in slide.unique():
        p, t = predicted[slide == i].double(), truth[slide == i].double()
        p_raw, t_raw = p.square().sum(0), t.square().sum(0)
        p, t = p - p.mean(0), t - t.mean(0)
        p_squares, t_squares = p.square().sum(0), t.square().sum(0)
        constant = (p_squares <= MIN_SPREAD * p_raw) | (t_squares <= MIN_SPREAD * t_raw)
        pcc = (p * t).sum(0) / (p_squares * t_squares).clamp(min=1e-300).sqrt()
        means.append(torch.where(constant, 0.0, pcc).mean())
    return torch.stack(means).mean()


def selection_error(rule: SelectBy, predicted: Tensor, truth: Tensor, slide: Tensor) -> float:
    """What a penalty is selected by: the lower, the better. The whole loss has no meaning there and counts as MSE."""
    if rule == "centered_mse":
        return centered_mse(predicted, truth, slide).item()
    if rule == "pcc":
        return -slide_pcc(predicted, truth, slide).item()
    return (predicted.double() - truth.double()).square().mean().item()


SLIDE_SCORES = {"centered_mse": centered_mse, "pcc": slide_pcc}
"""The scores that are computed slide by slide, by the rule that selects by them."""
