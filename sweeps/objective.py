"""One trial: each fold trained as hist-train trains it, in memory, judged on its validation slides.

Nothing is written, drawn or tested. The tensors that a fold is trained on have no row of its test slides.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import torch

from hist_cache.errors import HistError
from sweeps.sampling import RUNGS
from sweeps.study import Plan
from train.data import SpotData, assemble
from train.experiments.jobs import Job
from train.fit.loop import fit, predict
from train.metrics import summarize
from train.models.hist import HistModel
from train.workspace import DataKey, Workspace

DATA_KEPT = 4  # of trials with other neighbours or genes
PER_SPOT = ("spot", "niche", "expression", "niche_expression", "slide", "row", "complete")


class TrialData:
    """The tensors of the slides that any fold trains or validates on, by what they are made of."""

    def __init__(self, workspace: Workspace, device: torch.device) -> None:
        self.workspace, self.device = workspace, device
        self._kept: OrderedDict[tuple[DataKey, tuple[str, ...]], SpotData] = OrderedDict()

    def of_fold(self, job: Job, jobs: Sequence[Job]) -> SpotData:
        """The train and validation spots of a job alone."""
        slides = {s for other in jobs for s in other.split.train + other.split.val}
        key = (job.data, tuple(sorted(slides)))
        if key not in self._kept:
            of_slides = {name: slide for name, slide in self.workspace.slides.items() if name in slides}
            want = job.data
            self._kept[key] = assemble(
                of_slides, want.neighbors, list(want.panel), self.device, want.transform, want.drop_edges
            )
            if len(self._kept) > DATA_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return only(self._kept[key], job.split.train + job.split.val)


def only(data: SpotData, slides: tuple[str, ...]) -> SpotData:
    """The spots of some slides, in the same order."""
    rows = data.rows(slides)
    return replace(data, **{name: getattr(data, name)[rows] for name in PER_SPOT}, memo={})


def run_trial(
    trial: optuna.Trial,
    values: Mapping[str, Any],
    plan: Plan,
    data: TrialData,
    tick: Callable[[], None] = lambda: None,
) -> float:
    """The mean of the objective over the folds, of the weights that hist-train would test.

    `tick` is called every epoch. Raises TrialPruned for a trial that lags behind, or that diverges; what it has run
    is written to the trial in either case.
    """
    jobs = plan.jobs(data.workspace, values)
    epochs: list[int] = []
    found: list[float] = []
    try:
        for job in jobs:
            run = FoldOfTrial(trial, job, plan, data.of_fold(job, jobs), found)
            epochs.append(0)
            found.append(run.fit(epochs, tick))
    finally:
        trial.set_user_attr("epochs", epochs)
    return float(np.mean(found))


class FoldOfTrial:
    """A fold in training; `before` are the values of the folds before it."""

    def __init__(self, trial: optuna.Trial, job: Job, plan: Plan, data: SpotData, before: Sequence[float]) -> None:
        self.trial, self.job, self.plan, self.data, self.before = trial, job, plan, data, list(before)
        self.setting = job.setting
        torch.manual_seed(self.setting.loop.seed)  # as a fold of hist-train begins
        self.model = HistModel(self.setting.model, self.setting.variant).to(data.spot.device)
        self.train, self.val = data.rows(job.split.train), data.rows(job.split.val)
        self.value, self.least_mse = math.nan, math.inf
        self.reported = 0

    def fit(self, epochs: list[int], tick: Callable[[], None]) -> float:
        """Train; `epochs[-1]` counts. The value of the weights that would be tested."""

        def on_epoch(row: dict[str, float]) -> None:
            epochs[-1] += 1
            self.judge(row)
            tick()
            if self.report(RUNGS * epochs[-1] // self.setting.loop.epochs) and self.trial.should_prune():
                raise optuna.TrialPruned

        tested = self.setting.protocol.tested
        try:
            fit(self.model, self.data, self.train, self.val, self.setting.loop, None, on_epoch, tested)
            if not math.isfinite(self.value):
                raise HistError("training diverged: the last epoch has no finite validation error")
        except HistError as error:  # a bad setting, of which the search is to learn: no failure
            self.trial.set_user_attr("problem", str(error))
            raise optuna.TrialPruned from None
        self.report(RUNGS)  # where it has stopped early
        return self.value

    def judge(self, row: Mapping[str, float]) -> None:
        """Keep the objective of the weights that would be tested if this epoch were the last."""
        better = row["val_mse"] < self.least_mse
        self.least_mse = min(self.least_mse, row["val_mse"])
        if not better and self.setting.protocol.tested == "best":
            return
        self.value = row["val_mse"]
        if self.plan.objective != "mse":
            predicted = predict(self.model, self.data, self.val)
            truth = self.data.expression[self.val]
            self.value = summarize(predicted.cpu().numpy(), truth.cpu().numpy())[self.plan.objective]

    def report(self, rung: int) -> bool:
        """Report the mean over the folds so far where a rung is reached; whether one was."""
        mean = float(np.mean([*self.before, self.value]))
        if rung <= self.reported or not math.isfinite(mean):
            return False
        self.trial.report(mean, len(self.before) * RUNGS + rung)
        self.reported = rung
        return True
