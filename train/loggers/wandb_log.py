"""`--logger wandb`: a run of Weights & Biases for each fold; WANDB_MODE=offline keeps it on this machine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hist_cache.errors import InputError
from train.loggers.fold_log import PROJECT, LoggedFold

SERVER_WAIT_S = 120  # for a server that does not answer


def import_wandb() -> Any:
    """The package, without its reports of errors to its makers."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    import wandb

    return wandb


def check_login() -> None:
    """`InputError` where runs would be sent and nobody is logged in; nothing is sent, and nobody is asked."""
    wandb = import_wandb()
    if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False, verify=False):
        raise InputError("--logger wandb: nobody is logged in; give `wandb login` first, or set WANDB_MODE=offline")


def end_wandb() -> None:
    """End the process by which wandb writes and sends."""
    import_wandb().teardown()


class WandbLog:
    """A run whose ID is the fold's key, in a group with the other folds of the setting.

    It has the values that are given to it and nothing else: neither code, output and installed packages nor what wandb
    measures of the machine.
    """

    def __init__(self, fold: LoggedFold) -> None:
        self._wandb = import_wandb()
        settings = self._wandb.Settings(
            silent=True,
            console="off",
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
            init_timeout=SERVER_WAIT_S,
            finish_timeout=SERVER_WAIT_S,
            finish_timeout_raises=True,
        )
        self._run: Any = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=fold.key,
            name=fold.title,
            group=fold.run,
            tags=[fold.dataset],
            config=dict(fold.settings),
            resume="allow",
            reinit="create_new",
            settings=settings,
        )
        self._next_epoch = int(self._run.starting_step)
        self.place = self._run.project_url or f"wandb sync {Path(self._run.dir).parent.parent}"

    def write(self, epoch: int, row: Mapping[str, float]) -> None:
        """Add the values of an epoch, unless the run has it."""
        if epoch >= self._next_epoch:
            self._run.log(dict(row), step=epoch)

    def finish(self, metrics: Mapping[str, float], figures: Sequence[Path]) -> None:
        """Add the metrics to the run's summary, the figures as media, and wait until all is sent."""
        if figures:
            self._run.log({path.stem: self._wandb.Image(str(path)) for path in figures})
        self._run.summary.update(dict(metrics))
        self._run.finish()

    def stop(self) -> None:
        """End the run as one that is not finished."""
        self._run.finish(exit_code=1)
