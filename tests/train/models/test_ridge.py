"""Ridge as one matrix: against scikit-learn, on what a recipe has the model beside it read and learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from hist_cache.values import SelectBy
from tests.train.recipes.slides import GENES, TEST, TRAIN, VAL, WIDTH, make_data
from train.data import Images, SpotData
from train.models.baselines import KnnModel, TunedRidgeModel, validation_error
from train.models.components import principal_components
from train.models.configs import KnnConfig, TunedRidgeConfig
from train.models.ridge import LinearMap, fit_ridge
from train.recipes.targets import centered_targets
from train.selection import selection_error

ALPHAS = 10.0 ** np.arange(-2, 5)


def embeddings(data: SpotData, rows: torch.Tensor) -> np.ndarray:
    return torch.cat([data.spot[rows], data.niche[rows]], dim=1).double().numpy()


def oracle(data: SpotData, target: torch.Tensor, components: int, alphas: np.ndarray, error) -> np.ndarray:
    """Scikit-learn's predictions of the test rows."""
    scaler = StandardScaler().fit(embeddings(data, TRAIN))
    pca = PCA(components, svd_solver="full").fit(scaler.transform(embeddings(data, TRAIN)))
    train, val, test = (pca.transform(scaler.transform(embeddings(data, rows))) for rows in (TRAIN, VAL, TEST))
    fits = [Ridge(alpha, solver="cholesky").fit(train, target[TRAIN].double().numpy()) for alpha in alphas]
    best = min(fits, key=lambda fit: error(fit.predict(val)))
    assert len({error(fit.predict(val)) for fit in fits}) == len(fits)
    return best.predict(test)


@pytest.mark.parametrize("wanted", range(7))
@pytest.mark.parametrize("components", [3, 14])
def test_the_penalty_is_the_one_of_the_least_error(components: int, wanted: int) -> None:
    data = make_data()
    kept = principal_components(data, TRAIN, components)
    errors = iter([abs(i - wanted) for i in range(7)])  # in the order of the penalties
    found = fit_ridge(kept, data, data.expression, TRAIN, VAL, ALPHAS, lambda output: next(errors))
    expected = oracle(data, data.expression, components, ALPHAS[[wanted]], lambda output: 0.0)
    got = found.of(data.spot[TEST], data.niche[TEST])
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-8)


def test_errors_are_asked_of_predictions_of_the_validation_rows() -> None:
    data = make_data()
    outputs: list[np.ndarray] = []
    fit_ridge(
        *(principal_components(data, TRAIN, 9), data, data.expression, TRAIN, VAL, ALPHAS[:2]),
        lambda output: outputs.append(output) or 0.0,  # type: ignore[func-returns-value]
    )
    for alpha, output in zip(ALPHAS, outputs, strict=False):
        scaler = StandardScaler().fit(embeddings(data, TRAIN))
        pca = PCA(9, svd_solver="full").fit(scaler.transform(embeddings(data, TRAIN)))
        train, val = (pca.transform(scaler.transform(embeddings(data, rows))) for rows in (TRAIN, VAL))
        expected = Ridge(alpha, solver="cholesky").fit(train, data.expression[TRAIN].double().numpy()).predict(val)
        np.testing.assert_allclose(output, expected, rtol=1e-8, atol=1e-8)
    assert len(outputs) == 2


def test_of_the_target_only_the_train_rows_are_read() -> None:
    data = make_data()
    target = data.expression.clone()
    target[len(TRAIN) :] = float("nan")
    kept = principal_components(data, TRAIN, 9)
    one, other = (fit_ridge(kept, data, y, TRAIN, VAL, [3.0], lambda _: 0.0) for y in (target, data.expression))
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(one.bias, other.bias)


def test_a_map_reads_spot_and_niche_side_by_side() -> None:
    g = torch.Generator().manual_seed(0)
    fitted = LinearMap(torch.randn(6, 2, generator=g).double(), torch.randn(2, generator=g).double())
    spot, niche = torch.randn(2, 4, 3, generator=g).half()
    found = fitted.of(spot, niche)
    for i in range(4):
        row = [*spot[i].tolist(), *niche[i].tolist()]
        for gene in range(2):
            expected = sum(x * float(w) for x, w in zip(row, fitted.weight[:, gene], strict=True))
            assert float(found[i, gene]) == pytest.approx(expected + float(fitted.bias[gene]))
    assert torch.equal(fitted.to(torch.device("cpu")).weight, fitted.weight)


@pytest.mark.parametrize("with_targets", [False, True])
@pytest.mark.parametrize("rule", ["mse", "centered_mse", "pcc", "loss"])
def test_tuned_ridge_is_that_of_scikit_learn(rule: SelectBy, with_targets: bool) -> None:
    data = make_data()
    if with_targets:
        level = torch.randn(3, GENES, generator=torch.Generator().manual_seed(1)).double()
        data = replace(data, targets=centered_targets(data, level))
    model = TunedRidgeModel(TunedRidgeConfig(WIDTH, GENES))
    model.select_by = rule
    model.prepare(data, TRAIN, VAL, seed=0)
    found = model.predict(Images(data.spot[TEST].float(), data.niche[TEST].float(), TEST)).numpy()
    offset = data.targets.offset[VAL].double() if data.targets is not None else torch.zeros(len(VAL), GENES)

    def error(output: np.ndarray) -> float:
        return selection_error(rule, torch.from_numpy(output) + offset, data.expression[VAL], data.slide[VAL])

    alphas = 10.0 ** np.arange(-1, 7, 0.5)
    np.testing.assert_allclose(found, oracle(data, data.target, 2 * WIDTH, alphas, error), rtol=1e-6, atol=1e-7)


def test_rules_may_choose_other_penalties() -> None:
    """On a validation slide of another batch; otherwise the test above could not tell rules apart."""
    data = make_data()
    weights = []
    for rule in ("mse", "centered_mse", "pcc"):
        model = TunedRidgeModel(TunedRidgeConfig(WIDTH, GENES))
        model.select_by = rule  # type: ignore[assignment]
        model.prepare(data, TRAIN, VAL, seed=0)
        weights.append(model.weight)
    assert any(not torch.equal(weights[0], other) for other in weights[1:])


def test_the_error_of_an_output_counts_its_offset() -> None:
    data = make_data()
    output = np.random.default_rng(0).normal(size=(len(VAL), GENES))
    y = data.expression[VAL].double().numpy()
    assert validation_error("mse", data, VAL)(output) == pytest.approx(((output - y) ** 2).mean(), rel=1e-9)
    targets = centered_targets(data, torch.full((3, GENES), 2.5, dtype=torch.float64))
    found = validation_error("mse", replace(data, targets=targets), VAL)(output)
    assert found == pytest.approx(((output + 2.5 - y) ** 2).mean(), rel=1e-9)


def test_nearest_neighbours_average_what_is_learnt() -> None:
    data = make_data()
    data = replace(data, targets=centered_targets(data, torch.zeros(3, GENES, dtype=torch.float64)))
    model = KnnModel(KnnConfig(WIDTH, GENES, nearest=4))
    model.prepare(data, TRAIN, VAL, seed=0)
    found = model.predict(Images(data.spot[TEST].float(), data.niche[TEST].float(), TEST))
    x_train, x = embeddings(data, TRAIN), embeddings(data, TEST)
    assert data.targets is not None
    for i in range(len(TEST)):
        near = np.argsort(((x_train - x[i]) ** 2).sum(1))[:4]
        expected = data.targets.target[TRAIN].double().numpy()[near].mean(0)
        np.testing.assert_allclose(found[i], expected, rtol=1e-4, atol=1e-5)
