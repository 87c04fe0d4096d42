"""Which settings are tried, and which trials are given up."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

RUNGS = 10  # a fold's epochs are judged at so many points: each is written to the disk, and read by all workers
WARM_UP = 2  # of a fold's, at which nothing is pruned: learning rates need time to show what they are worth
FIRST_TRIALS = 5  # that are finished before any is pruned


class SeededTPE(BaseSampler):
    """TPE with a random state of each trial's own, made of the study's seed and the trial's number.

    Which worker runs a trial, and whether the study was stopped in between, then decides nothing: 100 trials and 20
    more draw what 120 would have drawn, and no two workers draw the same.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._latest: tuple[int, TPESampler] | None = None

    def _of(self, trial: FrozenTrial) -> TPESampler:
        if self._latest is None or self._latest[0] != trial.number:
            own = int(np.random.SeedSequence([self._seed, trial.number]).generate_state(1)[0])
            # constant_liar: what others are running counts as bad, so that it is not tried next door.
            self._latest = (trial.number, TPESampler(seed=own, multivariate=True, constant_liar=True))
        return self._latest[1]

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._of(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._of(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._of(trial).sample_independent(study, trial, param_name, param_distribution)


class FairMedian(BasePruner):
    """Ends a trial whose value is worse than the median of what the finished ones had at the same point.

    Folds differ in how hard they are, and are run one after the other. A point is therefore a share of one fold's
    epochs, the value the mean over the folds so far (the last as it stands), and all trials are compared on the same
    slides after as much training; one that has stopped early stands as it is for the rest of its fold. Optuna's own
    median takes a trial's best value of all points, in which an easy first fold would hide everything after it, and
    leaves out at a point those that had stopped before.
    """

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        step = trial.last_step
        if step is None or (step - 1) % RUNGS < WARM_UP:
            return False
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        values = [v for t in finished if (v := value_at(t, step)) is not None]
        if len(values) < FIRST_TRIALS:
            return False
        own, median = trial.intermediate_values[step], float(np.median(values))
        return own < median if study.direction == StudyDirection.MAXIMIZE else own > median


def value_at(trial: FrozenTrial, step: int) -> float | None:
    """What a trial had at a point, or last before it in the same fold."""
    first = (step - 1) // RUNGS * RUNGS + 1
    return next(
        (trial.intermediate_values[s] for s in range(step, first - 1, -1) if s in trial.intermediate_values), None
    )


def make_pruner(name: str, folds: int) -> BasePruner:
    if name == "median":
        return FairMedian()
    if name == "hyperband":
        return HyperbandPruner(min_resource=WARM_UP, max_resource=folds * RUNGS, reduction_factor=3)
    return NopPruner()


def set_up_optuna() -> None:
    """Its own messages are for those who program with it; ours say what happens."""
    import warnings

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
