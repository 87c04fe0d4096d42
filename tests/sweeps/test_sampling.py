"""Which settings are tried and which are given up, on functions that cost nothing."""

from __future__ import annotations

import optuna
import pytest
from optuna.trial import TrialState

from sweeps.sampling import FIRST_TRIALS, RUNGS, WARM_UP, FairMedian, SeededTPE, make_pruner, set_up_optuna

set_up_optuna()


def drawn(seed: int, *parts: int) -> list[float]:
    """x of all trials of a study that was run in parts."""
    storage = optuna.storages.InMemoryStorage()
    for n in parts:
        study = optuna.create_study(study_name="s", storage=storage, load_if_exists=True, sampler=SeededTPE(seed))
        study.optimize(lambda trial: (trial.suggest_float("x", -1, 1) - 0.3) ** 2, n_trials=n)
    return [t.params["x"] for t in study.trials]


def test_the_seed_decides_and_a_stop_in_between_does_not() -> None:
    assert drawn(1, 25) == drawn(1, 25) == drawn(1, 14, 11)
    assert drawn(1, 25) != drawn(2, 25)
    assert len(set(drawn(1, 25))) == 25


def test_it_finds_what_is_good() -> None:
    values = drawn(3, 60)
    assert min(abs(x - 0.3) for x in values[-20:]) < 0.02
    assert sum(abs(x - 0.3) for x in values[-20:]) < sum(abs(x - 0.3) for x in values[:20])


def run_fold(trial: optuna.Trial, fold: int, value: float, rungs: int = RUNGS) -> None:
    for rung in range(1, rungs + 1):
        trial.report(value, fold * RUNGS + rung)
        if trial.should_prune():
            raise optuna.TrialPruned


@pytest.mark.parametrize(("direction", "good", "bad"), [("minimize", 1.0, 2.0), ("maximize", 0.8, 0.2)])
def test_a_trial_worse_than_the_median_is_ended_after_warming_up(direction: str, good: float, bad: float) -> None:
    study = optuna.create_study(direction=direction, pruner=FairMedian())

    def objective(trial: optuna.Trial) -> float:
        value = good if trial.number < FIRST_TRIALS else bad
        run_fold(trial, 0, value)
        return value

    study.optimize(objective, n_trials=FIRST_TRIALS + 1)
    last = study.trials[-1]
    assert last.state == TrialState.PRUNED
    assert last.last_step == WARM_UP + 1


def test_an_easy_first_fold_hides_nothing() -> None:
    """All do well in the first fold; in the second the last trial lags. Its best value is that of the first fold."""
    study = optuna.create_study(direction="maximize", pruner=FairMedian())

    def objective(trial: optuna.Trial) -> float:
        run_fold(trial, 0, 0.9)
        value = 0.7 if trial.number < FIRST_TRIALS else 0.5
        run_fold(trial, 1, value)
        return value

    study.optimize(objective, n_trials=FIRST_TRIALS + 1)
    assert study.trials[-1].state == TrialState.PRUNED
    assert study.trials[-1].last_step == RUNGS + WARM_UP + 1


@pytest.mark.parametrize("name", ["hyperband", "none"])
def test_other_pruners(name: str) -> None:
    study = optuna.create_study(direction="maximize", pruner=make_pruner(name, 2))

    def objective(trial: optuna.Trial) -> float:
        value = 0.5 + 0.01 * (trial.number * 7 % 20)
        run_fold(trial, 0, value)
        run_fold(trial, 1, value)
        return value

    study.optimize(objective, n_trials=40)
    pruned = sum(t.state == TrialState.PRUNED for t in study.trials)
    assert pruned > 10 if name == "hyperband" else pruned == 0
