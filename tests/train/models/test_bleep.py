"""BLEEP's contrast and retrieval, written again in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from tests.train.models.test_every_model import SMALL, example, make, trained
from train.data import Targets
from train.fit.loop import predict
from train.models import bleep
from train.models.bleep import BleepModel, soft_contrast
from train.models.configs import BleepConfig


@pytest.mark.parametrize("tau", [1.0, 0.3])
def test_the_contrast(tau: float) -> None:
    rng = np.random.default_rng(0)
    images, genes = rng.normal(size=(2, 7, 4))
    logits = images @ genes.T / tau
    within = (images @ images.T + genes @ genes.T) / (2 * tau)
    of_images, of_genes = softmax(within, axis=1), softmax(within.T, axis=1)
    losses = [-(of_images * log_softmax(logits, axis=1)).sum(1), -(of_genes * log_softmax(logits.T, axis=1)).sum(1)]
    loss, own = soft_contrast(*(torch.from_numpy(x).float() for x in (images, genes)), tau)
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-5)
    assert own.item() == pytest.approx(np.diag(of_images).mean(), rel=1e-5)


def test_gradients_flow_through_the_targets() -> None:
    images = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    genes = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: soft_contrast(x, genes, 1.0)[0], (images,))


def test_retrieval_is_the_mean_of_the_nearest_by_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bleep, "SPOTS_AT_ONCE", 7)
    data = example()
    model, _ = trained("bleep", data, 2)
    assert isinstance(model, BleepModel)
    train, test = data.rows(("A",)), data.rows(("C",))
    with torch.no_grad():
        images = model.image(data.spot[test].float()).double().numpy()
        genes = model.gene(data.expression[train]).double().numpy()
    cosine = (images @ genes.T) / np.linalg.norm(images, axis=1)[:, None] / np.linalg.norm(genes, axis=1)
    nearest = np.argsort(-cosine, axis=1)[:, : SMALL["bleep"]["retrieved"]]
    expected = data.expression[train].numpy()[nearest].mean(1)
    np.testing.assert_allclose(predict(model, data, test).numpy(), expected, rtol=1e-5)


def test_all_of_the_bank_is_the_train_mean() -> None:
    data = example()
    model = BleepModel(BleepConfig(12, 8, projection=8, retrieved=1000))
    train = data.rows(("A",))
    model.prepare(data, train, data.rows(("B",)), seed=0)
    expected = data.expression[train].mean(0).expand(32, -1)
    torch.testing.assert_close(predict(model, data, data.rows(("C",))), expected)


def test_the_bank_has_train_spots_alone_and_what_is_learnt() -> None:
    data = example()
    targets = Targets(
        data.expression - 1, data.niche_expression, data.expression - 5, torch.zeros_like(data.expression)
    )
    model = make("bleep", data)
    train = data.rows(("A",))
    model.prepare(replace(data, targets=targets), train, data.rows(("B",)), seed=0)
    assert isinstance(model, BleepModel)
    assert torch.equal(model.bank_target, data.expression[train] - 5)
    assert torch.equal(model.bank_genes, data.expression[train] - 1)
