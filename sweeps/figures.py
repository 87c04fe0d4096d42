"""Figures of a study as Optuna draws them: its history, what mattered, each parameter alone and in pairs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import matplotlib
import optuna
from matplotlib import pyplot
from matplotlib.axis import Axis
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState
from optuna.visualization import matplotlib as optuna_plots

from sweeps.study import StudyPlan
from sweeps.trials import importance_evaluator, varied_names
from train.figures import save_figure

COLUMNS = 3  # panels of slices side by side
MAX_CONTOUR_PARAMETERS = 4  # the grid of panels has as many rows and columns
MIN_TRIALS_FOR_CONTOURS = 4  # fewer do not show a shape
FIGURE_STYLE: dict[Any, Any] = {
    "figure.constrained_layout.use": True,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}


def plot_history(path: Path, plan: StudyPlan, study: optuna.Study) -> None:
    """Draw each complete trial's objective by its number, the best so far, and the default setting."""
    with _optuna_figure(path, 8.0, 3.6):
        ax = optuna_plots.plot_optimization_history(study, target_name=_metric(plan))
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            if trial.user_attrs.get("default"):
                ax.axhline(trial.values[0], color="0.3", linestyle="--", linewidth=1, label="Default setting")
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        _set_ticks(ax.xaxis, integer=True)


def plot_importance(path: Path, plan: StudyPlan, study: optuna.Study, names: Sequence[str]) -> None:
    """Draw each parameter's share of the objective's variance."""
    with _optuna_figure(path, 6.5, 1.3 + 0.36 * len(names)):
        ax = optuna_plots.plot_param_importances(study, importance_evaluator(plan), list(names))
        ax.set_ylabel("")
        ax.legend().remove()


def plot_slices(path: Path, plan: StudyPlan, study: optuna.Study) -> list[str]:
    """Draw the objective over each parameter that took several values.

    Returns:
        The names of the parameters drawn; where there is none, no file is written.
    """
    names = varied_names(plan, study.get_trials(deepcopy=False))
    if not names:
        return []
    columns = 2 if len(names) == 4 else min(COLUMNS, len(names))
    rows = math.ceil(len(names) / columns)
    parameters = {p.name: p for p in plan.space}
    with _optuna_figure(path, 3.4 * columns + 1, 2.8 * rows):
        optuna_plots.plot_slice(study, names, target_name=_metric(plan))
        figure = pyplot.gcf()
        *panels, colour_bar = figure.axes
        grid = figure.add_gridspec(rows, columns)  # Optuna puts all panels into one row
        for i, ax in enumerate(panels):
            ax.set_subplotspec(grid[divmod(i, columns)])
            if i % columns == 0:
                ax.set_ylabel(_metric(plan))
                ax.tick_params(labelleft=True)
            parameter = parameters[ax.get_xlabel()]
            if parameter.choices:
                ax.set_xticks(ax.get_xticks(), [label.get_text().strip("'") for label in ax.get_xticklabels()])
                ax.set_xlim(ax.get_xlim()[0] - 0.4, ax.get_xlim()[1] + 0.4)  # room for long labels
            else:
                _set_ticks(ax.xaxis, parameter.integer)
        _set_ticks(colour_bar.yaxis, integer=True)
    return names


def plot_contours(path: Path, plan: StudyPlan, study: optuna.Study, order: Sequence[str]) -> list[str]:
    """Draw the objective over pairs of the parameters that have a range and took several values.

    Args:
        path: The PNG file.
        plan: The study.
        study: The same study in Optuna.
        order: Names of all parameters, of which the first ones are drawn.

    Returns:
        The names of the parameters drawn; where there are fewer than two, or too few trials, no file is written.
    """
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    ranges = {p.name for p in plan.space if not p.choices}.intersection(varied_names(plan, trials))
    integers = {p.name for p in plan.space if p.integer}
    names = [name for name in order if name in ranges][:MAX_CONTOUR_PARAMETERS]
    if len(names) < 2 or len(trials) < MIN_TRIALS_FOR_CONTOURS or len({t.value for t in trials}) < 2:
        return []
    side = 4.5 if len(names) == 2 else 2.6 * len(names)
    with _optuna_figure(path, side + 1.3, side):
        optuna_plots.plot_contour(study, names, target_name=_metric(plan))
        for ax in pyplot.gcf().axes:
            for axis in (ax.xaxis, ax.yaxis):
                _set_ticks(axis, integer=axis.get_label_text() in integers)
            ax.label_outer()
    return names


@contextmanager
def _optuna_figure(path: Path, width: float, height: float) -> Iterator[None]:
    """Save the figure that Optuna draws in the context, of a size in inches, and leave pyplot as it was."""
    backend, figures = matplotlib.get_backend(), set(pyplot.get_fignums())
    pyplot.switch_backend("Agg")  # it needs no display and opens no window
    try:
        with matplotlib.rc_context(FIGURE_STYLE), warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
            figure = pyplot.gcf()
            figure.set_layout_engine("constrained")
            figure.set_size_inches(width, height)
            save_figure(figure, path)
    finally:
        for number in set(pyplot.get_fignums()) - figures:
            pyplot.close(number)
        with suppress(ImportError):  # a backend that this machine cannot load is not restored
            pyplot.switch_backend(backend)


def _set_ticks(axis: Axis, integer: bool) -> None:
    """Label as many ticks of a log axis as there is room for, and only whole numbers where all values are."""
    if axis.get_scale() == "log":
        low, high = axis.get_view_interval()
        decades = math.log10(high / low)
        axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if decades < 1 else (1, 3) if decades < 2 else (1,)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    elif integer:
        axis.set_major_locator(MaxNLocator("auto", integer=True))


def _metric(plan: StudyPlan) -> str:
    return f"validation {plan.objective.upper()}"
