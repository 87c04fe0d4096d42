"""`--logger`: what folds give while they run, handed to a logger by a thread that training does not wait for.

A logger never ends a training and never changes a number. What it has of a fold is in the fold's `logged.json`, so
that the same command, or a later one with `--logger`, adds what is missing: also of folds that were trained without.
"""

from __future__ import annotations

import logging
import math
import queue
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hist_cache.errors import InputError, kind_and_text
from hist_cache.executor import Events
from hist_cache.extras import require
from hist_cache.files import write_json
from hist_cache.passwords import mask_command
from hist_cache.runs import GEOMETRY, HISTORY, MAPS, TRAINING, Fold, read_object
from train import distributed
from train.experiments.fold_files import read_metrics
from train.experiments.jobs import Job
from train.experiments.setting import Setting
from train.loggers.fold_log import FoldLog, LoggedFold

log = logging.getLogger(__name__)

LOGGED = "logged.json"
LOGGER_PACKAGES = {"wandb": "wandb", "mlflow": "mlflow", "tensorboard": "tensorboard"}
FoldEvents = Events[Job, dict[str, Any]]


def check_logger(name: str | None) -> None:
    """`InputError` where the package of a logger is missing, or wandb would send and nobody is logged in."""
    if name is None:
        return
    require(LOGGER_PACKAGES[name], "loggers", f"--logger {name}")
    if name == "wandb":
        from train.loggers.wandb_log import check_login

        check_login()


def open_log(name: str, fold: LoggedFold) -> FoldLog:
    """Begin the log of a fold, or go on with it."""
    if name == "wandb":
        from train.loggers.wandb_log import WandbLog

        return WandbLog(fold)
    if name == "mlflow":
        from train.loggers.mlflow_log import MlflowLog

        return MlflowLog(fold)
    from train.loggers.tensorboard_log import TensorBoardLog

    return TensorBoardLog(fold)


def end_logger(name: str) -> None:
    """End what a logger has started beside this process."""
    if name == "wandb":
        from train.loggers.wandb_log import end_wandb

        end_wandb()


class LoggedFolds:
    """The logs of all folds of a command.

    Args:
        name: Of the logger.
        open_log: Begins the log of a fold.
    """

    def __init__(self, name: str, open_log: Callable[[str, LoggedFold], FoldLog] = open_log) -> None:
        self._name, self._open_log = name, open_log
        self._logs: dict[Path, FoldLog] = {}
        self._failed = self._place_said = False
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._call, name=f"logger-{name}", daemon=True)
        self._thread.start()

    @property
    def events(self) -> FoldEvents:
        """To be called as folds run; each call returns at once."""
        return Events(
            lambda job, row: self._calls.put(lambda: self._write(job, row)),
            lambda job, metrics: self._calls.put(lambda: self._finish(job, metrics)),
        )

    def add_finished(self, jobs: Sequence[Job]) -> None:
        """Log the finished folds among these that the logger does not have whole."""
        for job in jobs:
            self._calls.put(lambda job=job: self._add_finished(job))  # type: ignore[misc]

    def close(self) -> None:
        """Wait until the logger has everything."""
        self._calls.put(None)
        self._thread.join(5)
        if self._thread.is_alive():
            log.info(f"waiting until {self._name} has taken what was logged (Ctrl-C ends it; the runs are complete)")
            self._thread.join()

    def _call(self) -> None:
        while (call := self._calls.get()) is not None:
            self._safely(call)
        for opened in self._logs.values():  # of folds that are not finished
            self._safely(opened.stop)
        self._safely(lambda: end_logger(self._name))

    def _safely(self, call: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            call()
        except Exception as error:  # whatever it is, training goes on
            self._failed = True
            log.warning(
                f"--logger {self._name}: {mask_command([kind_and_text(error)])}; nothing more is logged now, "
                "training goes on; the same command adds what is missing"
            )

    def _write(self, job: Job, row: Mapping[str, float]) -> None:
        self._log_of(job).write(int(row["epoch"]), plain_numbers(row))

    def _finish(self, job: Job, metrics: Mapping[str, Any]) -> None:
        figures = [job.folder / name for name in (MAPS, TRAINING, GEOMETRY)]
        self._log_of(job).finish(final_values(metrics), [path for path in figures if path.exists()])
        del self._logs[job.folder]
        record = read_logged(job.folder)
        write_logged(job.folder, record | {"finished": sorted({*record["finished"], self._name})})

    def _add_finished(self, job: Job) -> None:
        if self._name in read_logged(job.folder)["finished"]:
            return
        if (job.folder / HISTORY).exists():  # each row is an epoch, also of an ensemble's members
            for epoch, row in enumerate(Fold(job.folder).history.to_dict("records")):
                self._write(job, {str(name): value for name, value in row.items()} | {"epoch": epoch})
        self._finish(job, read_metrics(job.folder))

    def _log_of(self, job: Job) -> FoldLog:
        if job.folder not in self._logs:
            record = read_logged(job.folder)
            fold = LoggedFold(
                record["key"],
                self._name in record["begun"],
                job.folder.parent.name,
                job.fold,
                job.setting.dataset,
                job.folder,
                logged_settings(job.setting),
            )
            write_logged(job.folder, record | {"begun": sorted({*record["begun"], self._name})})  # the key, above all
            self._logs[job.folder] = opened = self._open_log(self._name, fold)
            if not self._place_said:
                log.info(f"logged: {opened.place}")
                self._place_said = True
        return self._logs[job.folder]


def read_logged(folder: Path) -> dict[str, Any]:
    """What loggers have of a fold: its key, those that have begun, and those that have all of it."""
    path = folder / LOGGED
    empty = {"key": secrets.token_hex(4), "begun": [], "finished": []}
    if not path.exists():
        return empty
    record = read_object(path)
    if not (isinstance(record.get("key"), str) and all(isinstance(record.get(k), list) for k in ("begun", "finished"))):
        raise InputError(f"{path}: not what this program writes; delete it, and the fold is logged anew")
    return record


def write_logged(folder: Path, record: dict[str, Any]) -> None:
    """Write what `read_logged` reads."""
    write_json(folder / LOGGED, record)


def plain_numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row by names that every logger takes, without the epoch."""
    return {
        name.replace("@", "_"): float(value)
        for name, value in row.items()
        if name != "epoch" and isinstance(value, int | float) and not isinstance(value, bool)
    }


def final_values(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What is logged of metrics.json: `test/pcc_10`, `test_slide_mean/mse`, `ridge/pcc_10`, `test/diverged`."""
    tables = {"test": metrics["pooled"], "test_slide_mean": metrics["slide_mean"], **metrics["controls"]}
    values = {f"{table}/{name}": value for table, row in tables.items() for name, value in plain_numbers(row).items()}
    values["test/diverged"] = float(bool(metrics["diverged"]))
    return {name: value for name, value in values.items() if math.isfinite(value)}


def logged_settings(setting: Setting) -> dict[str, str | float | bool]:
    """What of a setting is worth a column: no digests, slides and paths."""
    values = setting.as_dict()
    chosen = {name: values[name] for name in ("dataset", "neighbors", "n_genes", "transform")}
    chosen |= {"method": setting.method, "encoder": setting.cache["encoder"], "protocol": setting.protocol.name}
    chosen |= {f"model.{name}": value for name, value in values["model"].items()}
    chosen |= {f"loop.{name}": value for name, value in values["loop"].items()}
    chosen |= {f"recipe.{name}": value for name, value in values.get("recipe", {}).items()}
    return {name: value for name, value in chosen.items() if isinstance(value, str | int | float)}


@contextmanager
def logging_to(name: str | None, jobs: Sequence[Job]) -> Iterator[FoldEvents]:
    """Events that log the folds of a command while it runs; without a name, or in a further process, they do nothing.

    Args:
        name: Of the logger.
        jobs: All folds of the command; those that are finished before and not logged are logged, too.
    """
    if name is None or distributed.rank() > 0:
        yield Events()
        return
    folds = LoggedFolds(name)
    try:
        folds.add_finished([job for job in jobs if job.done])
        yield folds.events
    finally:
        folds.close()
