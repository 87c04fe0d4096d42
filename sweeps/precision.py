"""`--precision auto` of a study: what the study was made with, else what hist-train would take for its default."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from hist_cache.values import Precision
from sweeps.opening import stored_settings
from sweeps.study import StudyPlan
from train.experiments.precision import with_precision
from train.workspace import Workspace

log = logging.getLogger(__name__)


def settle_precision(
    plan_in: Callable[[Precision], StudyPlan], workspace: Workspace, device: torch.device
) -> StudyPlan:
    """The plan of a study in the precision that `auto` stands for; workers are given it, and measure nothing.

    Args:
        plan_in: Makes the plan for a precision.
        workspace: The cached slides.
        device: To train on.

    Raises:
        InputError: The storage of the study cannot be read.
    """
    plans = {"fp32": plan_in("fp32"), "bf16": plan_in("bf16")}
    for plan in plans.values():
        if (settings := stored_settings(plan)) is not None:
            made = settings.get("loop.precision", "fp32")
            log.info(f"precision: {made}, as study {plan.name} was made")
            return plans.get(made, plan)
    default, *_ = with_precision(plans["fp32"].final_jobs(workspace, {}), "auto", device)
    return plans[default.setting.fit.precision]
