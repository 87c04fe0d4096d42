"""Recorded steps: their logic with a recorder that computes on the CPU, and CUDA's own where there is a GPU."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor

from tests.gpu import moved, on_cuda
from tests.train.fit.test_loop import make_data, make_model
from train.data import SpotData
from train.fit.config import MAX_GRADIENT_NORM, FitConfig
from train.fit.graph import ORDINARY_STEPS, CudaRecorder, RecordedStep, why_not_recorded
from train.fit.loop import fit, train_epoch
from train.fit.step import make_optimizer
from train.models.base import Log
from train.models.hist import HistModel

CONFIG = FitConfig(epochs=4, batch_size=16, lr=1e-3, patience=50)


class FakeRecorder:
    """Records on the CPU: what is replayed is computed anew, from the memory that the recording named."""

    def __init__(self, device: torch.device) -> None:
        self.calls: list[str] = []

    def warm_up(self, work: Callable[[], None]) -> None:
        self.calls.append("warm up")
        work()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        self.calls.append("record")

        def replay() -> None:
            self.calls.append("replay")
            work()

        return replay


class Refuses(FakeRecorder):
    """A device on which recording fails."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might be ...")


class InTheSameMemory(RecordedStep):
    """Returns the same tensors each time, as a graph does."""

    held: Log | None = None

    def __call__(self, rows: Tensor) -> Log:
        log = super().__call__(rows)
        self.held = self.held or {name: value.clone() for name, value in log.items()}
        for name, value in log.items():
            self.held[name].copy_(value)
        return self.held


def epochs(data: SpotData, recorder: FakeRecorder | None, n: int = 2) -> tuple[HistModel, list[dict[str, float]]]:
    model = make_model(data)
    optimizer = make_optimizer(model, data.inputs, CONFIG)
    recorded = recorder and InTheSameMemory(model, optimizer, data, 16, MAX_GRADIENT_NORM, recorder)
    torch.manual_seed(1)
    order, rows = torch.Generator().manual_seed(0), torch.arange(96)
    rows_of = [train_epoch(model, optimizer, data, rows, 16, order, recorded=recorded) for _ in range(n)]
    return model, rows_of


@pytest.mark.parametrize("kind", [FakeRecorder, Refuses])
def test_all_steps_count_recorded_or_not(kind: type[FakeRecorder], caplog: pytest.LogCaptureFixture) -> None:
    data, recorder = make_data(), kind(torch.device("cpu"))
    ordinary, expected = epochs(data, None)
    replayed, logged = epochs(data, recorder)
    assert logged == expected, "the values of each step count once, not those of the last one over and over"
    for name, value in ordinary.state_dict().items():
        assert torch.equal(value, replayed.state_dict()[name]), name
    if kind is FakeRecorder:
        assert recorder.calls == ["warm up"] * ORDINARY_STEPS + ["record"] + ["replay"] * (12 - ORDINARY_STEPS)
        assert not caplog.records
    else:
        assert len(caplog.records) == 1, "it is said once"
        assert "launched one by one (operation not permitted when stream is capturing CUDA" in caplog.text


def test_what_cannot_be_recorded_is_said(caplog: pytest.LogCaptureFixture) -> None:
    data = make_data()
    with caplog.at_level(logging.WARNING):
        progress = fit(make_model(data), data, data.rows(("A",)), data.rows(("B",)), CONFIG, None, record=True)
    assert progress.epoch == CONFIG.epochs
    assert caplog.messages == [
        "steps are not recorded as a CUDA graph, but launched one by one: the device is no GPU of NVIDIA"
    ]


def test_what_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnGpu:
        """Data on a GPU, of which only the device and the encoder are looked at."""

        device = torch.device("cuda", 0)
        encoder: object = None

        @property
        def spot(self) -> OnGpu:
            return self

        inputs = spot

    data = cast(SpotData, OnGpu())
    assert why_not_recorded(data, 128, 128) is None
    assert why_not_recorded(data, 127, 128) == "there are fewer spots than a batch has"
    monkeypatch.setattr("train.distributed.world_size", lambda: 2)
    assert why_not_recorded(data, 128, 128) == "several processes share a batch"
    monkeypatch.setattr(OnGpu, "encoder", torch.nn.Identity())
    assert why_not_recorded(data, 128, 128) == "an encoder is trained too"


@on_cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_replayed_steps_train_as_ordinary_ones(precision: str, caplog: pytest.LogCaptureFixture) -> None:
    """With dropout: a graph draws the masks that ordinary steps would draw."""
    data = moved(make_data())
    histories, weights = [], []
    for record in (False, True):
        model = make_model(data).cuda()
        model.precision = precision
        torch.manual_seed(1)
        progress = fit(model, data, data.rows(("A",)), data.rows(("B",)), CONFIG, None, record=record)
        histories.append([[row["val_mse"], row["loss"], row["gradient_norm"]] for row in progress.history])
        weights.append(model.state_dict())
    assert "launched one by one" not in caplog.text
    torch.testing.assert_close(torch.tensor(histories[0]), torch.tensor(histories[1]), rtol=1e-3, atol=1e-4)
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=1e-2, atol=5e-3, msg=lambda m, n=name: f"{n}: {m}")


@on_cuda
def test_a_replayed_step_skips_a_batch_that_is_not_finite() -> None:
    data = moved(make_data())
    data.expression[80] = float("nan")
    model = make_model(data).cuda().train()
    optimizer = make_optimizer(model, data.inputs, CONFIG)
    recorded = RecordedStep(model, optimizer, data, 16, MAX_GRADIENT_NORM, CudaRecorder(data.spot.device))
    rows = torch.arange(16, device="cuda")
    for _ in range(ORDINARY_STEPS + 2):
        assert recorded(rows)["skipped"].item() == 0
    assert recorded.recorded
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert recorded(rows + 80)["skipped"].item() == 1
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert recorded(rows)["skipped"].item() == 0
    assert any(not torch.equal(v, before[k]) for k, v in model.state_dict().items())
