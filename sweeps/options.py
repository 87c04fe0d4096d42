"""The options of hist-sweep: all of hist-train's, which hold for every trial, and the study's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hist_cache.options import option
from hist_cache.values import COUNT
from train.fit.config import SEEDS
from train.options import TrainOptions

SPACE = "alpha,beta,curvature"
PEER_SPACE = "lr,weight_decay,batch_size"  # of a model that learns and is not HiST


@dataclass(frozen=True)
class SweepOptions(TrainOptions):
    """All options of hist-sweep but those of `config_groups`."""

    trials: int = option(
        100,
        "how many finished trials the study shall have; more than it has adds to them",
        "N",
        group="study",
        within=COUNT,
    )
    space: str | None = option(
        None,
        f"what is searched: names of sweeps/spaces.toml, or a TOML or YAML file like it (default: {SPACE}; of other "
        f"models than hist {PEER_SPACE})",
        "NAMES",
    )
    objective: str | None = option(
        None, "validation metric, mean over folds: pcc@200, mse, ... (default: pcc@200, or the largest pcc@k there is)"
    )
    pruner: Literal["median", "hyperband", "none"] = option(
        "median", "ends trials that lag behind others at the same epoch"
    )
    storage: str | None = option(
        None,
        "postgresql://USER@HOST/DATABASE, which many machines share (default: a file)",
        "URL",
    )
    name: str | None = option(None, "of the study (default: 8 hex digits of its settings)", "NAME")
    jobs: int | None = option(None, "worker processes (default: one a CPU core, or one on a GPU)", "N", within=COUNT)
    seed: int = option(42, "seeds the choice of trials, and all that it seeds in hist-train", "N", within=SEEDS)
    resume: bool = option(False, "only go on with a study: an error where there is none", group="running")
