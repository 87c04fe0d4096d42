"""Tangent PCA against scikit-learn, and the map to the Poincare disk."""

import numpy as np
import torch
from sklearn.decomposition import TruncatedSVD

from train.models import lorentz
from train.models.alignment import EMBEDDING_NAMES, Embeddings
from train.models.projection import tangent_projection, to_disk


def make_embeddings(c: float = 1.7, n: int = 20, d: int = 5) -> tuple[Embeddings, dict[str, np.ndarray]]:
    draw = np.random.default_rng(0)
    vectors = {name: draw.normal(size=(n, d)) * (i + 1) / d for i, name in enumerate(EMBEDDING_NAMES)}
    points = {name: lorentz.exp_map0(torch.from_numpy(v), c) for name, v in vectors.items()}
    return Embeddings(**points, c=torch.tensor(c), tau=torch.tensor(0.1)), vectors


def test_radii_are_the_tangent_lengths_in_curvature_radii() -> None:
    embeddings, vectors = make_embeddings()
    projection = tangent_projection(embeddings, "lorentz")
    for name, v in vectors.items():
        np.testing.assert_allclose(projection.radii[name], np.linalg.norm(v, axis=1) * np.sqrt(1.7), rtol=1e-5)


def test_axes_are_those_of_an_uncentred_svd() -> None:
    embeddings, vectors = make_embeddings()
    projection = tangent_projection(embeddings, "lorentz")
    stacked = np.concatenate(list(vectors.values())) * np.sqrt(1.7)
    svd = TruncatedSVD(2, algorithm="arpack").fit(stacked)
    for name, v in vectors.items():
        np.testing.assert_allclose(np.abs(projection.points[name]), np.abs(svd.transform(v * np.sqrt(1.7))), atol=1e-5)
    assert np.isclose(projection.explained, (svd.singular_values_**2).sum() / (stacked**2).sum(), rtol=1e-6)


def test_euclidean_vectors_stay_as_they_are() -> None:
    embeddings, _ = make_embeddings()
    projection = tangent_projection(embeddings, "euclidean")
    norms = embeddings.image_spot.double().norm(dim=1).numpy()
    np.testing.assert_allclose(projection.radii["image_spot"], norms, rtol=1e-5)


def test_the_disk_keeps_directions_and_hyperbolic_distances_from_the_origin() -> None:
    v = np.array([[0.0, 0.0], [3.0, 4.0], [-0.3, 0.4]])
    p = to_disk(v)
    r = np.linalg.norm(p, axis=1)
    assert (r < 1).all()
    np.testing.assert_allclose(2 * np.arctanh(r), [0, 5, 0.5])  # distance from the origin of the disk
    np.testing.assert_allclose(p[1:] / r[1:, None], v[1:] / np.linalg.norm(v[1:], axis=1)[:, None])
