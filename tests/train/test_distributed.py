"""Two processes with half a batch each are one process with the batch."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from tests.train.fit.test_loop import make_data, make_model
from train import distributed
from train.data import SpotData
from train.fit.loop import FitConfig, fit, step
from train.models.hist import HistModel

CONFIG = FitConfig(epochs=3, batch_size=16, lr=1e-3, patience=50)


def tiny(variant: str, encoder: bool) -> tuple[HistModel, SpotData]:
    data = make_data()
    model = make_model(data, variant, dropout=0.0)
    if encoder:
        torch.manual_seed(5)
        model.encoder = nn.Linear(12, 12)
    return model, data


def train(variant: str, encoder: bool, folder: Path) -> dict[str, object]:
    """A step's logged loss and weights, then some epochs; on this process's share of every batch."""
    model, data = tiny(variant, encoder)
    rows = distributed.shard(torch.arange(20))
    batch = (data.spot[rows].float(), data.niche[rows].float(), data.expression[rows], data.niche_expression[rows])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    log = step(model, optimizer, batch, micro_batch=3 if encoder else None)
    first = {k: v.clone() for k, v in model.state_dict().items()}
    gradients = {k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}
    mse = distributed.all_reduce_sum(log["mse"].clone()) / distributed.world_size()
    model, data = tiny(variant, encoder)
    progress = fit(model, data, data.rows(("A", "C")), data.rows(("B",)), CONFIG, folder / "checkpoint.pt")
    return {
        "first": first,
        "gradients": gradients,
        "hca": log["hca"],
        "mse": mse,
        "history": [[row["val_mse"], row["hca"], row["hea"], row["mse"], row["c"]] for row in progress.history],
    }


def work(number: int, port: int, variant: str, encoder: bool, folder: Path) -> None:
    os.environ |= {"RANK": str(number), "WORLD_SIZE": "2", "LOCAL_RANK": str(number)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    assert distributed.init() == torch.device("cpu")
    torch.save(train(variant, encoder, folder), folder / f"rank{number}.pt")
    distributed.destroy()


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "encoder"), [("full", False), ("full", True), ("no_hha", False)])
def test_two_are_as_one(variant: str, encoder: bool, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(work, (port, variant, encoder, tmp_path), nprocs=2, start_method="spawn")
    a, b = (torch.load(tmp_path / f"rank{i}.pt", weights_only=True) for i in range(2))
    one = train(variant, encoder, tmp_path / "one")
    for name, weight in a["first"].items():
        assert torch.equal(weight, b["first"][name]), name
    for name, gradient in one["gradients"].items():  # type: ignore[attr-defined]
        torch.testing.assert_close(a["gradients"][name], gradient, rtol=1e-4, atol=1e-6)
    for key in ("hca", "mse"):
        torch.testing.assert_close(a[key], one[key], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.tensor(a["history"]), torch.tensor(one["history"]), rtol=1e-4, atol=1e-5)


def test_one_process_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert distributed.init() is None
    assert (distributed.world_size(), distributed.rank()) == (1, 0)
    x = torch.randn(3, 2)
    assert distributed.all_gather(x) is x
    assert distributed.shard(x) is not None
    assert torch.equal(distributed.shard(x), x)
    assert distributed.any_rank(True)
    assert not distributed.any_rank(False)
