"""Figures of studies of all kinds, and what drawing them leaves behind."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import optuna
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from optuna.trial import TrialState
from PIL import Image

from sweeps import figures
from sweeps.options import SweepOptions
from sweeps.sampling import set_up_optuna
from sweeps.space import Parameter
from sweeps.study import StudyPlan
from sweeps.trials import importance

SPACE = (
    Parameter("alpha", 0.01, 2.0, log=True),
    Parameter("temperature", 0.02, 0.5, log=True),
    Parameter("dropout", 0.0, 0.5),
    Parameter("depth", 0, 4, integer=True),
    Parameter("decoder_space", choices=("tangent", "hyperbolic")),
    Parameter("fixed_curvature", choices=(False, True)),
    Parameter("batch_size", choices=(64, 128, 256)),
)


def make_study(
    folder: Path, space: tuple[Parameter, ...], n_trials: int, maximize: bool = True
) -> tuple[StudyPlan, optuna.Study]:
    """A study with pruned, failed and running trials beside its complete ones; the first is the default setting."""
    set_up_optuna()
    plan = StudyPlan(
        options=SweepOptions(), space=space, objective="pcc@200" if maximize else "mse", defaults={}, settings={},
        folds=1, dataset="tiny", runs=folder, name="tiny", folder=folder,
    )  # fmt: skip
    study = optuna.create_study(
        direction="maximize" if maximize else "minimize", sampler=optuna.samplers.RandomSampler(0)
    )
    for i in range(n_trials):
        trial = study.ask()
        values = {p.name: p.suggest(trial) for p in space}
        value = 0.4 - 0.05 * abs(math.log10(values.get("alpha", 0.1))) + 0.01 * math.sin(i)
        trial.set_user_attr("default", i == 0)
        study.tell(trial, value if maximize else 1 - value)
    for state in (TrialState.PRUNED, TrialState.FAIL):
        trial = study.ask()
        for p in space:
            p.suggest(trial)
        study.tell(trial, state=state)
    study.ask()
    return plan, study


def draw_all(folder: Path, plan: StudyPlan, study: optuna.Study) -> tuple[list[str], list[str]]:
    """Draw what there is to draw; returns the names in slices and in contours."""
    figures.plot_history(folder / "history.png", plan, study)
    if shares := importance(plan, study):
        figures.plot_importance(folder / "importance.png", plan, study, list(shares))
    slices = figures.plot_slices(folder / "slices.png", plan, study)
    contours = figures.plot_contours(folder / "contours.png", plan, study, [p.name for p in plan.space])
    return slices, contours


def drawn_files(folder: Path) -> set[str]:
    """The PNG files in a folder, of which each has two colours at least and a size that a page can show."""
    for file in folder.iterdir():
        with Image.open(file) as image:
            assert image.format == "PNG"
            assert 400 <= image.width <= 1500
            assert 0.2 < image.height / image.width < 1.5
            assert len(np.unique(np.asarray(image.convert("L")))) > 1
    return {file.name for file in folder.iterdir()}


def check_labels(figure: Figure, path: Path) -> None:
    """Tick labels of an axis do not overlap, and no panel is larger than its neighbours or flat."""
    figure.draw_without_rendering()
    for ax in figure.axes:
        for axis, side in ((ax.xaxis, 0), (ax.yaxis, 1)):
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            labels = [tick.label1 for tick in ticks if tick.label1.get_visible() and tick.label1.get_text()]
            low, high = ax.get_window_extent().get_points()[:, side]
            boxes = [label.get_window_extent().get_points()[:, side] for label in labels]
            boxes = sorted((a, b) for a, b in boxes if low <= (a + b) / 2 <= high)
            assert all(end <= start for (_, end), (start, _) in pairwise(boxes)), path
    panels = [ax.get_window_extent() for ax in figure.axes if ax.get_subplotspec() is not None]
    assert max(p.width for p in panels) < 1.05 * min(p.width for p in panels), path
    assert max(p.height for p in panels) < 1.05 * min(p.height for p in panels), path


@pytest.mark.long
@pytest.mark.parametrize("maximize", [True, False])
def test_all_kinds_of_parameters_are_drawn_with_readable_labels(
    maximize: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a study that minimizes one of each kind, as its objective changes no more than the direction of a scale."""
    space = SPACE if maximize else (SPACE[0], SPACE[3], SPACE[4])
    plan, study = make_study(tmp_path, space, 20, maximize)
    save_figure = figures.save_figure

    def save_checked(figure: Figure, path: Path) -> None:
        check_labels(figure, path)
        figure.set_layout_engine("none")  # everything stands where it was laid out for the check
        save_figure(figure, path)

    monkeypatch.setattr(figures, "save_figure", save_checked)
    slices, contours = draw_all(tmp_path, plan, study)
    assert slices == [p.name for p in space]
    assert contours == [p.name for p in space if not p.choices]
    assert drawn_files(tmp_path) == {"history.png", "importance.png", "slices.png", "contours.png"}


@pytest.mark.parametrize("n_ranges", [1, 2])  # more are a grid of contours, as of all kinds above
def test_spaces_of_few_parameters(n_ranges: int, tmp_path: Path) -> None:
    plan, study = make_study(tmp_path, SPACE[:n_ranges], 12)
    slices, contours = draw_all(tmp_path, plan, study)
    assert slices == [p.name for p in SPACE[:n_ranges]]
    assert contours == (slices if n_ranges > 1 else [])
    expected = {"history.png", "importance.png", "slices.png"} | ({"contours.png"} if n_ranges > 1 else set())
    assert drawn_files(tmp_path) == expected


@pytest.mark.usefixtures("quick")
def test_a_parameter_that_took_one_value_is_left_out(tmp_path: Path) -> None:
    space = (*SPACE[:2], Parameter("dropout", 0.3, 0.3), Parameter("width", choices=(128,)))
    plan, study = make_study(tmp_path, space, 12)
    slices, contours = draw_all(tmp_path, plan, study)
    assert slices == contours == ["alpha", "temperature"]


def test_only_parameters_of_one_value(tmp_path: Path) -> None:
    plan, study = make_study(tmp_path, (Parameter("dropout", 0.3, 0.3),), 12)
    assert draw_all(tmp_path, plan, study) == ([], [])
    assert drawn_files(tmp_path) == {"history.png"}


@pytest.mark.parametrize(("n_trials", "expected"), [(1, {"history.png"}), (2, {"history.png", "slices.png"})])
def test_few_complete_trials(n_trials: int, expected: set[str], tmp_path: Path) -> None:
    plan, study = make_study(tmp_path, SPACE[:3], n_trials)
    draw_all(tmp_path, plan, study)
    assert drawn_files(tmp_path) == expected


def test_equal_objectives_have_no_contours(tmp_path: Path) -> None:
    plan, study = make_study(tmp_path, SPACE[:3], 0)
    study.optimize(lambda trial: 0.0 * sum(p.suggest(trial) for p in plan.space), n_trials=12)
    slices, contours = draw_all(tmp_path, plan, study)
    assert slices
    assert contours == []


def test_drawing_warns_of_nothing_and_leaves_pyplot_as_it_was(tmp_path: Path) -> None:
    plan, study = make_study(tmp_path, SPACE[:2], 12)
    own_figure = pyplot.figure()
    backend, settings = matplotlib.get_backend(), dict(matplotlib.rcParams)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            filters = list(warnings.filters)
            figures.plot_history(tmp_path / "history.png", plan, study)
            figures.plot_importance(tmp_path / "importance.png", plan, study, ["alpha", "temperature"])
            assert figures.plot_slices(tmp_path / "slices.png", plan, study)
            assert figures.plot_contours(tmp_path / "contours.png", plan, study, ["alpha", "temperature"])
            assert warnings.filters == filters
        assert matplotlib.get_backend() == backend
        assert dict(matplotlib.rcParams) == settings
        assert pyplot.get_fignums() == [own_figure.number]
        assert pyplot.gcf() is own_figure
    finally:
        pyplot.close(own_figure)


def test_a_figure_that_fails_is_closed_and_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, study = make_study(tmp_path, SPACE[:2], 12)
    settings = dict(matplotlib.rcParams)
    monkeypatch.setattr(figures.pyplot, "gcf", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        figures.plot_history(tmp_path / "history.png", plan, study)
    assert pyplot.get_fignums() == []
    assert dict(matplotlib.rcParams) == settings
    assert drawn_files(tmp_path) == set()


def test_a_backend_that_cannot_be_loaded_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MPLBACKEND may name one that this machine does not have."""
    plan, study = make_study(tmp_path, SPACE[:2], 3)
    monkeypatch.setattr(matplotlib, "get_backend", lambda: "module://missing_backend")
    figures.plot_history(tmp_path / "history.png", plan, study)
    assert drawn_files(tmp_path) == {"history.png"}
