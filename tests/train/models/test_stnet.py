"""ST-Net begins at the train mean and is linear in the spot's embedding."""

import torch

from tests.train.models.test_every_model import example, make, trained
from train.fit.loop import predict


def test_it_begins_at_the_train_mean() -> None:
    data = example()
    for name in ("stnet", "stnet_mlp"):
        model = make(name, data)
        model.prepare(data, data.rows(("A",)), data.rows(("B",)), seed=0)
        expected = data.expression[data.rows(("A",))].mean(0).expand(32, -1)
        torch.testing.assert_close(predict(model, data, data.rows(("C",))), expected)


def test_it_is_linear_in_the_spot_and_reads_no_niche() -> None:
    data = example()
    model, _ = trained("stnet", data, 2)
    x = torch.cat([data.spot.double(), torch.ones(96, 1)], dim=1)
    predicted = predict(model, data, torch.arange(96)).double()
    fit = torch.linalg.lstsq(x, predicted).solution
    torch.testing.assert_close(x @ fit, predicted, rtol=1e-5, atol=1e-5)
    assert fit[:-1].abs().max() > 0.01
