"""Training on a GPU: as on a CPU, the same bytes each time, whole after a stop, and without waiting within a step."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.gpu import CUDA, moved, no_synchronisation, on_cuda
from tests.train.fit.test_loop import make_data, make_model
from train import distributed
from train.data import CachedEmbeddings, Images, SpotData
from train.experiments.runner import default_workers
from train.finetune.inputs import HeldStore
from train.finetune.memory import choose_place
from train.fit.batches import prefetch, read_batch
from train.fit.checkpoints import Checkpoint, Progress
from train.fit.config import FitConfig
from train.fit.loop import fit, predict
from train.fit.step import encoder_parameters, make_optimizer, random_state, set_random_state, step
from train.models.baselines import KnnModel, RidgeModel
from train.models.configs import KnnConfig, RidgeConfig
from train.models.hist import HistModel

CONFIG = FitConfig(epochs=6, batch_size=16, lr=1e-3, patience=50)


def run(
    data: SpotData, precision: str = "fp32", folder: Path | None = None, stop_after: int | None = None, **config: object
) -> tuple[HistModel, Progress]:
    """Train on two slides; `stop_after` asks it to stop at the end of that epoch."""
    model = make_model(data, **config).to(data.spot.device)
    model.precision = precision  # type: ignore[assignment]
    torch.manual_seed(1)

    def on_epoch(row: dict[str, float]) -> None:
        if row["epoch"] == stop_after:
            os.kill(os.getpid(), signal.SIGINT)

    checkpoint = Checkpoint(folder / "checkpoint.pt") if folder else None
    train, val = data.rows(("A", "C")), data.rows(("B",))
    return model, fit(model, data, train, val, CONFIG, checkpoint, on_epoch)


def numbers(progress: Progress) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in progress.history]


@on_cuda
def test_it_learns_what_a_cpu_learns() -> None:
    data = make_data()
    on_cpu, expected = run(data, dropout=0.0)
    on_gpu, progress = run(moved(data), dropout=0.0)
    for ours, theirs in zip(numbers(progress), numbers(expected), strict=True):
        for name in ("val_mse", "mse", "loss", "hca", "c"):  # others count, or are small differences
            assert ours[name] == pytest.approx(theirs[name], rel=5e-3), name
    rows = torch.arange(96)
    ours = predict(on_gpu, moved(data), rows.to(CUDA)).cpu()
    torch.testing.assert_close(ours, predict(on_cpu, data, rows), rtol=1e-2, atol=1e-2)


@on_cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_seed_gives_the_same_bytes(precision: str) -> None:
    (a, first), (b, second) = (run(moved(make_data()), precision) for _ in range(2))
    assert numbers(first) == numbers(second)
    for name, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[name]), name


@on_cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stopped_run_ends_as_an_unbroken_one(precision: str, tmp_path: Path) -> None:
    """Bit for bit: the device's random state, which dropout draws from, is in the checkpoint."""
    data = moved(make_data())
    whole, unbroken = run(data, precision)
    with pytest.raises(KeyboardInterrupt):
        run(data, precision, tmp_path, stop_after=2)
    torch.rand(1000, device=CUDA)
    resumed, rest = run(data, precision, tmp_path)
    assert numbers(rest) == numbers(unbroken)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


@on_cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("variant", ["full", "euclidean", "clip"])
def test_a_step_does_not_wait(variant: str, precision: str) -> None:
    data = moved(make_data())
    model = make_model(data, variant).to(CUDA).train()
    model.precision = precision  # type: ignore[assignment]
    optimizer, rows = make_optimizer(model, data.inputs, CONFIG), torch.arange(16, device=CUDA)
    step(model, data.inputs, optimizer, read_batch(data, rows))  # the first one may set up libraries
    with no_synchronisation():
        for _ in range(3):
            step(model, data.inputs, optimizer, read_batch(data, rows))


@on_cuda
def test_baselines_predict_as_on_a_cpu() -> None:
    data, rows = make_data(), torch.arange(32, 64)
    train, val = data.rows(("A",)), data.rows(("C",))
    for kind, config in ((RidgeModel, RidgeConfig(12, 8)), (KnnModel, KnnConfig(12, 8))):
        predicted = []
        for device in (torch.device("cpu"), CUDA):
            there = moved(data, device)
            model = kind(config)
            model.prepare(there, train.to(device), val.to(device), 0)
            at = rows.to(device)
            predicted.append(model.predict(Images(there.spot[at].float(), there.niche[at].float(), at)).cpu())
        torch.testing.assert_close(*predicted, rtol=1e-4, atol=1e-4)


class Encoded(CachedEmbeddings):
    """Embeddings that pass through an encoder with dropout, which is trained with the model."""

    def encode(self, inputs: Tensor) -> Tensor:
        assert self.encoder is not None
        return self.encoder(inputs)


@on_cuda
def test_parts_of_a_batch_draw_the_same_dropout_again() -> None:
    """Without that, gradients of the second pass would not be those of the loss of the first."""
    data = moved(make_data())
    encoder = nn.Sequential(nn.Linear(12, 12), nn.Dropout(0.5)).to(CUDA).train()
    data = replace(data, encoder_inputs=Encoded(data.spot, data.niche, encoder))
    model = make_model(data, dropout=0.0).to(CUDA)
    batch = read_batch(data, torch.arange(16, device=CUDA))
    gradients = []
    for _ in range(2):
        torch.manual_seed(3)
        optimizer = make_optimizer(model, data.inputs, FitConfig(lr=1e-30, weight_decay=0.0))
        step(model, data.inputs, optimizer, batch, micro_batch=5, clip_norm=0.0)
        gradients.append([p.grad.clone() for p in encoder_parameters(data.inputs) if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
    state, x = random_state(batch.spot), torch.ones(1000, device=CUDA)
    masks = []
    for _ in range(2):
        masks.append(nn.functional.dropout(x))
        set_random_state(state, x)
    assert torch.equal(*masks)


@on_cuda
def test_inputs_in_the_hosts_memory_arrive_whole() -> None:
    """A thread reads ahead into pinned memory while the GPU is busy with other work."""
    g = torch.Generator().manual_seed(0)
    spot, niche = torch.randn(2, 512, 300, generator=g).half()
    store = HeldStore(spot, niche, CUDA, "", mapped=False)
    inputs = Encoded(spot, niche)
    object.__setattr__(inputs, "resident", False)
    object.__setattr__(inputs, "read", lambda rows, turns=None: store.read(rows))
    busy = torch.randn(4096, 4096, device=CUDA)
    order = torch.randperm(512, generator=g)
    read = []
    for levels in prefetch(inputs, order.to(CUDA).split(16)):
        busy = (busy @ busy).tanh()
        read.append([level.clone() for level in levels])
    for level, expected in zip(zip(*read, strict=True), (spot, niche), strict=True):
        assert torch.equal(torch.cat(level).cpu(), expected[order])


@on_cuda
def test_what_fits_is_kept_on_the_gpu() -> None:
    free = torch.cuda.mem_get_info()[0]
    assert choose_place(1000, CUDA) == "device"
    assert choose_place(free, CUDA) != "device"
    assert default_workers(8, CUDA) == 1


@on_cuda
def test_nccl_exchanges_what_training_exchanges(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One process, which sends to itself; that two give the same is tested on CPUs."""
    import torch.distributed as dist

    device = torch.device("cuda", 0)
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/group", rank=0, world_size=1, device_id=device)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)  # so that messages are sent
    try:
        total = distributed.all_reduce_sum(torch.full((3,), 2.0, device=device))
        assert total.tolist() == [2.0] * 3
        assert distributed.any_rank(True)
        assert not distributed.any_rank(False)
        distributed.barrier()
        weight = nn.Parameter(torch.ones(4, device=device))
        weight.grad = torch.full((4,), 6.0, device=device)
        distributed.average_gradients([weight])
        assert weight.grad.tolist() == [3.0] * 4, "the sum over processes by their number, two here"
    finally:
        dist.destroy_process_group()
