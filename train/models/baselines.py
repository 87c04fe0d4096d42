"""What any model must beat: shuffled predictions, the train mean, and ridge on the same embeddings."""

from __future__ import annotations

import numpy as np

from train.metrics import summarize

COMPONENTS = 256
ALPHAS = 10.0 ** np.arange(-1, 7)


def permuted(predicted: np.ndarray, truth: np.ndarray, seed: int) -> dict[str, float]:
    """Metrics of the predictions dealt out to the wrong spots: what PCC@k owes to picking the best genes."""
    return summarize(predicted[np.random.default_rng(seed).permutation(len(predicted))], truth)


def train_mean(train: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Metrics of predicting each gene's mean over the train spots."""
    return summarize(np.broadcast_to(train.mean(0), truth.shape), truth)


def ridge(
    x_train: np.ndarray,
    y_train: np.ndarray,
    x_val: np.ndarray,
    y_val: np.ndarray,
    x_test: np.ndarray,
    seed: int,
) -> np.ndarray:
    """(N_test, G) ridge on the first 256 principal components of x (N, 2D), its strength chosen on validation."""
    from sklearn.decomposition import PCA
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    components = min(COMPONENTS, *x_train.shape)
    reduce = make_pipeline(StandardScaler(), PCA(components, random_state=seed))
    z_train = reduce.fit_transform(x_train.astype(np.float64))
    z_val = reduce.transform(x_val.astype(np.float64))
    models = [Ridge(alpha).fit(z_train, y_train) for alpha in ALPHAS]
    best = min(models, key=lambda m: float(((m.predict(z_val) - y_val) ** 2).mean()))
    return best.predict(reduce.transform(x_test.astype(np.float64)))
