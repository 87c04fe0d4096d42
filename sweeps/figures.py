"""Figures of a study: its history, what mattered, each parameter alone and in pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from sweeps.display import text
from sweeps.space import Parameter
from sweeps.study import Plan
from sweeps.trials import values_of
from train.figures import new_figure, save
from train.report.plots import BLUE, GREY, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 3
MOST_CONTOURS = 6  # pairs, of the parameters that matter most
LEVELS = 12
MARGIN = 0.04  # of an axis, beyond the range
SHOWN = (0.05, 1.0)  # quantiles: a few very bad trials would hide the rest


def complete(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    return [t for t in trials if t.state == TrialState.COMPLETE]


def plot_history(path: Path, plan: Plan, trials: Sequence[FrozenTrial]) -> None:
    """Each trial's objective by its number, the best so far, the default, and where trials were pruned."""
    figure, axes = new_figure(1, 1, 8.0, 3.6)
    ax = axes[0, 0]
    done = complete(trials)
    number, value = [t.number for t in done], np.array([t.value for t in done])
    best = np.maximum.accumulate(value) if plan.maximize else np.minimum.accumulate(value)
    ax.plot(number, value, "o", color="#8fb8d4", markersize=4.5, label="trial")
    ax.step(number, best, where="post", color=BLUE, linewidth=1.6, label="best so far")
    for t in done:
        if t.user_attrs.get("default"):
            ax.axhline(t.value, color=ORANGE, linewidth=1.2, label="default setting")
    _zoom(ax, value, plan)
    pruned = [t.number for t in trials if t.state == TrialState.PRUNED]
    ax.plot(pruned, np.zeros(len(pruned)), "|", color=GREY, markersize=9, transform=ax.get_xaxis_transform(),
            clip_on=False, label="pruned")  # fmt: skip
    ax.set_xlabel("trial", fontsize=9)
    ax.set_ylabel(_metric(plan), fontsize=9)
    ax.legend(fontsize=8, frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    _quiet(ax)
    save(figure, path)


def plot_importance(path: Path, shares: Mapping[str, float]) -> None:
    figure, axes = new_figure(1, 1, 6.5, 0.9 + 0.36 * len(shares))
    ax = axes[0, 0]
    place = np.arange(len(shares))[::-1]
    ax.barh(place, list(shares.values()), height=0.66, color=BLUE)
    for y, share in zip(place, shares.values(), strict=True):
        ax.annotate(f" {share:.2f}", (share, y), va="center", fontsize=9)
    ax.set_yticks(place, [name.replace("_", " ") for name in shares])
    ax.set_xlim(0, 1.1 * max(shares.values()))
    ax.set_xlabel("share of the objective's variance (fANOVA)", fontsize=9)
    _quiet(ax)
    save(figure, path)


def plot_slices(path: Path, plan: Plan, trials: Sequence[FrozenTrial]) -> None:
    """The objective over each parameter, coloured by the trials' numbers; the best one ringed."""
    done = complete(trials)
    values, number = np.array([t.value for t in done]), [t.number for t in done]
    best = int(values.argmax() if plan.maximize else values.argmin())
    columns = 2 if len(plan.space) == 4 else min(COLUMNS, len(plan.space))
    rows = -(-len(plan.space) // columns)
    figure, axes = new_figure(columns, rows, 3.2, 2.8)
    panels = list(axes.ravel())
    for ax, p in zip(panels, plan.space, strict=False):
        x = _places(ax, p, [values_of(plan, t)[p.name] for t in done], "x")
        dots = ax.scatter(x, values, c=number, cmap="cividis", s=18, linewidths=0)
        ax.plot(x[best], values[best], "o", markersize=10, markerfacecolor="none", markeredgecolor=ORANGE)
        _zoom(ax, values, plan)
        ax.set_xlabel(p.name.replace("_", " "), fontsize=9)
        _quiet(ax)
    for ax in panels[len(plan.space) :]:
        ax.axis("off")
    panels[0].set_ylabel(_metric(plan), fontsize=9)
    figure.colorbar(dots, ax=panels, shrink=0.8, pad=0.01).set_label("trial", fontsize=9)
    save(figure, path)


def plot_contours(path: Path, plan: Plan, trials: Sequence[FrozenTrial], order: Sequence[str]) -> int:
    """The objective over pairs of parameters, those that matter most first; how many pairs were drawn.

    Between the trials it is interpolated, which three of them in a line do not allow.
    """
    done = complete(trials)
    by_name = {p.name: p for p in plan.space}
    pairs = list(combinations([by_name[n] for n in order if not by_name[n].choices], 2))[:MOST_CONTOURS]
    if not pairs or len(done) < 4:
        return 0
    values = np.array([t.value for t in done])
    low, high = _range(values, plan)
    columns = min(COLUMNS, len(pairs))
    figure, axes = new_figure(columns, -(-len(pairs) // columns), 3.5, 3.1)
    panels = list(axes.ravel())
    for ax, (p, q) in zip(panels, pairs, strict=False):
        x = _places(ax, p, [values_of(plan, t)[p.name] for t in done], "x")
        y = _places(ax, q, [values_of(plan, t)[q.name] for t in done], "y")
        shown = np.clip(values, low, high)
        if np.linalg.matrix_rank(np.column_stack([x - x[0], y - y[0]])) == 2 and high > low:
            ax.tricontourf(x, y, shown, levels=np.linspace(low, high, LEVELS), cmap="cividis", alpha=0.85)
        dots = ax.scatter(x, y, c=shown, cmap="cividis", vmin=low, vmax=high, s=14, edgecolors="white", linewidths=0.5)
        best = int(values.argmax() if plan.maximize else values.argmin())
        ax.plot(x[best], y[best], "o", markersize=10, markerfacecolor="none", markeredgecolor=ORANGE)
        ax.set_xlabel(p.name.replace("_", " "), fontsize=9)
        ax.set_ylabel(q.name.replace("_", " "), fontsize=9)
        ax.tick_params(labelsize=8)
    for ax in panels[len(pairs) :]:
        ax.axis("off")
    figure.colorbar(dots, ax=panels, shrink=0.8, pad=0.01).set_label(_metric(plan), fontsize=9)
    save(figure, path)
    return len(pairs)


def _places(ax: Axes, p: Parameter, values: Sequence[Any], which: str) -> np.ndarray:
    """Where values lie on an axis, which gets the parameter's scale and ticks."""
    axis, limit = (ax.xaxis, ax.set_xlim) if which == "x" else (ax.yaxis, ax.set_ylim)
    if p.choices:
        axis.set_ticks(range(len(p.choices)), [text(c) for c in p.choices])
        limit(-0.3, len(p.choices) - 0.7)
        return np.array([p.choices.index(v) for v in values], dtype=float)
    scale = np.log10 if p.log else np.asarray
    low, high = (float(scale(end)) for end in (p.low, p.high))
    limit(low - MARGIN * (high - low), high + MARGIN * (high - low))
    if p.log:
        ticks = [10.0**k for k in range(-6, 7) if p.low * 0.999 <= 10.0**k <= p.high * 1.001]
        axis.set_ticks([np.log10(t) for t in ticks], [f"{t:g}" for t in ticks])
    return scale(np.array(values, dtype=float))


def _range(values: np.ndarray, plan: Plan) -> tuple[float, float]:
    """Without the worst few."""
    quantiles = SHOWN if plan.maximize else (0.0, 0.95)
    low, high = np.quantile(values, quantiles)
    return float(low), float(high)


def _zoom(ax: Axes, values: np.ndarray, plan: Plan) -> None:
    low, high = _range(values, plan)
    room = 0.12 * (high - low) or 0.05 * abs(high) or 1.0
    ax.set_ylim(low - room, high + room)


def _metric(plan: Plan) -> str:
    return f"validation {plan.objective.upper()}"


def _quiet(ax: Axes) -> None:
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.grid(color="0.92", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8, color="0.7")
