"""--precision: what auto takes, what is said of it, and that the same command always finds its folds."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import train.experiments.precision
import train.fit.loop
from extract.encoders.lora import LoraConfig
from hist_cache import load_run
from hist_cache.splits import Split
from tests.commands import Command, no_speedup
from tests.conftest import HIST_TRAIN
from tests.train.report.fake_runs import SETTING
from train.cli import main
from train.experiments.jobs import Job
from train.experiments.precision import measured_speedup, with_precision
from train.experiments.setting import Setting
from train.finetune.encoder import Finetuning
from train.workspace import DataKey

Run = Callable[..., tuple[int, str]]
Start = Callable[..., Command]
ARGV = (
    *("--split", "loso", "--width", 8, "--depth", 1, "--epochs", 3, "--batch-size", 16, "--n-genes", 20),
    *("--lr", 1e-3, "--jobs", 1),
)
BYTES = ("model.safetensors", "metrics.json")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Stands in for the measurement: what it says, and how often it was asked."""
    fake: dict[str, Any] = {"speedup": 2.1, "asked": 0, "hardware": True}

    def speedup(device: torch.device, width: int, rows: int) -> float:
        fake["asked"] += 1
        return fake["speedup"]

    monkeypatch.setattr(train.experiments.precision, "measured_speedup", speedup)
    monkeypatch.setattr(train.experiments.precision, "has_fast_bf16", lambda device: fake["hardware"])
    return fake


@pytest.fixture
def train_folds(cache: Path, run_command: Run, measured: dict[str, Any]) -> Callable[..., str]:
    """hist-train on the tiny cache: all that it printed."""

    def call(*more: object, code: int = 0) -> str:
        measured["asked"] = 0
        found, text = run_command(main, "--cache", cache, *ARGV, *more)
        assert found == code, text
        return text

    return call


def precisions(runs: Path) -> dict[str, list[str]]:
    """Precision -> folds that have begun."""
    found: dict[str, list[str]] = {}
    for config in sorted(runs.glob("tiny/*/fold*/config.json")):
        found.setdefault(json.loads(config.read_text())["loop"]["precision"], []).append(config.parent.name)
    return found


def test_auto_takes_what_was_measured_once_and_keeps_it(
    train_folds: Callable[..., str], measured: dict[str, Any], tmp_path: Path
) -> None:
    text = train_folds("--fold", 0)
    assert "precision: bf16 (products 2.1 x as fast as in fp32 here)" in text
    assert precisions(tmp_path / "runs") == {"bf16": ["fold0"]}
    measured["speedup"] = 0.9
    text = train_folds("--folds", 2)  # another measurement would split the experiment
    assert "precision: bf16, as the folds that are there" in text
    assert "2 folds, 1 done before" in text
    assert precisions(tmp_path / "runs") == {"bf16": ["fold0", "fold1"]}
    assert not measured["asked"]


@pytest.mark.parametrize(
    ("measurement", "said"),
    [
        ({"speedup": 1.1}, "precision: fp32 (bf16 products 1.1 x as fast here)"),
        ({"hardware": False}, "precision: fp32 (no hardware for bf16 products here)"),
    ],
)
def test_auto_is_fp32_where_bf16_gains_nothing(
    train_folds: Callable[..., str], measured: dict[str, Any], measurement: dict[str, Any], said: str
) -> None:
    measured |= measurement
    assert said in train_folds("--dry-run")


def test_runs_that_are_there_are_not_trained_anew_in_another_precision(
    train_folds: Callable[..., str], measured: dict[str, Any], tmp_path: Path
) -> None:
    """Also those of version 0.1, which knew no precision, and whose names are the same."""
    train_folds("--fold", 0, "--precision", "fp32")
    [config] = (tmp_path / "runs").glob("tiny/*/fold0/config.json")
    values = json.loads(config.read_text())
    setting = Setting.from_dict(values)
    del values["loop"]["precision"]
    old = Setting.from_dict(values)
    assert old == setting
    assert setting.name == config.parents[1].name
    assert "precision" not in old.identity()["loop"]
    config.write_text(json.dumps(values))
    text = train_folds("--ablation", "full,clip", "--fold", 0)  # a grid is all in one
    assert "precision: fp32, as the folds that are there" in text
    assert "2 runs, 1 done before" in text
    assert not measured["asked"]
    text = train_folds("--fold", 0, "--precision", "bf16")
    assert f"{config.parents[1].relative_to(tmp_path)}: the same setting in fp32, which stays as it is" in text
    # Of full both are there now, and fp32 has more folds in all.
    assert "2 runs, 2 done before" in train_folds("--ablation", "full,clip", "--fold", 0)
    train_folds("--ablation", "no_hea", "--fold", 0, "--precision", "bf16")
    text = train_folds("--ablation", "clip,no_hea", "--fold", 0)
    assert "2 runs, 2 done before" in text
    assert "of 2 runs 1 are in bf16 and 1 in fp32" in text


def test_a_stopped_fold_goes_on_in_its_precision_to_the_same_bytes(
    train_folds: Callable[..., str], measured: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train_folds("--fold", 0, "--runs", "whole")
    epoch = train.fit.loop.train_epoch

    def interrupted(*args: Any, **more: Any) -> Any:
        monkeypatch.setattr(train.fit.loop, "train_epoch", epoch)
        os.kill(os.getpid(), signal.SIGINT)
        return epoch(*args, **more)

    monkeypatch.setattr(train.fit.loop, "train_epoch", interrupted)
    train_folds("--fold", 0, code=130)
    assert list((tmp_path / "runs").glob("tiny/*/fold0/checkpoint.pt"))
    measured["speedup"] = 0.9
    assert "going on with the stopped run" in train_folds("--fold", 0, "--resume")
    assert same_bytes(tmp_path / "whole", tmp_path / "runs") == 1
    assert precisions(tmp_path / "runs") == {"bf16": ["fold0"]}


def same_bytes(one: Path, other: Path) -> int:
    """How many folds two folders of runs have; all of them have the same weights, metrics and predictions."""
    folds = sorted(path.parent.relative_to(one) for path in one.glob("tiny/*/fold*/metrics.json"))
    assert folds == sorted(path.parent.relative_to(other) for path in other.glob("tiny/*/fold*/metrics.json"))
    for fold in folds:
        for name in BYTES:
            assert (one / fold / name).read_bytes() == (other / fold / name).read_bytes(), name
        tables = [load_run(where / fold.parent).folds[0].predictions for where in (one, other)]
        assert (tables[0].X == tables[1].X).all()
    return len(folds)


def test_processes_side_by_side_write_the_same_bytes(cache: Path, start_command: Start, tmp_path: Path) -> None:
    """In fp32 see test_runner.py."""
    commands = [
        start_command(
            HIST_TRAIN, "--cache", cache, *ARGV, "--folds", 2, "--precision", "bf16", "--jobs", jobs,
            "--runs", tmp_path / str(jobs),
        )
        for jobs in (1, 2)
    ]  # fmt: skip
    for command in commands:
        text, _ = command.communicate()
        assert command.returncode == 0, text
    assert same_bytes(tmp_path / "1", tmp_path / "2") == 2
    assert precisions(tmp_path / "1") == {"bf16": ["fold0", "fold1"]}


def test_models_without_gradient_steps_have_no_precision(
    cache: Path, run_command: Run, measured: dict[str, Any], tmp_path: Path
) -> None:
    argv = ("--cache", cache, "--split", "loso", "--fold", 0, "--n-genes", 20, "--model", "ridge,knn")
    assert "precision:" not in run_command(main, *argv, "--runs", "auto")[1]
    assert "precision:" not in run_command(main, *argv, "--precision", "bf16")[1]
    assert same_bytes(tmp_path / "auto", tmp_path / "runs") == 2
    assert precisions(tmp_path / "runs") == {"fp32": ["fold0", "fold0"]}
    assert not measured["asked"]


def test_an_encoder_in_bf16_beside_a_model_in_fp32_goes_on(measured: dict[str, Any], tmp_path: Path) -> None:
    """As earlier versions fine-tuned; a new run has both in one precision."""
    tuning = Finetuning(LoraConfig(2), start="tokens", augment=False, precision="fp32")
    setting = replace(SETTING, finetuning=tuning)
    split, key = Split("a", ("S0",), ("S1",), ("S2",)), DataKey(6, ("GENE0",), "log2", False, "log_of_mean")

    def taken() -> tuple[str, str]:
        job = Job(setting, 0, tmp_path / "tiny" / setting.name / "fold0", split, key)
        [found] = with_precision([job], "auto", torch.device("cpu"))
        assert found.setting.finetuning is not None
        assert found.folder.parent.name == found.setting.name
        return found.setting.fit.precision, found.setting.finetuning.precision

    assert taken() == ("bf16", "bf16")
    measured["speedup"] = 1.0
    assert taken() == ("fp32", "fp32")
    mixed = replace(setting, finetuning=replace(tuning, precision="bf16"))
    fold = tmp_path / "tiny" / mixed.name / "fold3"
    fold.mkdir(parents=True)
    (fold / "config.json").write_text("{}")
    measured["asked"] = 0
    assert taken() == ("fp32", "bf16")
    assert not measured["asked"]


def test_a_measurement_leaves_the_random_state_alone() -> None:
    """The largest sizes are those that are measured, so that it takes no memory to speak of."""
    before = torch.get_rng_state()
    assert measured_speedup is not no_speedup
    assert measured_speedup(torch.device("cpu"), 16, 10_000_000) > 0
    assert torch.equal(torch.get_rng_state(), before)
