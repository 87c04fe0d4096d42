"""iSTAR's networks, written again one by one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from tests.train.models.test_every_model import SMALL, example, make, trained
from train.fit.batches import read_batch
from train.fit.loop import predict
from train.models.istar import IstarModel


def test_it_predicts_the_median_of_its_networks_within_the_range_of_the_train_spots() -> None:
    data = example()
    model, _ = trained("istar", data, 3)
    assert isinstance(model, IstarModel)
    train, test = data.rows(("A",)), data.rows(("C",))
    y = data.expression[train].double().numpy()
    low, high = np.quantile(y, [0.001, 0.999], axis=0)
    x = torch.cat([data.spot, data.niche], dim=1)[test].double().numpy()
    outputs = []
    for network in range(SMALL["istar"]["networks"]):
        hidden = x
        for layer in model.layers:
            hidden = hidden @ layer.weight[network].detach().double().numpy() + layer.bias[network].detach().numpy()
            hidden = np.where(hidden > 0, hidden, 0.1 * hidden)
        out = (
            hidden @ model.to_genes.weight[network].detach().double().numpy()
            + model.to_genes.bias[network].detach().numpy()
        )
        outputs.append(np.where(out > 0, out, 0.01 * np.expm1(out)) + 0.01)
    expected = np.median(outputs, axis=0) * (high - low) + low
    predicted = predict(model, data, test).numpy()
    np.testing.assert_allclose(predicted, expected, rtol=1e-4, atol=1e-4)
    assert (predicted >= low - 1e-5).all()


def test_networks_learn_as_if_each_were_alone() -> None:
    data = example()
    model = make("istar", data)
    assert isinstance(model, IstarModel)
    model.prepare(data, data.rows(("A",)), data.rows(("B",)), seed=0)
    batch = read_batch(data, torch.arange(16))
    loss, log = model.loss(batch)
    scaled, target = model.scaled(batch), (batch.target - model.low) / model.scale
    assert loss.item() == sum(((own - target) ** 2).mean() for own in scaled).item()  # type: ignore[union-attr]
    assert log["mse"].item() == ((model.predict(batch) - batch.target) ** 2).mean().item()
    loss.backward()
    first = model.layers[0].weight.grad
    assert first is not None
    assert (first.flatten(1).norm(dim=1) > 0).all()
    assert not torch.equal(first[0], first[1])


def test_a_gene_without_range_is_not_divided() -> None:
    data = example()
    expression = data.expression.clone()
    expression[:, 0] = 2.5
    model, _ = trained("istar", replace(data, expression=expression), 2)
    assert torch.isfinite(predict(model, data, data.rows(("C",)))).all()
