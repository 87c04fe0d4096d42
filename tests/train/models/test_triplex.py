"""What TRIPLEX's predictions and batches may depend on, and what it learns by."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hist_cache.errors import InputError
from tests.train.models.test_every_model import example, make, trained
from tests.train.models.test_triplex_dense import hex_surroundings
from train.data import Images, SpotData
from train.fit import loop
from train.fit.batches import read_batch
from train.fit.config import FitConfig
from train.fit.loop import predict, predict_embedded
from train.fit.step import make_optimizer, step
from train.models import triplex
from train.models.configs import TriplexConfig
from train.models.ensemble import EnsembleModel
from train.models.triplex import TriplexModel


def triplex_model(data: SpotData, seed: int = 0) -> TriplexModel:
    """A small one that has looked around, with biases of places that are not 0."""
    model = make("triplex", data, seed)
    assert isinstance(model, TriplexModel)
    model.look_around(data.surroundings)
    with torch.no_grad():
        model.neighbor_encoder.place_bias.normal_()
    return model


def images_of(data: SpotData, rows: Tensor) -> Images:
    return Images(data.spot[rows].float(), data.niche[rows].float(), rows)


def test_neither_tokens_nor_predictions_depend_on_how_rows_are_divided(monkeypatch: pytest.MonkeyPatch) -> None:
    data = example()
    model = triplex_model(data)
    whole = predict(model, data, torch.arange(96))
    encoded: list[int] = []
    encode = model.encode_slide
    monkeypatch.setattr(model, "encode_slide", lambda slide: (encoded.append(len(slide.rows)), encode(slide))[1])
    monkeypatch.setattr(triplex, "PREDICTED_AT_ONCE", 7)
    monkeypatch.setattr(loop, "PREDICT_BATCH", 10)
    torch.testing.assert_close(predict(model, data, torch.arange(96)), whole, rtol=1e-5, atol=1e-5)
    assert encoded == [32, 32, 32], "once a slide"
    mixed = torch.randperm(96, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(predict(model, data, mixed), whole[mixed], rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        tokens = model.global_tokens(mixed)
        torch.testing.assert_close(tokens, torch.cat([model.global_tokens(mixed[:9]), model.global_tokens(mixed[9:])]))


def changed_by_step(model: TriplexModel, data: SpotData) -> None:
    model.train()
    step(model, data.inputs, make_optimizer(model, data.inputs, FitConfig(lr=0.1)), read_batch(data, torch.arange(16)))


def changed_in_place(model: TriplexModel, data: SpotData) -> None:
    with torch.no_grad():
        model.enter_slide.weight.mul_(2)


def loaded(model: TriplexModel, data: SpotData) -> None:
    model.load_state_dict(triplex_model(data, seed=5).state_dict())


@pytest.mark.parametrize("change", [changed_by_step, changed_in_place, loaded])
def test_tokens_are_those_of_the_weights_as_they_are(change: Any) -> None:
    data = example()
    model, fresh = triplex_model(data), triplex_model(data, seed=3)
    images = images_of(data, data.rows(("C",)))
    with torch.no_grad():
        before = model.eval().predict(images)
    change(model, data)
    fresh.load_state_dict(model.state_dict())
    if model.training:
        model.eval()
    with torch.no_grad():
        after = model.predict(images)
        assert torch.equal(after, fresh.eval().predict(images))
    assert (after - before).abs().max() > 1e-3


def test_neighbors_that_are_not_there_do_not_matter() -> None:
    data = example()
    model = triplex_model(data).eval()
    rows, last = data.rows(("A",)), len(data.slide) - 1  # -1 stands for "none", and would be the last spot
    before = predict(model, data, rows)
    spot = data.spot.clone()
    spot[last] = torch.nan
    model.look_around(replace(data, spot=spot).surroundings)
    assert torch.equal(predict(model, data, rows), before)

    x, other = torch.randn(2, 3, 5, 16, generator=torch.Generator().manual_seed(0))
    there = torch.tensor([[True, False, True, False, True]] * 3)
    hidden = torch.zeros(there.shape).masked_fill(~there, -torch.inf)[:, None, None]
    places = torch.tensor([0, 3, 8, 11, 24])
    mixed = torch.where(there.unsqueeze(2), x, other)
    with torch.no_grad():
        one, two = (model.neighbor_encoder(tokens, places, hidden)[there] for tokens in (x, mixed))
    assert torch.equal(one, two)


def test_spots_in_another_order_are_predicted_as_before() -> None:
    data = example()
    order = torch.cat([i * 32 + torch.randperm(32, generator=torch.Generator().manual_seed(i)) for i in range(3)])
    place = torch.cat([order.argsort(), torch.tensor([-1])])  # where a row has gone; the last one stands for "none"
    rings = tuple(place[ring[order]] for ring in data.rings)
    other = replace(data, spot=data.spot[order], niche=data.niche[order], rings=rings)
    predicted = predict(triplex_model(data), data, torch.arange(96))
    torch.testing.assert_close(
        predict(triplex_model(other), other, torch.arange(96)), predicted[order], rtol=1e-5, atol=1e-5
    )


def test_a_hexagonal_slide_beside_a_square_one_is_predicted_as_alone() -> None:
    """Its rings are filled up to those of the square lattice."""
    spots = hex_surroundings(5, 12)
    filled = tuple(torch.nn.functional.pad(r, (0, n), value=-1) for r, n in zip(spots.rings, (2, 4), strict=True))
    model = triplex_model(example()).eval()
    rows = torch.arange(25)
    found = []
    for rings in (spots.rings, filled):
        model.look_around(replace(spots, rings=rings))
        with torch.no_grad():
            found.append(model.predict(Images(spots.spot.float(), spots.niche.float(), rows)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


def test_a_prediction_reads_its_own_slide_alone_and_all_of_it() -> None:
    data = example()
    model = triplex_model(data)
    before = predict(model, data, torch.arange(96))
    spot = data.spot.clone()
    spot[0] += 1  # in slide A
    moved = replace(data, spot=spot)
    model.look_around(moved.surroundings)
    after = predict(model, moved, torch.arange(96))
    assert torch.equal(after[32:], before[32:])
    assert (after[:32] != before[:32]).any(1).all()


def test_batches_are_of_one_slide_each() -> None:
    data = example()
    model = triplex_model(data)
    rows = torch.cat([torch.arange(32), torch.arange(40, 60), torch.arange(90, 95)])  # 32, 20 and 5 spots
    drawn = [model.batches(rows, 8, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert not torch.equal(torch.cat(drawn[0]), torch.cat(drawn[2]))
    for batches in drawn:
        assert sorted(map(len, batches)) == [5, 8, 8, 8, 8, 8, 8]
        assert all(len(data.slide[batch].unique()) == 1 for batch in batches)
        seen = torch.cat(batches)
        assert len(seen.unique()) == len(seen)
        assert set(seen.tolist()) <= set(rows.tolist())
        assert set(range(32)) <= set(seen.tolist()), "a slide without a rest is there whole"
    slides = [int(data.slide[batch[0]]) for batch in drawn[2]]
    assert slides != sorted(slides), "slides are mixed"
    left_out = [set(rows.tolist()) - set(torch.cat(batches).tolist()) for batches in drawn[1:]]
    assert left_out[0] != left_out[1]


def test_a_step_knows_the_slide_of_its_batch() -> None:
    """In evaluation mode the slide is read from the rows; a batch of another slide than was drawn has no loss."""
    data = example()
    model = triplex_model(data)
    for module in model.modules():
        if isinstance(module, triplex.SelfAttentionBlock | triplex.CrossAttentionBlock):
            module.feed_forward.layers[3].p = module.feed_forward.layers[5].p = 0.0
    batches = model.batches(torch.arange(96), 16, torch.Generator().manual_seed(0))
    losses = [model.train().loss(read_batch(data, rows))[0] for rows in batches]
    for rows, loss in zip(batches, losses, strict=True):
        assert model.eval().loss(read_batch(data, rows))[0].item() == pytest.approx(loss.item(), rel=1e-5)
    model.train()
    batches = model.batches(torch.arange(96), 16, torch.Generator().manual_seed(0))
    optimizer = make_optimizer(model, data.inputs, FitConfig())
    wrong = next(rows for rows in batches if data.slide[rows[0]] != data.slide[batches[0][0]])
    assert step(model, data.inputs, optimizer, read_batch(data, wrong))["skipped"] == 1


@pytest.mark.parametrize("pearson", [0.0, 0.5])
def test_the_loss(pearson: float) -> None:
    data = example()
    model = triplex_model(data).eval()
    model.pearson = pearson
    batch = read_batch(data, torch.arange(20))
    batch = replace(batch, target=batch.target + 1)
    loss, log = model.loss(batch)
    f, t, n, g = (
        head(x).detach().double().numpy()
        for head, x in zip(
            (model.to_genes, model.target_to_genes, model.neighbor_to_genes, model.slide_to_genes),
            model.features(batch),
            strict=True,
        )
    )
    y = batch.target.double().numpy()
    expected = ((f - y) ** 2).mean()
    assert log["mse"].item() == pytest.approx(expected, rel=1e-5)
    pcc = [np.corrcoef(f[:, gene], y[:, gene])[0, 1] for gene in range(8)]
    expected += pearson * (1 - np.mean(pcc))
    expected += sum(0.7 * ((a - y) ** 2).mean() + 0.3 * ((f - a) ** 2).mean() for a in (t, n, g))
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert torch.equal(model.predict(batch), model.to_genes(model.features(batch).fused))


def test_all_weights_learn_and_those_of_places_begin_at_0() -> None:
    data = example()
    model = make("triplex", data)
    assert isinstance(model, TriplexModel)
    assert not model.neighbor_encoder.place_bias.any()
    model.look_around(data.surroundings)
    model.loss(read_batch(data, torch.arange(32)))[0].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    of_places = model.neighbor_encoder.place_bias.grad
    assert of_places is not None
    assert of_places.any(0).any(0).all(), "every place of a square lattice"


def test_it_begins_at_the_train_mean() -> None:
    data = example()
    model = make("triplex", data)
    model.start_at_zero()
    model.look_around(data.surroundings)
    train = data.rows(("A",))
    model.prepare(data, train, data.rows(("B",)), seed=0)
    expected = data.expression[train].mean(0).expand(32, -1)
    torch.testing.assert_close(predict(model, data, data.rows(("C",))), expected)


def test_bf16_is_near() -> None:
    data = example()
    model = triplex_model(data)
    exact = predict(model, data, torch.arange(96))
    model.precision = "bf16"
    near = predict(model, data, torch.arange(96))
    assert near.dtype == torch.float32
    assert 0 < (near - exact).abs().max() < 0.05
    model.train()
    log = step(model, data.inputs, make_optimizer(model, data.inputs, FitConfig()), read_batch(data, torch.arange(16)))
    assert log["skipped"] == 0


def test_members_of_an_ensemble_look_around() -> None:
    data = example()
    members = [trained("triplex", data, 1)[0], triplex_model(data, seed=7)]
    test = data.rows(("C",))
    expected = torch.stack([predict(member, data, test) for member in members]).mean(0)
    again = EnsembleModel([make("triplex", data, seed=8), make("triplex", data, seed=9)])
    again.load_state_dict(EnsembleModel(members).state_dict())
    with pytest.raises(RuntimeError, match="call look_around first"):
        predict_embedded(again, data.inputs.read(test), test)
    again.look_around(data.surroundings)
    torch.testing.assert_close(predict(again, data, test), expected)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="--width 20: must be a multiple of --heads, which is 8"):
        TriplexConfig(12, 8, width=20)
    data = example()
    with pytest.raises(ValueError, match="reads 2 rings, and 1 are known"):
        make("triplex", data).look_around(replace(data, rings=data.rings[:1]).surroundings)
