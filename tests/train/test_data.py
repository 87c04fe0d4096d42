from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from tests.hist_cache.test_cache import make
from train.assembly import assemble
from train.data import Targets
from train.expression import Transform, niche_mean
from train.fit.batches import read_batch


def test_niche_profile_is_the_masked_mean_of_raw_counts_then_the_logarithm() -> None:
    counts = np.array([[4.0, 0], [2, 8], [0, 1]])
    near = np.array([[1, 2], [0, -1], [-1, -1]])
    expected = np.array([counts.mean(0), counts[:2].mean(0), counts[2]])
    np.testing.assert_allclose(niche_mean(csr_matrix(counts), near), expected)


def test_slides_are_joined_by_gene_name() -> None:
    a, b = make(n=4, seed=1), make(n=3, seed=2)
    b.genes = b.genes[::-1]
    panel = ["G5", "G0"]
    data = assemble({"A": a, "B": b}, 6, panel, torch.device("cpu"))
    raw = np.concatenate([a.counts.toarray()[:, [5, 0]], b.counts.toarray()[:, [1, 6]]])
    np.testing.assert_allclose(data.expression.numpy(), np.log2(1 + raw), rtol=1e-6)
    np.testing.assert_array_equal(data.spot.numpy(), np.concatenate([a.embeddings, b.embeddings]))
    np.testing.assert_array_equal(data.niche.numpy(), np.concatenate([a.niches[6], b.niches[6]]))
    assert data.rows(("B",)).tolist() == [4, 5, 6]
    assert data.rows(("B", "A")).tolist() == list(range(7))
    for i in range(4):
        near = [i, *(r for r in a.neighbors[6][i] if r >= 0)]
        profile = a.counts.toarray()[near][:, [5, 0]].mean(0)
        np.testing.assert_allclose(data.niche_expression[i].numpy(), np.log2(1 + profile), rtol=1e-5)


@pytest.mark.parametrize("transform", ["log2", "ln_cp10k"])
def test_a_niches_profile_may_be_the_mean_of_logarithms(transform: Transform) -> None:
    slide = make(n=6, seed=3)
    counts = slide.counts.toarray().astype(np.float64)
    scaled = counts if transform == "log2" else 1e4 * counts / counts.sum(1, keepdims=True)
    logs = np.log2(1 + scaled) if transform == "log2" else np.log(1 + scaled)
    found = assemble({"A": slide}, 6, slide.genes, torch.device("cpu"), transform, niche_profile="mean_of_logs")
    plain = assemble({"A": slide}, 6, slide.genes, torch.device("cpu"), transform)
    for i in range(6):
        near = [i, *(r for r in slide.neighbors[6][i] if r >= 0)]
        np.testing.assert_allclose(found.niche_expression[i].numpy(), logs[near].mean(0), rtol=1e-5)
    assert torch.equal(found.expression, plain.expression)
    assert not torch.allclose(found.niche_expression, plain.niche_expression)


def test_the_depth_of_a_slide_is_the_median_of_its_spots_counts() -> None:
    a, b = make(n=5, seed=1), make(n=7, seed=2)
    data = assemble({"A": a, "B": b}, 6, ["G5", "G0"], torch.device("cpu"))
    expected = {name: float(np.median(slide.counts.toarray().sum(1))) for name, slide in (("A", a), ("B", b))}
    assert data.depths() == expected, "over all genes, not only those of the panel"
    assert replace(data, total=None).depths() == {}
    assert data.only(["B"]).depths()["B"] == expected["B"]


def test_what_is_learnt_is_the_expression_unless_a_recipe_says_otherwise() -> None:
    data = assemble({"A": make(n=5, seed=1)}, 6, ["G5", "G0"], torch.device("cpu"))
    assert data.target is data.expression
    batch = read_batch(data, torch.tensor([3, 1]))
    assert torch.equal(batch.target, data.expression[[3, 1]])
    targets = Targets(*(torch.full_like(data.expression, value) for value in (1.0, 2.0, 3.0, 4.0)))
    other = replace(data, targets=targets)
    assert other.target is targets.target
    batch = read_batch(other, torch.tensor([3, 1]))
    found = [values.unique().item() for values in (batch.expression, batch.niche_expression, batch.target)]
    assert found == [1, 2, 3]
    assert other.only(["A"]).targets is None, "they were fitted on other slides"
