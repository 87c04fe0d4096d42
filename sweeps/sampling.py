"""The sampler, which chooses the settings to try, and the pruners, which end trials early."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, HyperbandPruner, NopPruner
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

# A trial is judged at RUNGS points of each fold. Not at every epoch, because each value is written to the storage and
# read by all workers.
RUNGS = 10
WARM_UP = 2  # first points of a fold, at which nothing is pruned: small learning rates need time
FIRST_TRIALS = 5  # complete trials before any trial is pruned


class SeededTPE(BaseSampler):
    """TPE that draws each trial with a random state of its own, made from the study's seed and the trial's number.

    So the result does not depend on which worker runs a trial, or on whether the study was stopped in between: 100
    trials and then 20 more draw the same values as 120 trials, and no two workers draw the same.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._last_sampler: tuple[int, TPESampler] | None = None

    def _sampler(self, trial: FrozenTrial) -> TPESampler:
        """Return the sampler of this trial; the last one is kept, because Optuna calls it for each parameter."""
        if self._last_sampler is None or self._last_sampler[0] != trial.number:
            seed = int(np.random.SeedSequence([self._seed, trial.number]).generate_state(1)[0])
            # constant_liar counts the running trials as bad ones, so that workers do not try similar values at once.
            self._last_sampler = (trial.number, TPESampler(seed=seed, multivariate=True, constant_liar=True))
        return self._last_sampler[1]

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the parameters that are drawn together, as TPE does."""
        return self._sampler(trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw these parameters together, as TPE does."""
        return self._sampler(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one parameter, as TPE does."""
        return self._sampler(trial).sample_independent(study, trial, param_name, param_distribution)


class FairMedian(BasePruner):
    """Ends a trial whose value is worse than the median of the complete trials at the same point.

    The folds of a trial are run one after the other, and some are harder than others. A point is therefore a share of
    the epochs of one fold, and its value is the mean over the folds so far, with the last fold as it is then. So all
    trials are compared on the same slides after the same amount of training. A trial that stopped early in a fold keeps
    its value for the rest of this fold.

    Optuna's own median pruner differs in two ways. It takes the best value of a trial over all points, so that an easy
    first fold would hide bad values after it. And at each point it leaves out the trials that stopped earlier.
    """

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Tell whether to end the trial at its last point."""
        step = trial.last_step
        if step is None or (step - 1) % RUNGS < WARM_UP:
            return False
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        values = [v for t in complete if (v := value_at(t, step)) is not None]
        if len(values) < FIRST_TRIALS:
            return False
        own, median = trial.intermediate_values[step], float(np.median(values))
        return own < median if study.direction == StudyDirection.MAXIMIZE else own > median


def value_at(trial: FrozenTrial, step: int) -> float | None:
    """Return a trial's value at a point, or at the last point before it in the same fold; None where it has none."""
    first = (step - 1) // RUNGS * RUNGS + 1
    return next(
        (trial.intermediate_values[s] for s in range(step, first - 1, -1) if s in trial.intermediate_values), None
    )


def make_pruner(name: str, folds: int) -> BasePruner:
    """Make the pruner for --pruner `name` and trials of so many folds."""
    if name == "median":
        return FairMedian()
    if name == "hyperband":
        return HyperbandPruner(min_resource=WARM_UP, max_resource=folds * RUNGS, reduction_factor=3)
    return NopPruner()


def set_up_optuna() -> None:
    """Silence Optuna's messages, which are for programmers; the command prints its own."""
    import warnings

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed")  # workers beat themselves
