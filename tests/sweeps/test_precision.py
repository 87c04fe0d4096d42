"""A study has one precision, in all of its workers and whatever is measured later."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import train.experiments.precision
from sweeps.opening import open_study
from sweeps.options import SweepOptions
from sweeps.study import StudyPlan
from sweeps.workers import prepare
from tests.sweeps.test_study import settings


def plan_where(speedup: float | None, options: SweepOptions, monkeypatch: pytest.MonkeyPatch) -> StudyPlan:
    """The plan where bf16 is measured to be so much faster; None: nothing may be measured."""

    def measured(*size: object) -> float:
        assert speedup is not None, "measured"
        return speedup

    monkeypatch.setattr(train.experiments.precision, "measured_speedup", measured)
    monkeypatch.setattr(train.experiments.precision, "has_fast_bf16", lambda device: True)
    return prepare(options)[0]


def precision_of(plan: StudyPlan) -> str:
    return str(plan.settings.get("loop.precision", "fp32"))


@pytest.mark.parametrize("name", [None, "mine"])
def test_a_study_that_was_begun_keeps_its_precision(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    options = settings(cache, tmp_path, name=name)
    bf16 = plan_where(2.0, options, monkeypatch)
    assert precision_of(bf16) == "bf16"
    assert precision_of(plan_where(1.0, options, monkeypatch)) == "fp32"  # nothing was begun yet
    open_study(bf16).close()
    again = plan_where(None, options, monkeypatch)
    assert (again.name, again.settings) == (bf16.name, bf16.settings)
    assert "--precision bf16" in again.command({})
    worker = plan_where(None, again.options, monkeypatch)  # what a process is given
    assert worker.settings == bf16.settings
    other = plan_where(None, options.with_values({"precision": "fp32"}), monkeypatch)
    assert precision_of(other) == "fp32"
    assert (other.name == bf16.name) == (name is not None)


def test_a_study_from_before_there_was_a_precision_goes_on_in_fp32(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = settings(cache, tmp_path)
    old = plan_where(None, options.with_values({"precision": "fp32"}), monkeypatch)
    assert not [key for key in old.settings if "precision" in key and not key.startswith("cache")]
    open_study(old).close()
    assert plan_where(None, options, monkeypatch).name == old.name


def test_the_default_runs_precision_is_that_of_a_new_study(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = settings(cache, tmp_path)
    plan, workspace = prepare(options.with_values({"precision": "fp32"}))
    [job, *_] = plan.final_jobs(workspace, {})
    job.folder.mkdir(parents=True)
    (job.folder / "config.json").write_text("{}")
    assert precision_of(plan_where(None, options, monkeypatch)) == "fp32"


def test_a_model_without_gradient_steps_has_none(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_hist = {"width": None, "depth": None, "batch_size": None, "epochs": None, "lr": None}
    options = settings(cache, tmp_path, model="knn", **of_hist)
    (tmp_path / "space.toml").write_text("[nearest]\nlow = 1\nhigh = 20\nint = true\n")
    options = dataclasses.replace(options, space=str(tmp_path / "space.toml"))
    plan = plan_where(None, options, monkeypatch)
    assert "loop.precision" not in plan.settings
