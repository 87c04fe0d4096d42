"""The loss of predictions: MSE, and with `pearson` the correlation over a batch beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr

from tests.train.fit.test_loop import make_data, make_model
from train.fit.batches import read_batch
from train.models.base import LEAST_NORM, Model, batch_pcc
from train.models.configs import ModelConfig


def example(seed: int = 0, spots: int = 12, genes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    target = rng.normal(2, 1, (spots, genes))
    return 0.3 * target + rng.normal(size=target.shape), target


def mean_pcc(predicted: np.ndarray, target: np.ndarray) -> float:
    return float(np.mean([pearsonr(p, t).statistic for p, t in zip(predicted.T, target.T, strict=True)]))


def test_the_correlation_is_that_of_scipy() -> None:
    predicted, target = example()
    assert batch_pcc(*map(torch.from_numpy, (predicted, target))).item() == pytest.approx(
        mean_pcc(predicted, target), rel=1e-5
    )


def test_its_gradient_is_that_of_differences() -> None:
    predicted, target = example(1, spots=6, genes=3)
    p = torch.from_numpy(predicted).float().requires_grad_()
    batch_pcc(p, torch.from_numpy(target)).backward()
    assert p.grad is not None
    for i in range(6):
        for gene in range(3):
            step = np.zeros_like(predicted)
            step[i, gene] = 1e-6
            difference = (mean_pcc(predicted + step, target) - mean_pcc(predicted - step, target)) / 2e-6
            assert p.grad[i, gene].item() == pytest.approx(difference, rel=1e-3, abs=1e-5)


def test_a_gene_without_variance_counts_as_0_and_has_finite_gradients() -> None:
    predicted, target = example(2)
    predicted[:, 0], target[:, 1] = 1.25, 0.5
    p = torch.from_numpy(predicted).float().requires_grad_()
    found = batch_pcc(p, torch.from_numpy(target).float())
    expected = sum(pearsonr(predicted[:, gene], target[:, gene]).statistic for gene in (2, 3)) / 4
    assert found.item() == pytest.approx(expected, rel=1e-5)
    found.backward()
    assert p.grad is not None
    assert torch.isfinite(p.grad).all()
    assert not p.grad[:, 1].any()
    same = torch.full((5, 2), 3.3, requires_grad=True)
    batch_pcc(same, same.detach()).backward()
    assert same.grad is not None
    assert torch.isfinite(same.grad).all()


def test_the_correlation_of_a_batch_knows_nothing_of_offset_and_scale() -> None:
    predicted, target = map(torch.from_numpy, example(3))
    moved = predicted * torch.tensor([2.0, 0.1, 30.0, 1.0]) + torch.tensor([1.0, -4.0, 0.0, 100.0])
    assert batch_pcc(moved, target).item() == pytest.approx(batch_pcc(predicted, target).item(), abs=1e-5)


def test_predictions_that_are_almost_0_have_a_gradient_of_bounded_size() -> None:
    """As those of a model that begins at ridge, which are exactly 0 there."""
    target = torch.from_numpy(example(5)[1]).float()
    norm = (target - target.mean(0)).norm(dim=0)
    for size in (0.0, 1e-9, 1e-5):
        p = (size * target).requires_grad_()
        found = batch_pcc(p, target)
        found.backward()
        assert p.grad is not None
        assert found.item() == pytest.approx(size / LEAST_NORM, rel=1e-4)
        torch.testing.assert_close(p.grad.norm(dim=0), 1 / (LEAST_NORM * norm * 4), rtol=1e-4, atol=0)


@pytest.mark.parametrize("size", [0.02, 1.0, 1e4])
def test_ordinary_predictions_have_their_exact_correlation(size: float) -> None:
    predicted, target = map(torch.from_numpy, example(6))
    p, t = ((values - values.mean(0)).float() for values in (size * predicted, target))
    expected = ((p * t).sum(0) / (p.square().sum(0) * t.square().sum(0)).sqrt()).mean()
    assert batch_pcc(p, t).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("pearson", [0.0, 0.5, 2.0])
def test_the_loss_of_predictions(pearson: float) -> None:
    predicted, target = example(4)
    model = Model(ModelConfig(1, 4))
    model.pearson = pearson
    loss, mse = model.prediction_loss(*map(torch.from_numpy, (predicted, target)))
    squares = [(p - t) ** 2 for p, t in zip(predicted.ravel(), target.ravel(), strict=True)]
    assert mse.item() == pytest.approx(sum(squares) / len(squares))
    assert loss.item() == pytest.approx(mse.item() + pearson * (1 - mean_pcc(predicted, target)), rel=1e-5)


def test_hist_learns_it() -> None:
    """Its whole loss moves by the part of correlation, and what is logged as MSE stays."""
    data = make_data()
    model = make_model(data, dropout=0.0)
    batch = read_batch(data, torch.arange(20))
    plain, log = model.loss(batch)
    model.pearson = 0.7
    loss, other_log = model.loss(batch)
    predicted = model.predict(batch).detach().double().numpy()
    part = 0.7 * (1 - mean_pcc(predicted, batch.target.double().numpy()))
    assert (loss - plain).item() == pytest.approx(part, rel=1e-4)
    assert torch.equal(log["mse"], other_log["mse"])
    assert torch.equal(other_log["loss"], loss.detach())


def test_hist_compares_predictions_with_the_target_and_aligns_the_expression() -> None:
    data = make_data()
    model = make_model(data, dropout=0.0)
    batch = read_batch(data, torch.arange(20))
    other = type(batch)(
        *(batch.spot, batch.niche, batch.rows, batch.expression, batch.niche_expression), batch.target + 3
    )
    (loss, log), (other_loss, other_log) = model.loss(batch), model.loss(other)
    error = model.predict(batch) - batch.target
    assert other_log["mse"].item() == pytest.approx((error - 3).square().mean().item(), rel=1e-4)
    assert (other_loss - loss).item() == pytest.approx((other_log["mse"] - log["mse"]).item(), rel=1e-4)
    assert torch.equal(log["hca"], other_log["hca"])
