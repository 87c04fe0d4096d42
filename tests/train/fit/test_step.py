"""A batch in parts has the gradient of the batch, dropout in the encoder included."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.train.fit.test_loop import make_data, make_model
from train.data import Batch, CachedEmbeddings, SpotNiche
from train.fit.batches import encode_pair
from train.fit.step import backward_in_parts, trained_parameters
from train.models.hist import HistModel


class EncodedInputs(CachedEmbeddings):
    """Inputs with an encoder of their own."""

    def encode(self, inputs: Tensor) -> Tensor:
        assert self.encoder is not None
        return self.encoder(inputs)


def setup(dropout: float) -> tuple[HistModel, EncodedInputs, Batch]:
    data = make_data(n=48)
    model = make_model(data, dropout=0.0)
    encoder = nn.Sequential(nn.Linear(5, 12), nn.Dropout(dropout), nn.Tanh())
    model.train()
    g = torch.Generator().manual_seed(3)
    spot, niche = torch.randn(2, 11, 5, generator=g)
    batch = Batch(spot, niche, torch.arange(11), data.expression[:11], data.niche_expression[:11], data.expression[:11])
    return model, EncodedInputs(spot, niche, encoder), batch


def encoded(inputs: EncodedInputs, batch: Batch) -> Batch:
    pair = encode_pair(inputs, SpotNiche(batch.spot, batch.niche))
    return replace(batch, spot=pair.spot, niche=pair.niche)


def take_gradients(model: HistModel, inputs: EncodedInputs) -> list[Tensor | None]:
    """Of all parameters, which are then without."""
    gradients = [p.grad for p in trained_parameters(model, inputs)]
    for p in trained_parameters(model, inputs):
        p.grad = None
    return gradients


def assert_equal(found: list[Tensor | None], expected: list[Tensor | None]) -> None:
    assert [g is None for g in found] == [g is None for g in expected]
    assert sum(g is not None for g in found) > 10
    for a, b in zip(found, expected, strict=True):
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [1, 4, 10, 11])
def test_without_dropout_it_is_the_whole_batch(size: int) -> None:
    model, inputs, batch = setup(0.0)
    loss, log = model.loss(encoded(inputs, batch))
    loss.backward()
    expected = take_gradients(model, inputs)
    found = backward_in_parts(model, inputs, batch, size)
    torch.testing.assert_close(found["loss"], log["loss"])
    assert_equal(take_gradients(model, inputs), expected)


def test_each_part_has_the_same_dropout_both_times() -> None:
    model, inputs, batch = setup(0.5)
    torch.manual_seed(9)
    levels = zip(batch.spot.split(4), batch.niche.split(4), strict=True)
    parts = [encode_pair(inputs, SpotNiche(*level)) for level in levels]
    spot, niche = (torch.cat([p[k] for p in parts]) for k in range(2))
    loss, _ = model.loss(replace(batch, spot=spot, niche=niche))  # all parts' graphs held at once
    loss.backward()
    expected, after = take_gradients(model, inputs), torch.get_rng_state()
    torch.manual_seed(9)
    backward_in_parts(model, inputs, batch, 4)
    assert_equal(take_gradients(model, inputs), expected)
    assert torch.equal(torch.get_rng_state(), after)
