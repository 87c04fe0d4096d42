"""A batch in parts has the gradient of the batch, dropout in the encoder included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.train.fit.test_loop import make_data, make_model
from train.fit.step import backward_in_parts
from train.models.hist import HistModel


def setup(dropout: float) -> tuple[HistModel, tuple[Tensor, ...]]:
    data = make_data(n=48)
    model = make_model(data, dropout=0.0)
    model.encoder = nn.Sequential(nn.Linear(5, 12), nn.Dropout(dropout), nn.Tanh())
    model.train()
    g = torch.Generator().manual_seed(3)
    spot, niche = torch.randn(2, 11, 5, generator=g)
    return model, (spot, niche, data.expression[:11], data.niche_expression[:11])


def gradients(model: HistModel) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("size", [1, 4, 10, 11])
def test_without_dropout_it_is_the_whole_batch(size: int) -> None:
    model, batch = setup(0.0)
    loss, log = model(*batch)
    loss.backward()
    expected = gradients(model)
    model.zero_grad(set_to_none=True)
    found = backward_in_parts(model, batch, size)
    torch.testing.assert_close(found["loss"], log["loss"])
    assert gradients(model).keys() == expected.keys()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_each_part_has_the_same_dropout_both_times() -> None:
    model, batch = setup(0.5)
    torch.manual_seed(9)
    parts = [model.encode(s, n) for s, n in zip(batch[0].split(4), batch[1].split(4), strict=True)]
    spot, niche = (torch.cat([p[k] for p in parts]) for k in range(2))
    loss, _ = model.loss(spot, niche, *batch[2:])  # all parts' graphs held at once
    loss.backward()
    expected, after = gradients(model), torch.get_rng_state()
    model.zero_grad(set_to_none=True)
    torch.manual_seed(9)
    backward_in_parts(model, batch, 4)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)
    assert torch.equal(torch.get_rng_state(), after)
