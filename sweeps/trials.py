"""The trials of a study as data: their values, the best one, the epochs that were saved, and what mattered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from hist_cache.errors import HistError
from sweeps.sampling import set_up_optuna
from sweeps.space import rounded
from sweeps.storage import FINISHED
from sweeps.study import StudyPlan

if TYPE_CHECKING:
    import pandas as pd
    from optuna.importance import FanovaImportanceEvaluator

MIN_TRIALS_FOR_IMPORTANCE = 10  # complete ones


def values_of(plan: StudyPlan, trial: FrozenTrial) -> dict[str, Any]:
    """Return the value of each parameter that a trial was run with."""
    return {p.name: rounded(trial.params[p.name]) for p in plan.space if p.name in trial.params}


def best_trial(plan: StudyPlan, trials: Sequence[FrozenTrial]) -> FrozenTrial:
    """Return the best complete trial; of equal ones the first.

    Raises:
        HistError: Where no trial was run to its end.
    """
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    if not complete:
        problems = [t.user_attrs["problem"] for t in trials if "problem" in t.user_attrs]
        raise HistError(f"no trial of {plan.name} came to its end" + (f": {problems[0]}" if problems else ""))
    return (max if plan.maximize else min)(complete, key=_value)


def ranked(plan: StudyPlan, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the complete trials, the best first."""
    return sorted((t for t in trials if t.state == TrialState.COMPLETE), key=_value, reverse=plan.maximize)


def _value(trial: FrozenTrial) -> float:
    return math.nan if trial.value is None else trial.value


@dataclass(frozen=True)
class StudyWork:
    """Epochs that the finished trials ran, and epochs that were saved."""

    trials: int
    complete: int
    pruned: int
    epochs: int
    """Epochs that were run."""
    stopped_early: int
    """Epochs that folds did not run because validation no longer improved."""
    by_pruning: int
    """Epochs that the pruned trials would still have run, if their folds were as long as those of complete trials."""

    def __str__(self) -> str:
        """Describe the work in two sentences."""
        full = self.epochs + self.stopped_early + self.by_pruning
        return (
            f"{self.trials} trials, {self.pruned} of them pruned: {self.epochs:,} epochs run. Early stopping saved "
            f"{self.stopped_early:,} ({_share(self.stopped_early, full)} of all), pruning about {self.by_pruning:,} "
            f"({_share(self.by_pruning, full)})"
        )


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "0 %"


def study_work(plan: StudyPlan, trials: Sequence[FrozenTrial]) -> StudyWork:
    """Count the epochs that the trials ran and those that were saved."""
    finished = [t for t in trials if t.state in FINISHED]
    max_epochs, folds = int(plan.settings.get("loop.epochs", 0)), plan.folds
    epochs = {t.number: [int(n) for n in t.user_attrs.get("epochs", [])] for t in finished}
    complete = [n for t in finished if t.state == TrialState.COMPLETE for n in epochs[t.number]]
    mean = sum(complete) / len(complete) if complete else max_epochs
    pruned = [epochs[t.number] for t in finished if t.state == TrialState.PRUNED]
    # Pruning cuts the last fold of a trial short. The folds before it ended by themselves.
    stopped_early = sum(max_epochs - n for n in complete) + sum(max_epochs - n for ns in pruned for n in ns[:-1])
    by_pruning = sum(max(0.0, mean - ns[-1]) + mean * (folds - len(ns)) for ns in pruned if ns)
    return StudyWork(
        trials=len(finished),
        complete=sum(t.state == TrialState.COMPLETE for t in finished),
        pruned=len(pruned),
        epochs=sum(map(sum, epochs.values())),
        stopped_early=stopped_early,
        by_pruning=round(by_pruning),
    )


def importance(plan: StudyPlan, study: optuna.Study) -> dict[str, float]:
    """Compute each parameter's share of the objective's variance over the complete trials, by fANOVA.

    Returns:
        Shares by name, the largest first; empty where there are too few trials, or all values are alike.
    """
    from optuna.importance import get_param_importances

    set_up_optuna()
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < MIN_TRIALS_FOR_IMPORTANCE or len({t.value for t in complete}) < 2:
        return {}
    names = varied_names(plan, complete)
    if len(names) < 2:
        return dict.fromkeys(names, 1.0)
    return get_param_importances(study, evaluator=importance_evaluator(plan), params=names)


def importance_evaluator(plan: StudyPlan) -> FanovaImportanceEvaluator:
    """fANOVA, seeded with the study's seed so that the same trials always give the same shares."""
    from optuna.importance import FanovaImportanceEvaluator

    return FanovaImportanceEvaluator(seed=plan.options.seed)


def varied_names(plan: StudyPlan, trials: Sequence[FrozenTrial]) -> list[str]:
    """Names of the parameters that took several values in the complete trials."""
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    return [p.name for p in plan.space if len({t.params[p.name] for t in complete}) > 1]


def trial_table(plan: StudyPlan, trials: Sequence[FrozenTrial]) -> pd.DataFrame:
    """Make a table with one row for each trial: its state, values and objective, and how it was run."""
    import pandas as pd

    rows = [
        {"trial": t.number, "state": t.state.name.lower(), plan.objective: t.value}
        | values_of(plan, t)
        | {
            "epochs": " ".join(map(str, t.user_attrs.get("epochs", []))),
            "seconds": t.duration.total_seconds() if t.duration else None,
            "process": t.user_attrs.get("process"),
            "problem": t.user_attrs.get("problem"),
        }
        for t in trials
    ]
    return pd.DataFrame(rows)
