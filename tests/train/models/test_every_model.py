"""What must hold for every model behind the seam, whatever it computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.train.fit.test_loop import make_data
from train.data import SpotData
from train.fit.checkpoints import Checkpoint, Progress
from train.fit.config import FitConfig
from train.fit.loop import fit, predict
from train.models.base import Model
from train.models.registry import get_model, model_entries
from train.models.variants import get_variant

SMALL: dict[str, dict[str, Any]] = {
    "hist": {"width": 16, "depth": 1},
    "knn": {"nearest": 3},
    "stnet_mlp": {"width": 32},
    "bleep": {"projection": 16, "retrieved": 3},
    "istar": {"networks": 3, "hidden": 32},
    "stevs": {"latent_width": 8, "warm_up_steps": 50},
    "stem": {"width": 16, "depth": 2, "heads": 2, "samples": 4, "sampling_steps": 10, "standardize_genes": True},
    "triplex": {"width": 16, "heads": 2, "fusion_depth": 1, "neighbor_depth": 1},
}
"""Options with which a model is small; others are small as they are."""

NAMES = [entry.name for entry in model_entries()]
LEARNING = [entry.name for entry in model_entries() if entry.learns]


def example(width: int = 12) -> SpotData:
    """Three slides of 32 spots on a square lattice of four columns, with its rings."""
    data = make_data(96, width)
    place = torch.arange(96) % 32
    position = torch.stack([place % 4, place // 4], dim=1).float() * 100
    return replace(
        data, position=position, rings=(square_ring(data.slide, position, 1), square_ring(data.slide, position, 2))
    )


def square_ring(slide: Tensor, position: Tensor, ring: int) -> Tensor:
    """Rows `(N, 8 ring)` of the spots at a Chebyshev distance of `ring`, -1 where there is none."""
    sites = (position / 100).long()
    steps = [(a, b) for a in range(-ring, ring + 1) for b in range(-ring, ring + 1) if max(abs(a), abs(b)) == ring]
    rows = {(int(s), int(x), int(y)): i for i, (s, (x, y)) in enumerate(zip(slide, sites, strict=True))}
    return torch.tensor(
        [
            [rows.get((int(s), int(x) + a, int(y) + b), -1) for a, b in steps]
            for s, (x, y) in zip(slide, sites, strict=True)
        ]
    )


def make(name: str, data: SpotData, seed: int = 0) -> Model:
    entry = get_model(name)
    torch.manual_seed(seed)
    config = entry.config(data.spot.shape[1], len(data.panel), **SMALL.get(name, {}))
    return entry.load()(config, *([get_variant("full")] if entry.has_variants else []))


def trained(
    name: str, data: SpotData, epochs: int, checkpoint: Checkpoint | None = None, on_epoch: Any = None, **options: Any
) -> tuple[Model, Progress]:
    """A model that learns from slide A and is validated on slide B, as a fold does it."""
    model = make(name, data)
    train, val = data.rows(("A",)), data.rows(("B",))
    model.look_around(data.surroundings)
    model.prepare(data, train, val, seed=0)
    config = FitConfig(epochs=epochs, batch_size=16, lr=3e-3, patience=1000, **options)
    torch.manual_seed(1)
    if not model.learns:
        return model, Progress()
    return model, fit(model, data, train, val, config, checkpoint, on_epoch or (lambda row: None))


def poisoned(data: SpotData) -> SpotData:
    """The same, and no expression of slide C."""
    test = data.slide == 2
    nan = torch.full_like(data.expression[test], torch.nan)
    expression, niche_expression = data.expression.clone(), data.niche_expression.clone()
    expression[test], niche_expression[test] = nan, nan
    return replace(data, expression=expression, niche_expression=niche_expression)


@pytest.mark.parametrize("name", NAMES)
def test_no_expression_of_test_slides_reaches_a_model(name: str) -> None:
    data = example()
    plain, blind = (trained(name, d, 3)[0] for d in (data, poisoned(data)))
    for (key, a), b in zip(plain.state_dict().items(), blind.state_dict().values(), strict=True):
        assert torch.equal(a, b), key
    test = data.rows(("C",))
    predicted = predict(blind, poisoned(data), test)
    assert torch.isfinite(predicted).all()
    assert torch.equal(predicted, predict(plain, data, test))


@pytest.mark.parametrize("name", NAMES)
def test_a_prediction_does_not_depend_on_the_spots_beside_it(name: str) -> None:
    data = example()
    model, _ = trained(name, data, 2)
    test = data.rows(("C",))
    whole = predict(model, data, test)
    parts = torch.cat([predict(model, data, part) for part in test.flip(0).split(5)]).flip(0)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_all_that_a_model_is(name: str) -> None:
    data = example()
    model, _ = trained(name, data, 2)
    other = make(name, data, seed=9)
    other.load_state_dict(model.state_dict())
    other.look_around(data.surroundings)
    test = data.rows(("C",))
    assert torch.equal(predict(other, data, test), predict(model, data, test))


@pytest.mark.parametrize("name", LEARNING)
def test_it_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(name: str, tmp_path: Path) -> None:
    data = example()
    model, progress = trained(name, data, 4)

    checkpoint = Checkpoint(tmp_path / "checkpoint.pt")
    trained(name, data, 2, replace(checkpoint, kept=True))
    again, rest = trained(name, data, 4, checkpoint)
    for row in [*progress.history, *rest.history]:
        row.pop("seconds")
    assert rest.history == progress.history
    for (key, a), b in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


@pytest.mark.parametrize("name", sorted({*LEARNING} - {"stem", "stevs"}))  # whose own tests do it
def test_it_learns_64_spots_by_heart(name: str) -> None:
    data = example(width=48)
    rows = data.rows(("A", "B"))
    model = make(name, data)
    model.look_around(data.surroundings)
    model.prepare(data, rows, rows, seed=0)
    torch.manual_seed(1)
    fit(model, data, rows, rows, FitConfig(epochs=60, batch_size=16, lr=1e-2, weight_decay=0.0, patience=1000), None)
    error = (predict(model, data, rows) - data.expression[rows]).square().mean()
    assert error < 0.35 * data.expression[rows].var(0, correction=0).mean(), "of the train mean's error"
