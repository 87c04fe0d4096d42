import copy
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hist_cache.errors import HistError, InputError
from train.data import SpotData
from train.fit.batches import read_batch
from train.fit.checkpoints import Checkpoint, Progress
from train.fit.config import MAX_GRADIENT_NORM, FitConfig
from train.fit.loop import fit, predict, train_epoch
from train.fit.step import make_optimizer, step
from train.models.configs import HistConfig
from train.models.hist import HistModel
from train.models.variants import get_variant

CPU = torch.device("cpu")


def make_data(n: int = 96, width: int = 12, genes: int = 8, seed: int = 0) -> SpotData:
    """Three slides whose expression follows from spot and niche embeddings."""
    g = torch.Generator().manual_seed(seed)
    spot, niche = torch.randn(2, n, width, generator=g).half()
    y = (
        spot.float() @ torch.randn(width, genes, generator=g) + niche.float() @ torch.randn(width, genes, generator=g)
    ) / width**0.5
    y = y + 3
    slide = torch.arange(3).repeat_interleave(n // 3)
    row, complete = torch.arange(n) % (n // 3), torch.ones(n, dtype=torch.bool)
    names = [f"G{i}" for i in range(genes)]
    return SpotData(spot, niche, y, y * 0.9, slide, row, complete, ["A", "B", "C"], names)


def make_model(data: SpotData, variant: str = "full", seed: int = 0, **config: object) -> HistModel:
    torch.manual_seed(seed)
    shape = HistConfig(data.spot.shape[1], len(data.panel), width=16, depth=1, **config)  # type: ignore[arg-type]
    return HistModel(shape, get_variant(variant))


def run(
    data: SpotData, folder: Path, epochs: int, model: HistModel | None = None, **more: object
) -> tuple[HistModel, Progress]:
    model = model or make_model(data)
    config = FitConfig(epochs=epochs, batch_size=16, lr=1e-3, patience=50)
    torch.manual_seed(1)
    checkpoint = Checkpoint(folder / "checkpoint.pt")
    return model, fit(model, data, data.rows(("A",)), data.rows(("B",)), config, checkpoint, **more)  # type: ignore[arg-type]


def test_it_learns_and_keeps_the_best_weights(tmp_path: Path) -> None:
    data = make_data()
    model, progress = run(data, tmp_path, 60)
    val = [row["val_mse"] for row in progress.history]
    assert progress.best_epoch == int(np.argmin(val))
    assert min(val) < 0.5 * val[0]
    again = ((predict(model, data, data.rows(("B",))) - data.expression[data.rows(("B",))]) ** 2).mean().item()
    assert again == pytest.approx(min(val))


def test_the_same_seed_gives_the_same_numbers(tmp_path: Path) -> None:
    a, b = (run(make_data(), tmp_path / str(i), 5)[1].history for i in range(2))
    for row in [*a, *b]:
        row.pop("seconds")
    assert a == b


def test_early_stopping_counts_epochs_without_improvement() -> None:
    config = FitConfig(epochs=100, patience=10)
    assert not Progress(epoch=15, best_epoch=5).finished(config.epochs, config.patience)
    assert Progress(epoch=16, best_epoch=5).finished(config.epochs, config.patience)
    assert Progress(epoch=100, best_epoch=99).finished(config.epochs, config.patience)


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    data = make_data()
    unbroken, whole = run(data, tmp_path / "a", 8)

    def stop(row: dict[str, float]) -> None:
        if row["epoch"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    (tmp_path / "b").mkdir()
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "b", 8, on_epoch=stop)
    assert (tmp_path / "b/checkpoint.pt").exists()
    resumed, rest = run(data, tmp_path / "b", 8, model=make_model(data, seed=99))
    assert [r["val_mse"] for r in rest.history] == [r["val_mse"] for r in whole.history]
    for name, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_sigterm_stops_as_ctrl_c_does(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        run(make_data(), tmp_path, 8, on_epoch=lambda row: os.kill(os.getpid(), signal.SIGTERM))
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_damaged_or_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"no checkpoint")
    with pytest.raises(HistError, match="delete it to start over"):
        run(make_data(), tmp_path, 2)


def test_a_batch_with_non_finite_gradients_is_skipped_and_counted() -> None:
    data = make_data()
    model = make_model(data)
    optimizer = make_optimizer(model, data.inputs, FitConfig(lr=1e-2))
    batch = read_batch(data, torch.arange(16))
    step(model, data.inputs, optimizer, batch)
    before = copy.deepcopy(model.state_dict())
    bad = replace(batch, expression=batch.expression * float("nan"))
    assert step(model, data.inputs, optimizer, bad)["skipped"] == 1
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert step(model, data.inputs, optimizer, batch)["skipped"] == 0
    assert all(torch.isfinite(v).all() for v in model.state_dict().values())
    assert any(not torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_step_is_that_of_plain_adamw_with_clipping() -> None:
    """The fused optimiser's scale and flag do what clip_grad_norm_ and a branch would."""
    data = make_data()
    data.expression.mul_(100)  # large gradients, so that clipping bites
    ours, theirs = make_model(data, dropout=0.0), make_model(data, dropout=0.0)
    fused = make_optimizer(ours, data.inputs, FitConfig(lr=1e-3))
    geometry = [id(p) for p in theirs.geometry_parameters()]
    rest = [p for p in theirs.parameters() if id(p) not in geometry]
    groups = [{"params": rest}, {"params": theirs.geometry_parameters(), "weight_decay": 0.0}]
    plain = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.01, foreach=False, fused=False)
    for i in range(4):
        batch = read_batch(data, torch.arange(16) + i)
        log = step(ours, data.inputs, fused, batch)
        loss, _ = theirs.loss(batch)
        plain.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), MAX_GRADIENT_NORM)
        assert norm > MAX_GRADIENT_NORM
        assert log["gradient_norm"].item() == pytest.approx(norm.item(), rel=1e-4)
        plain.step()
        theirs.after_step()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(
            value, theirs.state_dict()[name], rtol=2e-4, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_an_epoch_leaves_out_the_unfilled_batch_and_sees_others_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data()
    model = make_model(data)
    seen: list[int] = []
    loss = model.loss
    monkeypatch.setattr(model, "loss", lambda batch: (seen.append(len(batch.rows)), loss(batch))[1])
    order = torch.Generator().manual_seed(0)
    train_epoch(model, make_optimizer(model, data.inputs, FitConfig()), data, torch.arange(70), 32, order)
    assert seen == [32, 32]
    seen.clear()
    train_epoch(model, make_optimizer(model, data.inputs, FitConfig()), data, torch.arange(10), 32, order)
    assert seen == [10]


def test_predictions_do_not_read_the_gene_counts() -> None:
    data = make_data()
    model = make_model(data)
    before = predict(model, data, torch.arange(96))
    data.expression.fill_(float("nan"))
    data.niche_expression.fill_(float("nan"))
    assert torch.equal(predict(model, data, torch.arange(96)), before)


def test_geometry_stays_within_its_ranges() -> None:
    model = make_model(make_data())
    with torch.no_grad():
        for p in model.geometry_parameters():
            p.fill_(50.0)
    model.after_step()
    assert model.log_c.exp().item() == pytest.approx(10)
    assert model.log_scale_image.exp() == 1
    assert model.log_inverse_tau.exp().item() == pytest.approx(100)


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"epochs": 0}, {"batch_size": -1}])
def test_wrong_numbers(wrong: dict) -> None:
    with pytest.raises(InputError, match=r"must be (above 0|1 or more)"):
        FitConfig(**wrong)
    for more in ({"weight_decay": -1.0}, {"weight_decay": float("nan")}, {"seed": -1}, {"seed": 2**63}):
        with pytest.raises(InputError, match=r"--(weight-decay|seed) \S+: must be (0 or more|from 0 to 4294967295)"):
            FitConfig(**more)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="--curvature 20"):
        HistConfig(8, 8, curvature=20.0)


def test_interrupts_outside_the_main_thread_do_no_harm(tmp_path: Path) -> None:
    results: list[Progress] = []
    thread = threading.Thread(target=lambda: results.append(run(make_data(), tmp_path, 2)[1]))
    started = time.monotonic()
    thread.start()
    thread.join()
    assert results[0].epoch == 2
    assert time.monotonic() - started < 60
