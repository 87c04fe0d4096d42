"""`--logger mlflow`: a run of MLflow for each fold, in the store of $MLFLOW_TRACKING_URI or in ./mlruns."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hist_cache.passwords import mask_command
from train.loggers.fold_log import PROJECT, LoggedFold

KEY_TAG = "hist_cache.fold"
AT_ONCE = 100  # parameters, or metrics, that a server takes in one request
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # else MLflow reports its use to its makers
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # 7 are minutes of waiting for a server that is away
    "MLFLOW_ALLOW_FILE_STORE": "true",  # versions from 3.13 on refuse ./mlruns without it
}


def prepare_mlflow() -> None:
    """Set what MLflow reads from the environment as it is imported, where the user has not."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


class MlflowLog:
    """A run of the experiment `hist-cache`, found again by a tag with the fold's key."""

    def __init__(self, fold: LoggedFold) -> None:
        prepare_mlflow()
        from mlflow import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI") or Path("mlruns").resolve().as_uri()
        self._client: Any = MlflowClient(tracking_uri=uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        self.place = f"MLflow experiment {name} in {mask_command([uri])}"
        found: list[Any] = []
        if fold.begun:
            found = self._client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{fold.key}'")
        if found:
            self._run: str = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
        else:
            tags = {KEY_TAG: fold.key, "run": fold.run, "dataset": fold.dataset}
            self._run = self._client.create_run(experiment, run_name=fold.title, tags=tags).info.run_id
        last = self._client.get_metric_history(self._run, "val_mse") if found else []
        self._next_epoch = max((metric.step for metric in last), default=-1) + 1
        self._write_settings(fold.settings)

    def _write_settings(self, settings: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(name, str(value)[:500]) for name, value in settings.items()]
        for start in range(0, len(params), AT_ONCE):
            self._client.log_batch(self._run, params=params[start : start + AT_ONCE])

    def write(self, epoch: int, row: Mapping[str, float]) -> None:
        """Add the values of an epoch, unless the run has it."""
        if epoch >= self._next_epoch:
            self._write_metrics(epoch, row)

    def _write_metrics(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        for start in range(0, len(metrics), AT_ONCE):
            self._client.log_batch(self._run, metrics=metrics[start : start + AT_ONCE])

    def finish(self, metrics: Mapping[str, float], figures: Sequence[Path]) -> None:
        """Add metrics and figures, and mark the run as finished."""
        self._write_metrics(0, metrics)
        for path in figures:
            self._client.log_artifact(self._run, str(path))
        self._client.set_terminated(self._run, "FINISHED")

    def stop(self) -> None:
        """Mark the run as killed."""
        self._client.set_terminated(self._run, "KILLED")
