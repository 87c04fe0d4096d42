"""An ensemble predicts the mean of its members, and is stored and read back whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load

from tests.train.fit.test_loop import make_data, make_model
from tests.train.report.fake_runs import SETTING
from train.data import Images, SpotData
from train.experiments import outputs
from train.experiments.outputs import save_model
from train.fit.batches import read_batch
from train.fit.loop import predict
from train.models.baselines import KnnModel
from train.models.configs import HistConfig, KnnConfig
from train.models.ensemble import EnsembleModel
from train.recipes.config import RecipeConfig


def images_of(data: SpotData) -> Images:
    return Images(data.spot.float(), data.niche.float(), torch.arange(len(data.slide)))


def nearest(data: SpotData, sizes: tuple[int, ...]) -> EnsembleModel:
    """Members whose banks have other sizes, as `prepare` makes them."""
    members = [KnnModel(KnnConfig(data.spot.shape[1], len(data.panel), nearest=3)) for _ in sizes]
    for member, size in zip(members, sizes, strict=True):
        member.prepare(data, torch.arange(size), torch.arange(0), seed=0)
    return EnsembleModel(members)


def test_the_mean_of_the_members_predicts() -> None:
    data = make_data()
    members = [make_model(data, seed=seed) for seed in range(3)]
    found = predict(EnsembleModel(members), data, torch.arange(40)).double().numpy()
    each = [predict(member, data, torch.arange(40)).double().numpy() for member in members]
    expected = [[sum(one[i, gene] for one in each) / 3 for gene in range(8)] for i in range(40)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(each[0], each[1])


def test_the_geometry_is_the_first_members() -> None:
    data = make_data()
    first, second = (make_model(data, seed=seed).eval() for seed in (1, 2))
    batch = read_batch(data, torch.arange(20))
    with torch.no_grad():
        one, other = EnsembleModel([first, second]).project(batch), first.project(batch)
    assert one is not None
    assert other is not None
    assert one.radii.keys() == other.radii.keys()
    for name, radius in one.radii.items():
        np.testing.assert_array_equal(radius, other.radii[name])


@pytest.mark.parametrize("kind", ["trained", "kept"])
def test_stored_and_read_back(tmp_path: Path, kind: str) -> None:
    data = make_data()
    sizes = (40, 25, 60)
    if kind == "kept":
        written = nearest(data, sizes)
        read = EnsembleModel([KnnModel(KnnConfig(12, 8, nearest=3)) for _ in sizes])
    else:
        written = EnsembleModel([make_model(data, seed=seed) for seed in range(3)])
        read = EnsembleModel([make_model(data, seed=9) for _ in sizes])
    save_model(tmp_path / "model.safetensors", written)
    read.load_state_dict(load((tmp_path / "model.safetensors").read_bytes()))
    assert written.state_dict().keys() == read.state_dict().keys()
    for name, tensor in written.state_dict().items():
        assert torch.equal(tensor, read.state_dict()[name]), name
    with torch.no_grad():
        assert torch.equal(written.eval().predict(images_of(data)), read.eval().predict(images_of(data)))
    if kind == "kept":
        assert [len(read.member(i).bank) for i in range(3)] == list(sizes)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", ["one more member", "one less", "another name", "a tensor less"])
def test_weights_of_something_else_are_refused(change: str) -> None:
    data = make_data()
    two, three = (EnsembleModel([make_model(data, seed=i) for i in range(n)]) for n in (2, 3))
    state = (three if change == "one more member" else two).state_dict()
    if change == "another name":
        state["extra"] = torch.zeros(1)
    if change == "a tensor less":
        del state["members.1.project_image.weight"]
    with pytest.raises(RuntimeError):
        (three if change == "one less" else two).load_state_dict(state)


def test_a_setting_makes_it() -> None:
    config = HistConfig(12, 8, width=16, depth=1)
    fit = replace(SETTING.fit, pearson=0.25, select_by="pcc")
    setting = replace(SETTING, model=config, fit=fit, recipe=RecipeConfig(ensemble=3))
    torch.manual_seed(0)
    model = outputs.make_model(setting)
    assert isinstance(model, EnsembleModel)
    assert len(model.members) == 3
    weights = [model.member(i).state_dict()["project_image.weight"] for i in range(3)]
    assert not torch.equal(weights[0], weights[1])
    assert [(model.member(i).pearson, model.member(i).select_by) for i in range(3)] == [(0.25, "pcc")] * 3
    alone = outputs.make_model(replace(setting, recipe=RecipeConfig()))
    assert not isinstance(alone, EnsembleModel)
