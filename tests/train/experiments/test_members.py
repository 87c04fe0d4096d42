"""Members of an ensemble are trained as models of successive seeds; a stopped ensemble ends as an unbroken one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hist_cache.runs import checkpoint_files
from hist_cache.splits import Split
from tests.train.fit.test_loop import make_data
from tests.train.models.toy import ToyConfig, register_toy
from tests.train.report.fake_runs import SETTING
from train.experiments import members
from train.experiments.jobs import Job
from train.experiments.members import Trained, train_members, train_one
from train.experiments.outputs import make_member, save_model
from train.fit.checkpoints import Progress
from train.fit.config import FitConfig
from train.models import registry
from train.models.configs import KnnConfig
from train.models.ensemble import EnsembleModel
from train.recipes.config import RecipeConfig
from train.workspace import DataKey

FIT = FitConfig(epochs=3, batch_size=16, lr=1e-2, patience=50, seed=7, ema=0.5)


@pytest.fixture(autouse=True)
def toy() -> Iterator[None]:
    """A model that learns in a moment, for as long as a test runs."""
    before = dict(registry._ENTRIES)
    register_toy()
    yield
    registry._ENTRIES.clear()
    registry._ENTRIES.update(before)


def make_job(folder: Path, ensemble: int = 3, fit: FitConfig = FIT) -> Job:
    setting = replace(
        SETTING,
        model_name="toy",
        variant=None,
        model=ToyConfig(12, 8),
        fit=fit,
        recipe=RecipeConfig(ensemble=ensemble),
    )
    folder.mkdir(exist_ok=True)
    key = DataKey(6, tuple(make_data().panel), "log2", drop_edges=False)
    return Job(setting, 0, folder, Split(("A",), ("B",), ("C",), "one"), key)


def first_of(job: Job, seed: int = 7) -> torch.nn.Module:
    torch.manual_seed(seed)
    return make_member(job.setting)


def train(job: Job, stop_at: int | None = None) -> tuple[Trained, list[float]]:
    epochs: list[float] = []

    def on_epoch(row: dict[str, float]) -> None:
        epochs.append(row["epoch"])
        if row["epoch"] == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    return train_members(job, first_of(job), make_data(), on_epoch), epochs  # type: ignore[arg-type]


def test_each_member_is_a_model_of_its_own_seed(tmp_path: Path) -> None:
    trained, epochs = train(make_job(tmp_path / "ensemble"))
    assert isinstance(trained.model, EnsembleModel)
    assert epochs == list(range(9)), "counted over all members"
    for i in range(3):
        alone = make_job(tmp_path / f"alone{i}", 1, replace(FIT, seed=7 + i))
        model = first_of(alone, seed=7 + i)
        progress = train_one(alone, model, make_data(), lambda row: None, None)  # type: ignore[arg-type]
        for name, value in model.state_dict().items():
            assert torch.equal(value, trained.model.member(i).state_dict()[name]), name
        assert [r["val_mse"] for r in progress.history] == [r["val_mse"] for r in trained.members[i].history]
    assert trained.first is trained.model.member(0)
    assert all(p.best == {} for p in trained.members), "the members have these weights"
    assert all(p.grad is None for p in trained.model.parameters())
    assert trained.epochs == 9
    assert [(row["member"], row["epoch"]) for row in trained.history] == [(m, e) for m in range(3) for e in range(3)]


@pytest.mark.parametrize("stop_at", [0, 2, 3, 5, 7])  # 2 and 5 are the last epochs of members
def test_a_stopped_ensemble_goes_on_bit_for_bit(tmp_path: Path, stop_at: int) -> None:
    unbroken, _ = train(make_job(tmp_path / "a"))
    job = make_job(tmp_path / "b")
    with pytest.raises(KeyboardInterrupt):
        train(job, stop_at)
    names = [f"checkpoint.{i}.pt" for i in range(1, stop_at // 3 + 1)] + ["checkpoint.pt"]
    assert [path.name for path in checkpoint_files(job.folder)] == names
    rest, epochs = train(job)
    assert epochs == list(range(stop_at + 1, 9))
    for name, trained in (("one", unbroken), ("two", rest)):
        save_model(tmp_path / name, trained.model)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.parametrize(("rank", "seeds"), [(0, [7, 8, 9]), (2, [7, 10, 11])])
def test_processes_on_one_batch_have_the_same_weights_and_other_dropout(
    rank: int, seeds: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seed of the first member is that of the caller."""
    found, weights = [], []

    def train_one(job: Job, model: torch.nn.Module, *more: object) -> Progress:
        found.append(torch.initial_seed())
        weights.append(next(model.parameters()))
        return Progress()

    monkeypatch.setattr(members, "train_one", train_one)
    monkeypatch.setattr(members.distributed, "rank", lambda: rank)
    job = make_job(tmp_path)
    train_members(job, first_of(job), make_data(), lambda row: None)  # type: ignore[arg-type]
    assert found == seeds
    for i, weight in enumerate(weights):
        assert torch.equal(weight, next(first_of(job, seed=7 + i).parameters()))


def test_a_stop_in_the_last_epoch_of_all_has_nothing_left_to_stop(tmp_path: Path) -> None:
    trained, epochs = train(make_job(tmp_path), stop_at=8)
    assert len(trained.members) == 3
    assert len(epochs) == 9


def test_a_member_does_not_go_on_from_another_members_checkpoint(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    train(job)
    (tmp_path / "checkpoint.1.pt").replace(tmp_path / "checkpoint.2.pt")
    with pytest.raises(Exception, match="was made for another run: member 1 -> 2"):
        train(job)


def test_one_model_keeps_no_checkpoint_once_it_is_trained(tmp_path: Path) -> None:
    job = make_job(tmp_path, 1)
    model = first_of(job)
    progress = train_one(job, model, make_data(), lambda row: None, None)  # type: ignore[arg-type]
    assert checkpoint_files(tmp_path) == []
    trained = Trained(model, (progress,))  # type: ignore[arg-type]
    assert trained.first is model
    assert trained.history is progress.history
    assert "member" not in trained.history[0]


def test_a_model_that_does_not_learn_is_computed_at_once(tmp_path: Path) -> None:
    job = make_job(tmp_path, 1)
    job = replace(job, setting=replace(job.setting, model_name="knn", model=KnnConfig(12, 8)))
    model = make_member(job.setting)
    progress = train_one(job, model, make_data(), lambda row: None, None)
    assert progress.history == []
    assert len(model.state_dict()["bank"]) == 32
    assert list(tmp_path.iterdir()) == []
