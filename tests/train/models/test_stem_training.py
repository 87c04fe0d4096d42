"""Training of Stem in the loop that all models share: the average of weights, and what a checkpoint keeps."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from tests.train.models.test_stem import DATA, make_stem
from train.experiments.outputs import save_model
from train.fit.average import WeightAverage
from train.fit.checkpoints import Checkpoint, Progress
from train.fit.config import FitConfig, Tested
from train.fit.loop import fit, predict, train_epoch, validation_scores
from train.fit.step import make_optimizer
from train.models.stem import StemModel

CONFIG = FitConfig(epochs=4, batch_size=16, lr=1e-2, patience=50, ema=0.9, weight_decay=0.0)


def fitted(folder: Path, tested: Tested, seed: int = 0, stop_at: int = -1) -> tuple[StemModel, Progress]:
    """Train on slide A, in `folder` with a checkpoint; a number of epochs stops it there, as Ctrl-C does."""
    model = make_stem(seed=seed)
    rows = DATA.rows(("A",)), DATA.rows(("B",))
    model.prepare(DATA, *rows, 3)
    torch.manual_seed(1)
    folder.mkdir(exist_ok=True)

    def on_epoch(row: dict[str, float]) -> None:
        if row["epoch"] == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    return model, fit(model, DATA, *rows, CONFIG, Checkpoint(folder / "checkpoint.pt"), on_epoch, tested)


def test_the_average_of_weights_is_validated_and_tested(tmp_path: Path) -> None:
    model, progress = fitted(tmp_path, "last")
    plain, val = make_stem(), DATA.rows(("B",))
    plain.prepare(DATA, DATA.rows(("A",)), val, 3)
    optimizer = make_optimizer(plain, DATA.inputs, CONFIG)
    average, order = WeightAverage(list(plain.parameters()), 0.9), torch.Generator().manual_seed(CONFIG.seed)
    torch.manual_seed(1)
    for row in progress.history:
        train_epoch(plain, optimizer, DATA, DATA.rows(("A",)), 16, order, average=average)
        own = validation_scores(plain, DATA, val, "mse")["val_mse"]
        with average.in_place():
            assert row["val_mse"] == validation_scores(plain, DATA, val, "mse")["val_mse"] != own
    without = predict(plain, DATA, val)
    average.apply()
    assert torch.equal(predict(model, DATA, val), predict(plain, DATA, val))
    assert not torch.equal(predict(model, DATA, val), without)


def test_a_stopped_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    unbroken, whole = fitted(tmp_path / "a", "best")
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "b", "best", stop_at=1)
    resumed, rest = fitted(tmp_path / "b", "best", seed=99)
    for name in ("val_mse", "objective"):
        assert [row[name] for row in rest.history] == [row[name] for row in whole.history]
    for name, model in (("one", unbroken), ("two", resumed)):
        save_model(tmp_path / name, model)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
