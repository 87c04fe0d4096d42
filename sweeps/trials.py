"""The trials of a study as data: their values, the best, what was saved, what mattered."""

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
from sweeps.study import Plan

if TYPE_CHECKING:
    import pandas as pd

LEAST_FOR_IMPORTANCE = 10  # complete trials


def values_of(plan: Plan, trial: FrozenTrial) -> dict[str, Any]:
    """What a trial was run with."""
    return {p.name: rounded(trial.params[p.name]) for p in plan.space if p.name in trial.params}


def best_trial(plan: Plan, trials: Sequence[FrozenTrial]) -> FrozenTrial:
    """The best of those that were run to their end; of several the first. `HistError` where there is none."""
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    if not complete:
        problems = [t.user_attrs["problem"] for t in trials if "problem" in t.user_attrs]
        raise HistError(f"no trial of {plan.name} came to its end" + (f": {problems[0]}" if problems else ""))
    return (max if plan.maximize else min)(complete, key=_value)


def ranked(plan: Plan, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Those run to their end, the best first."""
    return sorted((t for t in trials if t.state == TrialState.COMPLETE), key=_value, reverse=plan.maximize)


def _value(trial: FrozenTrial) -> float:
    return math.nan if trial.value is None else trial.value


@dataclass(frozen=True)
class Work:
    """Epochs of the finished trials, and what was not run."""

    trials: int
    complete: int
    pruned: int
    epochs: int
    """That were run."""
    stopped_early: int
    """That folds left of their `--epochs` because validation no longer improved."""
    by_pruning: int
    """What the pruned trials would have run to their end: folds as long as those of the complete ones."""

    def __str__(self) -> str:
        full = self.epochs + self.stopped_early + self.by_pruning
        return (
            f"{self.trials} trials, {self.pruned} of them pruned: {self.epochs:,} epochs run. Early stopping saved "
            f"{self.stopped_early:,} ({_share(self.stopped_early, full)} of all), pruning about {self.by_pruning:,} "
            f"({_share(self.by_pruning, full)})"
        )


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "0 %"


def work_of(plan: Plan, trials: Sequence[FrozenTrial]) -> Work:
    finished = [t for t in trials if t.state in FINISHED]
    most, folds = int(plan.settings["loop.epochs"]), plan.folds
    run = {t.number: [int(n) for n in t.user_attrs.get("epochs", [])] for t in finished}
    complete = [t for t in finished if t.state == TrialState.COMPLETE]
    whole = [n for t in complete for n in run[t.number]]
    usual = sum(whole) / len(whole) if whole else most
    pruned = [t for t in finished if t.state == TrialState.PRUNED]
    # The last fold of a pruned trial is what was cut; those before it ended by themselves.
    early = sum(most - n for n in whole) + sum(most - n for t in pruned for n in run[t.number][:-1])
    cut = sum(max(0.0, usual - n[-1]) + usual * (folds - len(n)) for n in (run[t.number] for t in pruned) if n)
    return Work(len(finished), len(complete), len(pruned), sum(sum(n) for n in run.values()), early, round(cut))


def importance(plan: Plan, study: optuna.Study) -> dict[str, float]:
    """Each parameter's share of the objective's variance over the complete trials, by fANOVA; the largest first.

    Empty where there are too few trials, or all values are alike.
    """
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    set_up_optuna()
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(complete) < LEAST_FOR_IMPORTANCE or len({t.value for t in complete}) < 2:
        return {}
    names = [p.name for p in plan.space if len({t.params[p.name] for t in complete}) > 1]
    if len(names) < 2:
        return dict.fromkeys(names, 1.0)
    evaluator = FanovaImportanceEvaluator(seed=plan.config.seed)
    return get_param_importances(study, evaluator=evaluator, params=names)


def trial_table(plan: Plan, trials: Sequence[FrozenTrial]) -> pd.DataFrame:
    """A row a trial: number, state, the objective, the values, epochs of each fold, process, problem, seconds."""
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
