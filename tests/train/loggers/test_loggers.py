"""What --logger leaves, read back by the loggers' own readers; runs are as they are without it."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

import sweeps.cli
import train.cli
from tests.small import TRAIN, Run, trained
from tests.train.loggers.wandb_files import records
from train.experiments import logged_folds
from train.loggers.fold_log import FoldLog, LoggedFold


@pytest.fixture
def started(run_command: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """`run_command` where nobody is logged in anywhere, and no server is named."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return run_command


def folds_of(runs: Path) -> list[Path]:
    return sorted(path.parent for path in runs.glob("tiny/*/fold*/metrics.json"))


def history(fold: Path) -> pd.DataFrame:
    return pd.read_csv(fold / "history.csv").set_index("epoch")


def pcc(fold: Path) -> float:
    return float(json.loads((fold / "metrics.json").read_text())["pooled"]["pcc@10"])


def make_log(folder: Path, kind: Callable[[LoggedFold], FoldLog], begun: bool = False) -> FoldLog:
    """The log of a fold that exists only as a name."""
    return kind(LoggedFold("0a1b2c3d", begun, "full-1", 0, "tiny", folder / "tiny/full-1/fold0", {"lr": 0.1}))


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def test_tensorboard_has_what_the_run_has_and_changes_no_number(
    started: Run, cache: Path, plain_runs: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    code, text = started(train.cli.main, "--cache", cache, "--runs", runs, *TRAIN, "--logger", "tensorboard")
    assert code == 0, text
    assert trained(runs) == trained(plain_runs), "the names of folders and all numbers"
    for fold in folds_of(runs):
        read, rows = events(fold / "tensorboard"), history(fold)
        for column in ("loss", "val_mse", "c"):
            assert [e.step for e in read.Scalars(column)] == list(rows.index)
            assert [e.value for e in read.Scalars(column)] == pytest.approx(list(rows[column]), rel=1e-6)
        assert read.Scalars("test/pcc_10")[0].value == pytest.approx(pcc(fold), rel=1e-6)
        assert set(read.Tags()["images"]) == {"maps", "training", "geometry"}
        assert json.loads((fold / "logged.json").read_text())["finished"] == ["tensorboard"]


def test_tensorboard_counts_an_epoch_once_after_a_kill(tmp_path: Path) -> None:
    from train.loggers.tensorboard_log import TensorBoardLog

    killed = make_log(tmp_path, TensorBoardLog)
    for epoch in range(4):
        killed.write(epoch, {"loss": float(epoch)})
    killed._writer.flush()  # type: ignore[attr-defined]
    resumed = make_log(tmp_path, TensorBoardLog, begun=True)  # from the checkpoint after epoch 1
    for epoch in range(2, 5):
        resumed.write(epoch, {"loss": epoch + 0.5})
    resumed.stop()
    read = events(tmp_path / "tiny/full-1/fold0/tensorboard").Scalars("loss")
    assert [(e.step, e.value) for e in read] == [(0, 0), (1, 1), (2, 2.5), (3, 3.5), (4, 4.5)]


def test_mlflow_gets_finished_runs_once(started: Run, cache: Path, plain_runs: Path, tmp_path: Path) -> None:
    runs = shutil.copytree(plain_runs, tmp_path / "runs")
    argv = (train.cli.main, "--cache", cache, "--runs", runs, *TRAIN, "--logger", "mlflow")
    code, text = started(*argv)
    assert code == 0, text
    assert f"MLflow experiment hist-cache in {(tmp_path / 'mlruns').as_uri()}" in text
    assert started(*argv)[0] == 0
    from mlflow import MlflowClient

    client = MlflowClient((tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("hist-cache")
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    folds = folds_of(runs)
    assert sorted(found) == [f"{fold.parent.name} fold {i}" for i, fold in enumerate(folds)]
    for fold, (_, run) in zip(folds, sorted(found.items()), strict=True):
        steps = client.get_metric_history(run.info.run_id, "loss")
        assert [(m.step, m.value) for m in steps] == list(history(fold)["loss"].items())
        assert run.data.metrics["test/pcc_10"] == pcc(fold)
        assert (run.info.status, run.data.params["model.width"]) == ("FINISHED", "8")
        assert {f.path for f in client.list_artifacts(run.info.run_id)} == {"maps.png", "training.png", "geometry.png"}


def test_mlflow_goes_on_with_the_run_of_a_stopped_fold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from train.loggers.mlflow_log import MlflowLog

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    log = make_log(tmp_path, MlflowLog)
    for epoch in range(3):
        log.write(epoch, {"val_mse": float(epoch)})
    log.stop()
    client, run = log._client, log._run  # type: ignore[attr-defined]
    assert client.get_run(run).info.status == "KILLED"
    log = make_log(tmp_path, MlflowLog, begun=True)
    assert client.get_run(run).info.status == "RUNNING"
    for epoch in range(1, 5):
        log.write(epoch, {"val_mse": float(epoch)})
    log.finish({"test/mse": 0.5}, [])
    assert [m.step for m in client.get_metric_history(run, "val_mse")] == [0, 1, 2, 3, 4]
    assert client.get_run(run).info.status == "FINISHED"


def test_wandb_offline_keeps_everything_here(
    started: Run, cache: Path, plain_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    runs = shutil.copytree(plain_runs, tmp_path / "runs")
    code, text = started(train.cli.main, "--cache", cache, "--runs", runs, *TRAIN, "--logger", "wandb")
    assert code == 0, text
    assert "wandb sync" in text
    files = {path.stem: path for path in (tmp_path / "wandb").glob("offline-run-*/*.wandb")}
    for fold in folds_of(runs):
        key = json.loads((fold / "logged.json").read_text())["key"]
        read = list(records(files.pop(f"run-{key}")))
        steps = [{i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in r.history.item}
                 for r in read if r.WhichOneof("record_type") == "history"]  # fmt: skip
        assert [s["loss"] for s in steps if "loss" in s] == list(history(fold)["loss"])
        assert steps[-1]["maps/_type"] == "image-file"
        summary = {u.key or "/".join(u.nested_key): u.value_json for r in read for u in r.summary.update}
        assert json.loads(summary["test/pcc_10"]) == pcc(fold)
        assert not any(r.WhichOneof("record_type") in ("output", "output_raw", "stats") for r in read)
    assert files == {}


def test_a_logger_that_fails_ends_no_training_and_gets_the_rest_later(
    started: Run, cache: Path, plain_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train.loggers.tensorboard_log import TensorBoardLog

    runs = tmp_path / "runs"
    argv = (train.cli.main, "--cache", cache, "--runs", runs, *TRAIN, "--fold", 1, "--logger", "tensorboard")
    write, calls = TensorBoardLog.write, []

    def lose_connection(log: TensorBoardLog, epoch: int, row: dict[str, float]) -> None:
        calls.append(epoch)
        if len(calls) > 1:
            raise ConnectionError("the server\nis away")
        write(log, epoch, row)

    with monkeypatch.context() as patch:
        patch.setattr(TensorBoardLog, "write", lose_connection)
        code, text = started(*argv)
    assert code == 0, text
    assert text.count("--logger tensorboard: ConnectionError: the server is away; nothing more is logged") == 1
    assert len(calls) == 2
    assert trained(runs).items() <= trained(plain_runs).items()
    assert started(*argv)[0] == 0
    for fold in folds_of(runs):
        assert [e.step for e in events(fold / "tensorboard").Scalars("loss")] == list(history(fold).index)


def test_what_a_logger_needs_is_said_before_anything_runs(
    started: Run, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ("--cache", cache, "--runs", tmp_path / "runs")
    code, text = started(train.cli.main, *where, *TRAIN, "--logger", "wandb")
    assert (code, text.count("nobody is logged in; give `wandb login` first, or set WANDB_MODE=offline")) == (2, 1)
    code, text = started(sweeps.cli.main, *where, "--logger", "mlflow")
    assert (code, text.count("--logger mlflow: is for hist-train")) == (2, 1)
    find = importlib.util.find_spec
    monkeypatch.setattr("hist_cache.extras.find_spec", lambda name: None if name == "mlflow" else find(name))
    code, text = started(train.cli.main, *where, *TRAIN, "--logger", "mlflow")
    expected = "--logger mlflow: the package mlflow is not installed; pip install 'hist-cache[loggers]'"
    assert (code, text.count(expected)) == (2, 1)
    assert not (tmp_path / "runs").exists()


def test_a_fold_that_a_user_has_broken_is_named(tmp_path: Path) -> None:
    (tmp_path / "logged.json").write_text("{}")
    with pytest.raises(logged_folds.InputError, match=r"logged\.json: not what this program writes"):
        logged_folds.read_logged(tmp_path)


def test_no_password_of_a_server_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from train.loggers.mlflow_log import MlflowLog

    client = SimpleNamespace(get_experiment_by_name=lambda name: SimpleNamespace(experiment_id="1"))
    run = SimpleNamespace(info=SimpleNamespace(run_id="2"))
    client.create_run, client.log_batch = (lambda *args, **more: run), lambda *args, **more: None
    monkeypatch.setattr("mlflow.MlflowClient", lambda tracking_uri: client)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@example.org/mlflow")
    assert make_log(tmp_path, MlflowLog).place == "MLflow experiment hist-cache in https://me:***@example.org/mlflow"


def test_nor_by_a_logger_that_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise ConnectionError("API request to https://me:secret@example.org/api failed")

    folds = logged_folds.LoggedFolds("mlflow")
    folds._calls.put(fail)
    folds.close()
    assert "https://me:***@example.org/api failed" in caplog.text
    assert "secret" not in caplog.text
