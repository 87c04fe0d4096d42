"""One trial: each fold trained as hist-train trains it, in memory, judged on its validation slides.

Of an ensemble a trial trains the first member alone. Nothing is written, drawn or tested. The tensors that a fold is
trained on have no row of its test slides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
import torch

from hist_cache.errors import HistError
from hist_cache.slide_parts import N_BANDS
from sweeps.sampling import RUNGS
from sweeps.study import StudyPlan
from sweeps.waiting import StorageLost
from train.data import SpotData
from train.experiments.jobs import Job
from train.experiments.outputs import make_member
from train.fit.loop import fit, predict
from train.metrics import summarize
from train.models.baselines import COMPONENTS, TUNED_COMPONENTS
from train.models.components import principal_components
from train.recipes.fitted import fit_recipe
from train.workspace import Workspace

TENSORS_KEPT = N_BANDS + 1
"""Of trials with other neighbours or genes, and of the folds of splits within slices, which have tensors of their own.

Trials go through all these folds in turn: were fewer kept, each would be dropped before the next trial asks for it.
Each takes about 6 kB a spot."""


def fold_data(workspace: Workspace, device: torch.device, job: Job, jobs: Sequence[Job]) -> SpotData:
    """The train and validation spots of a job alone.

    Args:
        workspace: The cached slides.
        device: Of the tensors.
        job: The fold.
        jobs: All folds of the trial, which share what is read.
    """
    slides = sorted({s for other in jobs for s in other.split.train + other.split.val})
    return workspace.data(job.data, device, slides).only(job.split.train + job.split.val)


def run_trial(
    trial: optuna.Trial,
    values: Mapping[str, Any],
    plan: StudyPlan,
    workspace: Workspace,
    device: torch.device,
    tick: Callable[[], None] = lambda: None,
) -> float:
    """Train all folds with a trial's values.

    Args:
        trial: What is run of it is written to it, however it ends.
        values: Of the parameters.
        plan: The study.
        workspace: The cached slides.
        device: To train on.
        tick: Called every epoch.

    Returns:
        The mean of the objective over the folds, of the weights that hist-train would test.

    Raises:
        optuna.TrialPruned: The trial lags behind others, or it diverges.
    """
    jobs = plan.jobs(workspace, values)
    epochs: list[int] = []
    scores: list[float] = []
    try:
        for job in jobs:
            fold = TrialFold(trial, job, plan, fold_data(workspace, device, job, jobs), scores)
            epochs.append(0)
            scores.append(fold.fit(epochs, tick))
    finally:
        trial.set_user_attr("epochs", epochs)
    return float(np.mean(scores))


class TrialFold:
    """A fold of a trial in training.

    Args:
        trial: That it belongs to.
        job: The fold.
        plan: The study.
        data: The train and validation spots.
        before: The objective in the folds before it.
    """

    def __init__(self, trial: optuna.Trial, job: Job, plan: StudyPlan, data: SpotData, before: Sequence[float]) -> None:
        self.trial, self.plan, self.before = trial, plan, list(before)
        self.setting = job.setting
        self.train, self.val = data.rows(job.split.train), data.rows(job.split.val)
        self.recipe = fit_recipe(
            *(self.setting.recipe, data, self.train, self.val, self.setting.fit.select_by),
            lambda cached: principal_components(cached, self.train, COMPONENTS),
            lambda seen: principal_components(seen, self.train, TUNED_COMPONENTS),
        )
        self.data = self.recipe.data
        torch.manual_seed(self.setting.fit.seed)  # as a fold of hist-train begins
        self.model = make_member(self.setting).to(data.spot.device)
        self.score, self.least = math.nan, math.inf
        self.last_rung = 0

    def fit(self, epochs: list[int], tick: Callable[[], None]) -> float:
        """Train.

        Args:
            epochs: Its last number counts the epochs.
            tick: Called every epoch.

        Returns:
            The objective of the weights that would be tested.
        """

        def on_epoch(row: dict[str, float]) -> None:
            epochs[-1] += 1
            self.judge(row)
            tick()
            if self.report(RUNGS * epochs[-1] // self.setting.fit.epochs) and self.trial.should_prune():
                raise optuna.TrialPruned

        tested = self.setting.protocol.tested
        try:
            self.model.look_around(self.data.surroundings)
            self.model.prepare(self.data, self.train, self.val, self.setting.fit.seed)
            if self.model.learns:
                fit(self.model, self.data, self.train, self.val, self.setting.fit, None, on_epoch, tested)
            else:
                self.score = self.validation_score()
            if not math.isfinite(self.score):
                raise HistError("training diverged: the last epoch has no finite validation error")
        except StorageLost:
            raise
        except HistError as error:  # a bad setting is no failure: the search learns from it
            self.trial.set_user_attr("problem", str(error))
            raise optuna.TrialPruned from None
        self.report(RUNGS)  # where it has stopped early
        return self.score

    def judge(self, row: Mapping[str, float]) -> None:
        """Keep the objective of the weights that would be tested if this epoch were the last."""
        watched = self.setting.fit.watched(row)
        better = watched < self.least
        self.least = min(self.least, watched)
        if better or self.setting.protocol.tested != "best":
            is_known = self.plan.objective == "mse" and not self.setting.recipe.changes_predictions
            self.score = row["val_mse"] if is_known else self.validation_score()

    def validation_score(self) -> float:
        """The objective on the validation spots, of the weights as they are."""
        predicted = self.recipe.complete(predict(self.model, self.data, self.val, quickly=True), self.val)
        scores = summarize(predicted.cpu().numpy(), self.data.expression[self.val].cpu().numpy())
        if self.plan.objective not in scores:
            raise HistError(f"no {self.plan.objective} of {len(self.val)} validation spots; give --objective mse")
        return scores[self.plan.objective]

    def report(self, rung: int) -> bool:
        """Report the mean over the folds so far; returns whether a new rung was reached."""
        mean = float(np.mean([*self.before, self.score]))
        if rung <= self.last_rung or not math.isfinite(mean):
            return False
        self.trial.report(mean, len(self.before) * RUNGS + rung)
        self.last_rung = rung
        return True
