"""Ridge from Gram matrices against scikit-learn's standardisation, components and ridge."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from train.data import Images, SpotData
from train.models import components
from train.models.baselines import ALPHAS, COMPONENTS, RidgeModel
from train.models.configs import RidgeConfig

WIDTH, GENES = 150, 12


def make_data(n: int, seed: int, scale: float = 1.0) -> SpotData:
    """Embeddings with features of very different sizes, some constant, some copies of others."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 40)) @ rng.normal(size=(40, 2 * WIDTH)) + 0.5 * rng.normal(size=(n, 2 * WIDTH))
    x *= np.geomspace(0.01, 3, 2 * WIDTH) * scale
    x[:, [0, 7]] = 0.3, 0.0
    x[:, 20:24] = x[:, 30:34]
    spot, niche = torch.from_numpy(x.astype(np.float16)).chunk(2, dim=1)
    expression = torch.from_numpy((x[:, 10:22] + rng.normal(size=(n, GENES)) + 5).astype(np.float32))
    rows = torch.arange(n)
    slide, complete = torch.zeros(n, dtype=torch.int64), torch.ones(n, dtype=torch.bool)
    genes = [f"G{i}" for i in range(GENES)]
    return SpotData(spot, niche, expression, expression, slide, rows, complete, ["A"], genes)


@pytest.mark.parametrize(
    ("n_train", "chunk"),
    [(600, 4096), (600, 70), (280, 4096), (90, 64), (2, 4096), (1, 4096)],  # more and fewer spots than features
)
def test_ridge_is_that_of_scikit_learn(n_train: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components, "ROWS_AT_ONCE", chunk)
    data = make_data(n_train + 100, seed=n_train)
    train, val, test = torch.arange(n_train + 100).split([n_train, 50, 50])
    ridge = RidgeModel(RidgeConfig(embedding_width=WIDTH, n_genes=GENES))
    ridge.prepare(data, train, val, seed=0)
    got = ridge.predict(Images(data.spot[test].float(), data.niche[test].float(), test)).numpy()

    x = torch.cat([data.spot, data.niche], dim=1).double().numpy()
    train, val, test = (rows.numpy() for rows in (train, val, test))
    y = data.expression.double().numpy()
    fits = []
    for alpha in ALPHAS:
        pca = PCA(min(COMPONENTS, *x[train].shape), svd_solver="full")
        fit = make_pipeline(StandardScaler(), pca, Ridge(alpha, solver="cholesky"))
        with np.errstate(invalid="ignore"):
            fits.append(fit.fit(x[train], y[train]))
    best = min(fits, key=lambda fit: float(((fit.predict(x[val]) - y[val]) ** 2).mean()))
    np.testing.assert_allclose(got, best.predict(x[test]), rtol=1e-7, atol=1e-7)


def test_embeddings_that_are_all_alike_predict_the_mean() -> None:
    data = make_data(60, seed=0, scale=0.0)
    ridge = RidgeModel(RidgeConfig(embedding_width=WIDTH, n_genes=GENES))
    ridge.prepare(data, torch.arange(50), torch.arange(50, 60), seed=0)
    got = ridge.predict(Images(data.spot.float(), data.niche.float(), torch.arange(60))).numpy()
    np.testing.assert_allclose(got, np.tile(data.expression[:50].double().mean(0), (60, 1)))
