"""The STevs-style model: its loss written again, what predictions depend on, a stop, NaN of test slides, precision."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from torch import Tensor

from hist_cache.errors import HistError
from tests.gpu import CUDA, moved, no_synchronisation, on_cuda
from tests.train.fit.test_loop import make_data
from train.data import Images, SpotData
from train.fit.batches import read_batch
from train.fit.checkpoints import Checkpoint, Progress
from train.fit.config import MAX_GRADIENT_NORM, FitConfig
from train.fit.graph import RecordedStep
from train.fit.loop import fit, predict
from train.fit.step import loss_of, make_optimizer, step
from train.models.configs import StevsConfig
from train.models.ensemble import EnsembleModel
from train.models.gaussians import Gaussian, product_with_prior
from train.models.stevs import StevsModel

EPOCHS = 6


def placed(seed: int = 0, n: int = 96) -> SpotData:
    """Three slides whose spots have places."""
    places = torch.rand(n, 2, generator=torch.Generator().manual_seed(seed)) * torch.tensor([4000.0, 6000.0])
    return replace(make_data(n), position=places)


def made(data: SpotData, seed: int = 0, **options: object) -> StevsModel:
    """A model that has seen the data and learns from slide A."""
    torch.manual_seed(seed)
    model = StevsModel(StevsConfig(data.spot.shape[1], len(data.panel), **options))  # type: ignore[arg-type]
    model.look_around(data.surroundings)
    model.prepare(data, data.rows(("A",)), data.rows(("B",)), 0)
    return model


def trained(data: SpotData, folder: Path, model: StevsModel, stop_at: int = -1) -> Progress:
    """Six epochs on slide A, stopped after one of them."""

    def stop(row: dict[str, float]) -> None:
        if row["epoch"] == stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    folder.mkdir(exist_ok=True)
    torch.manual_seed(1)
    config = FitConfig(epochs=EPOCHS, batch_size=16, lr=1e-3, patience=50)
    rows = data.rows(("A",)), data.rows(("B",))
    return fit(model, data, *rows, config, Checkpoint(folder / "checkpoint.pt"), stop, "last")


def experts_of(model: StevsModel, data: SpotData, rows: Tensor) -> list[Gaussian]:
    """What each expert says outside of training, the coordinates last."""
    batch = read_batch(data, rows)
    with torch.no_grad():
        return [*model.eval().image_experts(batch), model.coordinate_expert(rows)]


def decoded(model: StevsModel, experts: list[Gaussian]) -> np.ndarray:
    """Expression of the mean of a product that is written again in float64."""
    means, precisions = (np.stack([np.asarray(e[i], dtype=np.float64) for e in experts]) for i in (0, 1))
    mean = (precisions * means).sum(0) / (1 + precisions.sum(0))
    with torch.no_grad():
        return model.decode(torch.from_numpy(mean).float()).double().numpy()


@pytest.mark.parametrize("pearson", [0.0, 0.5])
@pytest.mark.parametrize("niche_expert", [False, True])
def test_the_loss_is_that_of_its_formula(niche_expert: bool, pearson: float) -> None:
    data, rows = placed(), torch.arange(20)
    model = made(data, niche_expert=niche_expert, kl_weight=0.3, align_weight=0.7).eval()
    model.pearson = pearson
    target = data.expression[rows].double().numpy()

    def error(predicted: np.ndarray) -> float:
        pcc = np.mean([pearsonr(p, t).statistic for p, t in zip(predicted.T, target.T, strict=True)])
        return float(np.mean((predicted - target) ** 2) + pearson * (1 - pcc))

    experts = experts_of(model, data, rows)
    means, precisions = (np.stack([np.asarray(e[i], dtype=np.float64) for e in experts]) for i in (0, 1))
    variance = 1 / (1 + precisions.sum(0))
    mean = variance * (precisions * means).sum(0)
    kl = np.mean(0.5 * (variance + mean**2 - 1 - np.log(variance)))
    alignment = np.mean([np.mean((own - means[-1]) ** 2) for own in means[:-1]])
    joint, alone = decoded(model, experts), [decoded(model, [own]) for own in experts]
    with torch.no_grad():
        loss, log = model.loss(read_batch(data, rows))
    assert len(experts) == 2 + niche_expert
    assert log["mse"].item() == pytest.approx(np.mean((joint - target) ** 2), rel=1e-4)
    assert log["kl"].item() == pytest.approx(kl, rel=1e-4)
    assert log["alignment"].item() == pytest.approx(alignment, rel=1e-4)
    assert log["coordinate_share"].item() == pytest.approx(np.mean(precisions[-1] / precisions.sum(0)), rel=1e-4)
    assert loss.item() == pytest.approx(
        error(joint) + 0.5 * sum(map(error, alone)) + 0.3 * kl + 0.7 * alignment, rel=1e-4
    )


def test_the_divergence_grows_with_steps_that_are_taken() -> None:
    data, rows = placed(), torch.arange(20)
    losses = {}
    for weight in (0.0, 5.0):
        model = made(data, kl_weight=weight, warm_up_steps=8).train()
        for steps in (0, 2, 8, 20):
            model.warm_up.steps.fill_(steps)
            torch.manual_seed(3)
            losses[weight, steps] = model.loss(read_batch(data, rows))
    for steps, share in ((0, 0.0), (2, 0.25), (8, 1.0), (20, 1.0)):
        (loss, log), (plain, _) = losses[5.0, steps], losses[0.0, steps]
        assert (loss - plain).item() == pytest.approx(5 * share * log["kl"].item(), rel=1e-3, abs=1e-6)
    model = made(data, warm_up_steps=8).train()
    optimizer, place = make_optimizer(model, data.inputs, FitConfig()), model.warm_up.steps.data_ptr()
    for _ in range(3):
        step(model, data.inputs, optimizer, read_batch(data, rows))
    assert model.warm_up.steps.item() == 3
    assert model.warm_up.steps.data_ptr() == place, "a recorded step counts in the same memory"
    assert model.warm_up.weight().item() == 3 / 8
    assert model.eval().warm_up.weight().item() == 1, "losses of validation compare from the first epoch on"


def test_a_dropped_coordinate_expert_leaves_the_posterior_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    data, rows = placed(), torch.arange(20)
    model = made(data)
    image, coordinate = experts_of(model, data, rows)
    model.train()
    monkeypatch.setattr(torch, "rand_like", torch.zeros_like)  # all are dropped
    for found, expected in zip(
        product_with_prior([image, model._dropped(coordinate)]), product_with_prior([image]), strict=True
    ):
        assert torch.equal(found, expected)
    monkeypatch.undo()
    torch.manual_seed(0)
    many = Gaussian(torch.zeros(4000, 2), torch.ones(4000, 2))
    kept = model._dropped(many).precision
    assert kept[:, 0].mean().item() == pytest.approx(0.7, abs=0.03)
    assert torch.equal(kept[:, 0], kept[:, 1]), "of a spot all or nothing"
    assert torch.equal(model.eval()._dropped(many).precision, many.precision)


def test_experts_keep_a_least_and_a_greatest_precision() -> None:
    data, rows = placed(), torch.arange(20)
    model = made(data, variance_floor=0.5)
    for expert in (*model.image, model.coordinate):
        for sign in (-1, 1):
            torch.nn.init.constant_(expert.layers[-1].bias, sign * 1e4)  # type: ignore[index, union-attr]
            image, coordinate = experts_of(model, data, rows)
            assert torch.isfinite(product_with_prior([image, coordinate]).mean).all()
    torch.nn.init.constant_(model.image[0].layers[-1].bias, -1e4)  # type: ignore[index, union-attr]
    torch.nn.init.constant_(model.coordinate.layers[-1].bias, -1e4)
    image, coordinate = experts_of(model, data, rows)
    np.testing.assert_allclose(image.precision, np.exp(8), rtol=1e-5)
    np.testing.assert_allclose(coordinate.precision, 1 / (np.exp(-8) + 0.5), rtol=1e-5)


@pytest.mark.parametrize("experts", ["image", "both"])
def test_predictions_are_of_each_spot_alone(experts: str) -> None:
    data, rows = placed(), torch.arange(40)
    model = made(data, experts=experts, niche_expert=True)
    whole = predict(model, data, rows)
    assert torch.equal(predict(model, data, rows), whole), "nothing is drawn"
    parts = torch.cat([predict(model, data, part) for part in rows.split(7)])
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(predict(model, data, rows.flip(0)).flip(0), whole, atol=1e-5, rtol=1e-5)


def test_only_predictions_of_both_experts_read_coordinates() -> None:
    data, rows = placed(), torch.arange(40)
    image, both = made(data), made(data, experts="both")
    assert image.state_dict().keys() == both.state_dict().keys()
    before = [predict(model, data, rows) for model in (image, both)]
    np.testing.assert_allclose(before[0], decoded(image, experts_of(image, data, rows)[:1]), atol=1e-4)
    np.testing.assert_allclose(before[1], decoded(both, experts_of(both, data, rows)), atol=1e-4)
    for model in (image, both):
        model.look_around(replace(data, position=data.position.flip(0)).surroundings)  # type: ignore[union-attr]
    assert torch.equal(predict(image, data, rows), before[0])
    assert (predict(both, data, rows) - before[1]).abs().max() > 1e-4
    both.look_around(replace(data, position=data.position * 3 + 700).surroundings)  # type: ignore[operator]
    torch.testing.assert_close(predict(both, data, rows), before[1], atol=1e-3, rtol=1e-3)
    blind = StevsModel(both.config)
    with pytest.raises(HistError, match="call look_around before"):
        predict(blind, data, rows)


@pytest.mark.parametrize("experts", ["image", "both"])
def test_it_learns_64_spots_by_heart(experts: str) -> None:
    data = placed(n=192)
    rows = torch.arange(64)
    model = made(data, experts=experts).train()
    optimizer = make_optimizer(model, data.inputs, FitConfig(lr=3e-3))
    batch = read_batch(data, rows)
    variance = batch.target.var(0, correction=0).mean().item()
    for _ in range(50):
        step(model, data.inputs, optimizer, batch)
    assert (predict(model, data, rows) - batch.target).square().mean().item() < 0.05 * variance


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    """With its warm-up, its draws, its turns and what was dropped."""
    data = placed()
    unbroken, again = made(data), made(data, seed=9)
    whole = trained(data, tmp_path / "a", unbroken)
    with pytest.raises(KeyboardInterrupt):
        trained(data, tmp_path / "b", made(data), stop_at=2)
    rest = trained(data, tmp_path / "b", again)
    assert unbroken.warm_up.steps.item() == EPOCHS * 2
    for row in [*whole.history, *rest.history]:
        row.pop("seconds")
    assert rest.history == whole.history
    for name, value in unbroken.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_expression_of_other_slides_is_not_read(tmp_path: Path) -> None:
    data = placed()
    poisoned = replace(data, expression=data.expression.clone(), niche_expression=data.niche_expression.clone())
    for values in (poisoned.expression, poisoned.niche_expression):
        values[data.rows(("C",))] = float("nan")
    found = []
    for i, own in enumerate((data, poisoned)):
        model = made(own)
        trained(own, tmp_path / str(i), model)
        assert all(torch.isfinite(value).all() for value in model.state_dict().values())
        found.append(predict(model, own, own.rows(("C",))))
    assert torch.isfinite(found[1]).all()
    assert torch.equal(*found)


def test_it_begins_at_the_train_mean_or_at_zero() -> None:
    data = placed()
    rows = data.rows(("A",))
    model = made(data)
    torch.testing.assert_close(model.to_genes.bias.detach(), data.expression[rows].mean(0))
    model.start_at_zero()
    assert not predict(model, data, rows).any()


def test_bf16_gives_float32_predictions_near_those_of_fp32() -> None:
    data, rows = placed(), torch.arange(40)
    model = made(data, experts="both")
    exact = predict(model, data, rows)
    model.precision = "bf16"
    rough = predict(model, data, rows)
    assert rough.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.05
    model.train()
    loss, log = loss_of(model, read_batch(data, rows))
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert all(torch.isfinite(value) for value in log.values())


def test_an_ensemble_shows_its_members_all_spots(tmp_path: Path) -> None:
    data, rows = placed(), torch.arange(40)
    members = [made(data, seed, experts="both") for seed in (1, 2)]
    expected = torch.stack([predict(member, data, rows) for member in members]).mean(0)
    again = EnsembleModel([StevsModel(members[0].config) for _ in members])
    again.load_state_dict(EnsembleModel(members).state_dict())
    again.look_around(data.surroundings)
    torch.testing.assert_close(predict(again, data, rows), expected)


def test_signs_that_the_latent_space_is_empty_or_not_the_images() -> None:
    model = made(placed())
    fine = {"kl": 0.4, "coordinate_share": 0.3}
    assert model.warnings(fine) == []
    [collapsed] = model.warnings(fine | {"kl": 1e-4})
    assert "has collapsed into the prior (KL 0.0001 a dimension)" in collapsed
    [overridden] = model.warnings(fine | {"coordinate_share": 0.93})
    assert "overrides the image, with 93% of the precision" in overridden


def test_images_of_one_spot_without_a_place() -> None:
    data = replace(make_data(), position=None)
    model = made(data, experts="both")
    with torch.no_grad():
        one = model.eval().predict(Images(data.spot[:1].float(), data.niche[:1].float(), torch.tensor([0])))
    assert torch.isfinite(one).all()


@on_cuda
def test_recorded_steps_on_a_gpu_draw_anew_and_count() -> None:
    cpu = placed()
    data = replace(moved(cpu), position=cpu.position.to(CUDA))  # type: ignore[union-attr]
    model = StevsModel(StevsConfig(data.spot.shape[1], len(data.panel), experts="both")).to(CUDA)
    model.look_around(data.surroundings)
    recorded = RecordedStep(model, make_optimizer(model, data.inputs, FitConfig(lr=1e-9)), data, 16, MAX_GRADIENT_NORM)
    model.train()
    rows, losses = torch.arange(16, device=CUDA), []
    for _ in range(8):
        losses.append(recorded(rows)["loss"].clone())
    with no_synchronisation():
        losses.append(recorded(rows)["loss"].clone())
    assert recorded.recorded
    assert model.warm_up.steps.item() == 9
    assert len({loss.item() for loss in losses}) == 9
