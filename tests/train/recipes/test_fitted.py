"""Fitted recipes: against scikit-learn and loops; only penalties know anything of validation and test slides."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hist_cache.errors import InputError
from hist_cache.values import SelectBy
from tests.train.recipes.slides import GENES, TEST, TRAIN, VAL, WIDTH, make_data
from train.data import SpotData
from train.fit.loop import predict
from train.models.baselines import KnnModel
from train.models.components import principal_components
from train.models.configs import KnnConfig
from train.models.ridge import LinearMap
from train.recipes import fitted as module
from train.recipes.config import RecipeConfig
from train.recipes.fitted import FittedRecipe, fit_recipe, smoothed
from train.recipes.inputs import recipe_inputs
from train.selection import selection_error

COMPONENTS = 6  # fewer than there are features


def fit(config: RecipeConfig, data: SpotData, rule: SelectBy = "mse", with_ridge: bool = True) -> FittedRecipe:
    def components(seen: SpotData):
        return principal_components(seen, TRAIN, COMPONENTS)

    compared = torch.arange(len(data.slide)) if with_ridge else None
    return fit_recipe(config, data, TRAIN, VAL, rule, components, components, compared)


def centered(values: np.ndarray, slide: np.ndarray) -> np.ndarray:
    return np.concatenate([values[slide == i] - values[slide == i].mean(0) for i in range(slide.max() + 1)])


def sklearn_ridge(x: np.ndarray, target: np.ndarray, alphas: np.ndarray, error: Any) -> np.ndarray:
    """Predictions of all rows, with the penalty of the least error on the validation rows."""
    fits = []
    for alpha in alphas:
        pipeline = make_pipeline(StandardScaler(), PCA(COMPONENTS, svd_solver="full"), Ridge(alpha, solver="cholesky"))
        fits.append(pipeline.fit(x[TRAIN.numpy()], target[TRAIN.numpy()]).predict(x))
    return min(fits, key=lambda predicted: error(predicted[VAL.numpy()]))


def embeddings(data: SpotData) -> np.ndarray:
    return torch.cat([data.spot, data.niche], dim=1).double().numpy()


@pytest.mark.parametrize("rule", ["mse", "centered_mse", "pcc"])
@pytest.mark.parametrize("level", ["train_mean", "ridge"])
def test_offset_and_ridge_are_those_of_scikit_learn(level: str, rule: SelectBy) -> None:
    data = make_data()
    config = RecipeConfig(standardize="slide", neighbor_rings=1, targets="centered", level=level, ridge="skip")  # type: ignore[arg-type]
    found = fit(config, data, rule)
    y, slide, val = data.expression.double().numpy(), data.slide.numpy(), VAL.numpy()
    offset = np.tile(y[TRAIN.numpy()].mean(0), (len(y), 1))
    if level == "ridge":
        x = embeddings(data)
        of_spots = sklearn_ridge(x, y, 10.0 ** np.arange(-1, 7), lambda p: ((p - y[val]) ** 2).mean())
        offset = np.stack([of_spots[slide == i].mean(0) for i in range(3)])[slide]
    target = centered(y, slide)

    def error(output: np.ndarray) -> float:
        parts = (output + offset[val], y[val], slide[val])
        return selection_error(rule, *map(torch.from_numpy, parts))

    inputs = recipe_inputs(config, data, None)
    seen = replace(data, spot=inputs.spot, niche=inputs.niche)
    ridge = sklearn_ridge(embeddings(seen), target, 10.0 ** np.arange(-1, 7, 0.5), error)
    targets = found.data.targets
    assert targets is not None
    np.testing.assert_allclose(found.ridge, ridge + offset, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(targets.offset, ridge + offset, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(targets.target, target - ridge, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(targets.expression, target, rtol=1e-4, atol=1e-5)
    assert torch.equal(found.data.spot, inputs.spot)
    assert torch.equal(found.data.niche, inputs.niche)
    assert torch.equal(found.data.expression, data.expression), "what is tested stays"


def test_without_switches_a_model_sees_the_data_as_they_are() -> None:
    data = make_data()
    found = fit(RecipeConfig(), data, with_ridge=False)
    assert found.data is data
    assert found.ridge is None
    assert found.tensors == {}
    predicted = torch.randn(len(TEST), GENES)
    assert torch.equal(found.complete(predicted, TEST), predicted)
    compared = fit(RecipeConfig(), data)
    assert compared.data is data, "ridge is only compared with"
    assert compared.ridge is not None


CONFIGS = {
    "centered": RecipeConfig(targets="centered"),
    "level": RecipeConfig(targets="centered", level="ridge"),
    "skip": RecipeConfig(ridge="skip"),
    "mean": RecipeConfig(ridge="mean", smooth=0.3),
    "inputs": RecipeConfig(standardize="slide", neighbor_rings=2),
    "train": RecipeConfig(standardize="train", neighbor_rings=1),
    "all": RecipeConfig("slide", 2, "centered", "ridge", "skip", 0.4),
}


def assert_same(one: FittedRecipe, other: FittedRecipe, rows: torch.Tensor) -> None:
    """Bit for bit: all inputs, offsets and ridge; targets of the rows."""
    for name in ("spot", "niche"):
        assert torch.equal(getattr(one.data, name), getattr(other.data, name)), name
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensor in one.tensors.items():
        assert torch.equal(tensor, other.tensors[name]), name
    assert (one.ridge is None) == (other.ridge is None)
    if one.ridge is not None and other.ridge is not None:
        assert torch.equal(one.ridge, other.ridge)
    for values in ("expression", "niche_expression", "target"):
        a, b = (getattr(r.data.targets or r.data, values)[rows] for r in (one, other))
        assert torch.equal(a, b), values
    if one.data.targets is not None and other.data.targets is not None:
        assert torch.equal(one.data.targets.offset, other.data.targets.offset)


def with_other_expression(data: SpotData, rows: torch.Tensor, seed: int) -> SpotData:
    g = torch.Generator().manual_seed(seed)
    changed = {}
    for name in ("expression", "niche_expression"):
        values = getattr(data, name).clone()
        values[rows] = 100 * torch.rand(len(rows), GENES, generator=g)
        changed[name] = values
    return replace(data, **changed)


@pytest.mark.parametrize("rule", ["mse", "pcc"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_expression_of_test_slides_changes_nothing_but_what_is_tested(name: str, rule: SelectBy) -> None:
    data = make_data()
    before = fit(CONFIGS[name], data, rule)
    for seed in (1, 2):
        after = fit(CONFIGS[name], with_other_expression(data, TEST, seed), rule)
        assert_same(before, after, torch.cat([TRAIN, VAL]))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_expression_of_validation_slides_chooses_penalties_and_nothing_else(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_data()
    free = fit(CONFIGS[name], data)
    with monkeypatch.context() as patch:
        patch.setattr(module, "ALPHAS", np.array([30.0]))
        patch.setattr(module, "TUNED_ALPHAS", np.array([100.0]))
        before = fit(CONFIGS[name], data)
        for seed in (1, 2):
            after = fit(CONFIGS[name], with_other_expression(data, torch.cat([VAL, TEST]), seed))
            assert_same(before, after, TRAIN)
    again = fit(CONFIGS[name], data)
    assert_same(free, again, torch.arange(len(data.slide)))


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), name=st.sampled_from(sorted(CONFIGS)))
def test_a_train_slides_expression_does_matter(seed: int, name: str) -> None:
    """The checks above could not fail if nothing depended on any expression."""
    data = make_data()
    before, after = fit(CONFIGS[name], data), fit(CONFIGS[name], with_other_expression(data, TRAIN, seed))
    assert before.ridge is not None
    assert after.ridge is not None
    assert not torch.allclose(before.ridge[TEST], after.ridge[TEST])


def test_centered_targets_with_the_train_mean_do_not_change_with_the_offsets_of_other_slides() -> None:
    data = make_data()
    shift = torch.tensor([[0.0], [5.0], [-3.0]])[data.slide]
    config = RecipeConfig(targets="centered")
    moved = replace(data, expression=data.expression + shift, niche_expression=data.niche_expression + shift)
    one, other = fit(config, data, "centered_mse"), fit(config, moved, "centered_mse")
    assert one.data.targets is not None
    assert other.data.targets is not None
    for f in fields(one.data.targets):
        a, b = getattr(one.data.targets, f.name), getattr(other.data.targets, f.name)
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_another_slide_gets_the_same_from_what_is_stored() -> None:
    """From the tensors of a fold's recipe.safetensors alone, without any expression."""
    data = make_data()
    x, slide = embeddings(data), data.slide.numpy()
    found = fit(CONFIGS["all"], data)
    t = {name: tensor.numpy() for name, tensor in found.tensors.items()}
    assert set(t) == {"level_weight", "level_bias", "ridge_weight", "ridge_bias"}
    level = np.stack([x[slide == i].mean(0) for i in range(3)]) @ t["level_weight"] + t["level_bias"]
    seen = embeddings(found.data)
    expected = seen @ t["ridge_weight"] + t["ridge_bias"] + level[slide]
    np.testing.assert_allclose(found.ridge, expected, rtol=1e-5, atol=1e-5)
    found = fit(CONFIGS["train"], data)
    mean, std = found.tensors["scaling_spot"].numpy()
    ours = found.data.spot[:, :WIDTH].float().numpy()
    np.testing.assert_allclose(ours, (data.spot.float().numpy() - mean) / std, rtol=1e-3, atol=1e-3)
    assert set(found.tensors) == {"scaling_spot", "scaling_niche", "ridge_weight", "ridge_bias"}
    (bias,) = (fit(RecipeConfig(targets="centered"), data, with_ridge=False).tensors).values()
    np.testing.assert_allclose(bias, data.expression[TRAIN].double().mean(0))


def loop_smoothed(predicted: np.ndarray, ring: np.ndarray, rows: list[int], weight: float) -> np.ndarray:
    out = predicted.copy()
    for i, row in enumerate(rows):
        near = [rows.index(int(r)) for r in ring[row] if int(r) in rows]
        for gene in range(predicted.shape[1] if near else 0):
            mean = sum(predicted[j, gene] for j in near) / len(near)
            out[i, gene] = (1 - weight) * predicted[i, gene] + weight * mean
    return out


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("which", ["test", "two slides", "some spots"])
def test_smoothing_is_that_of_a_loop(which: str, weight: float) -> None:
    data = make_data()
    rows = {"test": TEST, "two slides": torch.cat([TEST, TRAIN]), "some spots": torch.cat([TEST, VAL])[::3]}[which]
    predicted = torch.randn(len(rows), GENES, dtype=torch.float64)
    found = smoothed(predicted, data, rows, weight)
    expected = loop_smoothed(predicted.numpy(), data.rings[0].numpy(), rows.tolist(), weight)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)
    assert (weight == 0) == torch.equal(found, predicted)
    other = predicted.clone()
    other[:] = 7.5
    torch.testing.assert_close(smoothed(other, data, rows, weight), other)


def test_predictions_are_completed_in_order() -> None:
    """First the mean with ridge, then smoothing; ridge beside it is smoothed alike."""
    data = make_data()
    found = fit(RecipeConfig(ridge="mean", smooth=0.3), data)
    assert found.ridge is not None
    predicted = torch.randn(len(TEST), GENES)
    mean = (predicted.double().numpy() + found.ridge[TEST].double().numpy()) / 2
    expected = loop_smoothed(mean, data.rings[0].numpy(), TEST.tolist(), 0.3)
    np.testing.assert_allclose(found.complete(predicted, TEST), expected, rtol=1e-5, atol=1e-6)
    own = loop_smoothed(found.ridge[TEST].double().numpy(), data.rings[0].numpy(), TEST.tolist(), 0.3)
    np.testing.assert_allclose(found.complete(found.ridge[TEST], TEST), own, rtol=1e-5, atol=1e-6)
    assert found.complete(predicted, TEST).dtype == torch.float32


@pytest.mark.parametrize("config", [RecipeConfig(), RecipeConfig(ridge="skip", targets="centered")])
def test_ridge_predicts_some_rows_at_a_time_and_only_those_that_are_needed(
    config: RecipeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, sizes = make_data(), []
    whole = fit(config, data).ridge
    of = LinearMap.of

    def counted(fitted: LinearMap, spot: torch.Tensor, niche: torch.Tensor) -> torch.Tensor:
        sizes.append(len(spot))
        return of(fitted, spot, niche)

    monkeypatch.setattr(module, "ROWS_AT_ONCE", 10)
    monkeypatch.setattr(LinearMap, "of", counted)
    components = lambda seen: principal_components(seen, TRAIN, COMPONENTS)  # noqa: E731
    found = fit_recipe(config, data, TRAIN, VAL, "mse", components, components, TEST).ridge
    assert found is not None
    assert whole is not None
    torch.testing.assert_close(found[TEST], whole[TEST])
    assert max(sizes) == 10
    assert sum(sizes) == len(TEST if config.ridge == "none" else data.slide)
    assert found[TRAIN].isnan().all() == (config.ridge == "none")


def test_neighbours_may_predict_what_ridge_leaves() -> None:
    found = fit(RecipeConfig(ridge="skip"), make_data())
    model = KnnModel(KnnConfig(WIDTH, GENES, nearest=3))
    model.prepare(found.data, TRAIN, VAL, 0)
    x = embeddings(found.data)
    nearest = NearestNeighbors(n_neighbors=3).fit(x[TRAIN.numpy()]).kneighbors(x[TEST.numpy()])[1]
    assert found.ridge is not None
    left = (found.data.expression - found.ridge).numpy()[TRAIN.numpy()]
    expected = found.ridge[TEST].numpy() + left[nearest].mean(1)
    np.testing.assert_allclose(predict(model, found.data, TEST), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"level": "ridge"}, "--level ridge: raw targets have their level; give --targets centered too"),
        ({"smooth": 1.5}, "--smooth 1.5: must be from 0 to 1"),
        ({"neighbor_rings": 4}, "--neighbor-rings 4: must be from 0 to 3"),
        ({"ensemble": 0}, "--ensemble 0: must be from 1 to 100"),
    ],
)
def test_what_no_recipe_may_be(values: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as caught:
        RecipeConfig(**values)
    assert str(caught.value) == says


@pytest.mark.parametrize(
    ("values", "inputs", "targets", "predictions", "rings"),
    [
        ({}, False, False, False, 0),
        ({"standardize": "train"}, True, False, False, 0),
        ({"neighbor_rings": 2, "smooth": 0.1}, True, False, True, 2),
        ({"smooth": 0.1}, False, False, True, 1),
        ({"targets": "centered"}, False, True, False, 0),
        ({"ridge": "skip"}, False, True, False, 0),
        ({"ridge": "mean", "ensemble": 3}, False, False, True, 0),
    ],
)
def test_what_a_recipe_changes(
    values: dict[str, Any], inputs: bool, targets: bool, predictions: bool, rings: int
) -> None:
    config = RecipeConfig(**values)
    assert (config.changes_inputs, config.changes_targets, config.n_rings) == (inputs, targets, rings)
    assert config.changes_predictions == predictions
    data = make_data()
    fitted = fit(config, data, with_ridge=False)
    found = fitted.data
    assert (found.spot is not data.spot) == inputs
    assert (found.targets is not None) == targets
    assert found.spot.shape[1] == config.embedding_width(WIDTH)
    predicted = torch.randn(len(TEST), GENES)
    assert torch.equal(fitted.complete(predicted, TEST), predicted) != predictions
