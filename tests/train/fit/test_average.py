"""The average of weights against its formula in float64, and as a part of training: resumed, tested best and last."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hist_cache.errors import HistError
from tests.train.fit.test_loop import make_data
from tests.train.fit.test_loop import make_model as make_hist
from tests.train.models.toy import ToyConfig, ToyModel
from train.data import SpotData
from train.experiments.outputs import save_model
from train.fit.average import WeightAverage
from train.fit.checkpoints import Checkpoint, Progress
from train.fit.config import FitConfig, Tested
from train.fit.loop import fit, predict, train_epoch, validation_scores
from train.fit.step import make_optimizer
from train.models.base import Model

CONFIG = FitConfig(epochs=6, batch_size=8, lr=1e-2, patience=50, ema=0.9)


def make_model(data: SpotData, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return ToyModel(ToyConfig(data.spot.shape[1], len(data.panel)))


def train_to(
    folder: Path, tested: Tested = "best", stop_at: int | None = None, seed: int = 0, make=make_model, **more: object
):
    """Train on slide A, in `folder` with a checkpoint; a number of epochs stops it there, as Ctrl-C does."""
    data = make_data()
    model = make(data, seed=seed)
    folder.mkdir(exist_ok=True)

    def on_epoch(row: dict[str, float]) -> None:
        if row["epoch"] == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    torch.manual_seed(1)
    config = replace(CONFIG, **more)  # type: ignore[arg-type]
    rows = data.rows(("A",)), data.rows(("B",))
    return model, fit(model, data, *rows, config, Checkpoint(folder / "checkpoint.pt"), on_epoch, tested)


def by_hand(data: SpotData, epochs: int) -> tuple[Model, list[dict[str, np.ndarray]]]:
    """Train without an average and take it afterwards in float64: the model, and the average after each epoch."""
    model = make_model(data)
    optimizer = make_optimizer(model, data.inputs, CONFIG)
    order = torch.Generator().manual_seed(CONFIG.seed)
    values = {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}
    count, averages = 0, []

    class Recorder(WeightAverage):
        def update(self) -> None:
            nonlocal count
            decay = min(0.9, (1 + count) / (10 + count))
            count += 1
            for name, p in model.named_parameters():
                values[name] = decay * values[name] + (1 - decay) * p.detach().double().numpy()

    torch.manual_seed(1)
    for _ in range(epochs):
        train_epoch(model, optimizer, data, data.rows(("A",)), 8, order, average=Recorder([], 0.0))
        averages.append(dict(values))
    return model, averages


def test_the_average_is_its_formula() -> None:
    data = make_data()
    model, progress = fit_last(CONFIG)
    plain, averages = by_hand(data, 6)
    assert progress.epoch == 6
    moved = 0.0
    for name, p in model.named_parameters():
        np.testing.assert_allclose(p.detach().numpy(), averages[-1][name], rtol=1e-4, atol=1e-6)
        moved = max(moved, float((p - dict(plain.named_parameters())[name]).detach().abs().max()))
    assert moved > 1e-3, "the average is not the weights"


def fit_last(config: FitConfig) -> tuple[Model, Progress]:
    data = make_data()
    model = make_model(data)
    torch.manual_seed(1)
    return model, fit(model, data, data.rows(("A",)), data.rows(("B",)), config, None, tested="last")


def test_what_is_validated_is_the_average() -> None:
    data = make_data()
    _, progress = fit_last(CONFIG)
    _, averages = by_hand(data, 6)
    for row, average in zip(progress.history, averages, strict=True):
        model = make_model(data, seed=5)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(torch.as_tensor(average[name]))
        scores = validation_scores(model, data, data.rows(("B",)), "mse")
        assert row["val_mse"] == pytest.approx(scores["val_mse"], rel=1e-4)


def test_who_is_called_after_an_epoch_sees_the_average() -> None:
    """A trial of a sweep scores the model there, and must score what is tested."""
    data = make_data()
    model, rows, errors = make_model(data), data.rows(("B",)), []

    def on_epoch(row: dict[str, float]) -> None:
        errors.append((predict(model, data, rows) - data.expression[rows]).double().square().mean().item())

    progress = fit(model, data, data.rows(("A",)), rows, CONFIG, None, on_epoch)
    assert errors == pytest.approx([row["val_mse"] for row in progress.history], rel=1e-6)


@pytest.mark.parametrize(("tested", "make"), [("best", make_model), ("last", make_model), ("best", make_hist)])
def test_a_stopped_training_goes_on_bit_for_bit(tmp_path: Path, tested: Tested, make) -> None:
    unbroken, whole = train_to(tmp_path / "a", tested, make=make)
    with pytest.raises(KeyboardInterrupt):
        train_to(tmp_path / "b", tested, stop_at=2, make=make)
    assert (tmp_path / "b/checkpoint.pt").exists()
    resumed, rest = train_to(tmp_path / "b", tested, seed=99, make=make)
    assert [r["val_mse"] for r in rest.history] == [r["val_mse"] for r in whole.history]
    for name, model in (("one", unbroken), ("two", resumed)):
        save_model(tmp_path / name, model)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_the_last_epoch_is_tested_with_its_average() -> None:
    data = make_data()
    model, progress = fit_last(replace(CONFIG, epochs=30, lr=0.05))
    val = [row["val_mse"] for row in progress.history]
    assert progress.best_epoch < 29, "otherwise best and last are the same"
    rows = data.rows(("B",))
    own = (predict(model, data, rows).double() - data.expression[rows].double()).square().mean().item()
    assert own == pytest.approx(val[-1], rel=1e-6)
    assert own != pytest.approx(val[progress.best_epoch], rel=1e-6)


def test_a_checkpoint_with_another_average_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train_to(tmp_path / "a", stop_at=1)
    with pytest.raises(HistError, match="its average of weights is not that of this model"):
        train_to(tmp_path / "a", ema=0.0)
    with pytest.raises(KeyboardInterrupt):
        train_to(tmp_path / "b", stop_at=1, ema=0.0)
    with pytest.raises(HistError, match="its average of weights is not that of this model"):
        train_to(tmp_path / "b")


def test_without_decay_nothing_is_kept() -> None:
    layer = nn.Linear(3, 2)
    before = layer.weight.detach().clone()
    average = WeightAverage(list(layer.parameters()), 0.0)
    average.update()
    with average.in_place():
        assert torch.equal(layer.weight, before)
    average.apply()
    assert torch.equal(layer.weight, before)
    assert average.state() == {}


def test_the_weights_come_back_after_the_average_was_in_their_place() -> None:
    layer = nn.Linear(3, 2)
    first = layer.weight.detach().clone()
    average = WeightAverage(list(layer.parameters()), 0.5)
    with torch.no_grad():
        layer.weight.add_(1)
    average.update()  # the first step's decay is 1/10
    own = layer.weight.detach().clone()
    inside = []

    def fail() -> None:
        with average.in_place():
            inside.append(layer.weight.detach().clone())
            raise ValueError("within")

    with pytest.raises(ValueError, match="within"):
        fail()
    torch.testing.assert_close(inside[0], 0.1 * first + 0.9 * own)
    assert torch.equal(layer.weight, own)
    assert layer.weight.requires_grad
