"""Metrics against scipy and scikit-learn, and the baselines."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, rankdata, spearmanr
from sklearn.metrics import mean_absolute_error, mean_squared_error

from train.data import Images, SpotData
from train.metrics import gene_pcc, gene_spearman, mean_of, std_of, summarize
from train.metrics import test_metrics as all_metrics
from train.models.baselines import RidgeModel, permuted, train_mean
from train.models.configs import RidgeConfig
from train.relative_values import average_ranks, slide_centered


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(3, 40),
    genes=st.integers(1, 12),
    seed=st.integers(0, 999),
    scale=st.sampled_from([1e-3, 1.0, 1e4]),
)
def test_against_scipy_and_scikit_learn(n: int, genes: int, seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    t = rng.normal(size=(n, genes)).astype(np.float32) * scale + 3 * scale
    p = (t + rng.normal(size=(n, genes)) * scale).astype(np.float32)
    expected = [pearsonr(p[:, j].astype(float), t[:, j].astype(float)).statistic for j in range(genes)]
    np.testing.assert_allclose(gene_pcc(p, t), expected, atol=1e-9)
    summary = summarize(p, t)
    assert summary["mse"] == pytest.approx(mean_squared_error(t.astype(float), p.astype(float)))
    assert summary["mae"] == pytest.approx(mean_absolute_error(t.astype(float), p.astype(float)))


def test_pcc_at_k_is_the_mean_of_the_best_k() -> None:
    rng = np.random.default_rng(0)
    t = rng.normal(size=(50, 60))
    p = t + rng.normal(size=(50, 60)) * np.linspace(0.1, 5, 60)
    pcc = sorted((pearsonr(p[:, j], t[:, j]).statistic for j in range(60)), reverse=True)
    summary = summarize(p, t)
    assert summary["pcc@10"] == pytest.approx(np.mean(pcc[:10]))
    assert summary["pcc@50"] == pytest.approx(np.mean(pcc[:50]))
    assert "pcc@200" not in summary  # 60 genes have no best 200


@pytest.mark.parametrize("value", [0.0, 3.14, 1e6])
def test_constant_genes_are_undefined_and_count_as_zero(value: float) -> None:
    rng = np.random.default_rng(0)
    t = rng.normal(size=(20, 10)).astype(np.float32)
    p = t.copy()
    p[:, 0] = value
    t[:, 1] = value
    pcc = gene_pcc(p, t)
    assert np.isnan(pcc[:2]).all()
    np.testing.assert_allclose(pcc[2:], 1)
    assert summarize(p, t)["pcc@10"] == pytest.approx(0.8)
    assert all_metrics(p, t, np.array(["A"] * 20), np.ones(20, bool))["n_undefined_genes"] == 2


def test_pooled_and_per_slide() -> None:
    rng = np.random.default_rng(0)
    t, p = rng.normal(size=(2, 30, 12))
    slide = np.array(["A"] * 10 + ["B"] * 20)
    complete = np.arange(30) % 3 == 0
    metrics = all_metrics(p, t, slide, complete)
    assert metrics["pooled"] == summarize(p, t)
    assert metrics["complete_niches"] == summarize(p[::3], t[::3])
    assert (metrics["n_spots"], metrics["n_complete_niches"]) == (30, 10)
    assert all_metrics(p, t, slide, np.zeros(30, bool))["complete_niches"] is None
    assert metrics["slides"] == {"A": summarize(p[:10], t[:10]), "B": summarize(p[10:], t[10:])}
    assert metrics["slide_mean"]["mse"] == pytest.approx(
        (metrics["slides"]["A"]["mse"] + metrics["slides"]["B"]["mse"]) / 2
    )


@settings(max_examples=30, deadline=None)
@given(n=st.integers(3, 40), genes=st.integers(1, 8), values=st.sampled_from([2, 5, 1000]), seed=st.integers(0, 999))
def test_rank_correlations_against_scipy(n: int, genes: int, values: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    t, p = (np.log2(1 + rng.integers(0, values, (n, genes))).astype(np.float32) for _ in range(2))
    np.testing.assert_array_equal(average_ranks(p), rankdata(p, axis=0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns of constant genes
        expected = [spearmanr(p[:, j], t[:, j]).statistic for j in range(genes)]
    np.testing.assert_allclose(gene_spearman(p, t), expected, atol=1e-12)


def test_rank_correlations_pooled_and_as_the_mean_over_slides() -> None:
    rng = np.random.default_rng(0)
    t = rng.normal(size=(30, 60))
    p = t + rng.normal(size=(30, 60)) * np.linspace(0.1, 5, 60)
    slide = np.array(["A"] * 10 + ["B"] * 18 + ["C"] * 2)
    metrics = all_metrics(p, t, slide, np.ones(30, bool))

    def best(rows: np.ndarray, k: int) -> float:
        found = sorted((spearmanr(p[rows, j], t[rows, j]).statistic for j in range(60)), reverse=True)
        return float(np.mean(found[:k]))

    assert set(metrics["ranks"]) == set(metrics["ranks_slide_mean"]) == {"spearman@10", "spearman@50"}
    for k in (10, 50):
        assert metrics["ranks"][f"spearman@{k}"] == pytest.approx(best(np.arange(30), k))
        of_slides = [best(slide == s, k) for s in "AB"]  # C has too few spots
        assert metrics["ranks_slide_mean"][f"spearman@{k}"] == pytest.approx(np.mean(of_slides))
    monotone = all_metrics(np.exp(3 * p), p, slide, np.ones(30, bool))
    assert monotone["ranks"] == pytest.approx({"spearman@10": 1.0, "spearman@50": 1.0})
    few = all_metrics(p[:2], t[:2], slide[:2], np.ones(2, bool))
    assert (few["ranks"], few["ranks_slide_mean"]) == ({}, {})


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 40), genes=st.integers(1, 6), slides=st.integers(1, 4), seed=st.integers(0, 999))
def test_centering_within_slides(n: int, genes: int, slides: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=(n, genes)) * 10).astype(np.float32)
    slide = np.array([f"S{i}" for i in rng.integers(0, slides, n)], dtype=object)
    before = values.copy()
    centered = slide_centered(values, slide)
    assert centered.dtype == np.float64
    np.testing.assert_array_equal(values, before)
    for i in range(n):
        for j in range(genes):
            own = [float(values[k, j]) for k in range(n) if slide[k] == slide[i]]
            assert centered[i, j] == pytest.approx(float(values[i, j]) - sum(own) / len(own), abs=1e-9)


@pytest.mark.parametrize("value", [0.1, 3.14, 1e6])
def test_a_gene_that_is_constant_within_slides_has_no_centered_pcc(value: float) -> None:
    rng = np.random.default_rng(0)
    slide = np.array(["A"] * 7 + ["B"] * 13)
    t = rng.normal(size=(20, 10))
    p = t.copy()
    p[:, 0] = np.where(slide == "A", value, value / 3)
    np.testing.assert_array_equal(slide_centered(p, slide)[:, 0], 0)
    metrics = all_metrics(p, t, slide, np.ones(20, bool))
    assert metrics["centered"]["pcc@10"] == pytest.approx(0.9)
    assert metrics["n_undefined_genes"] == 0


def test_metrics_without_the_levels_of_slides() -> None:
    rng = np.random.default_rng(0)
    t = rng.normal(size=(30, 12))
    noise = rng.normal(size=(30, 12))
    slide = np.array(["A"] * 10 + ["B"] * 20)
    offset = np.where(slide == "A", 5.0, -3.0)[:, None]
    complete = np.ones(30, bool)
    own, shifted = (all_metrics(t + noise + more, t, slide, complete) for more in (0, offset))
    assert shifted["pooled"]["mse"] > 10 * own["pooled"]["mse"]
    assert shifted["centered"] == pytest.approx(own["centered"])
    parts = [(t + noise)[slide == s] - (t + noise)[slide == s].mean(0) for s in "AB"]
    truth = [t[slide == s] - t[slide == s].mean(0) for s in "AB"]
    error = np.concatenate(parts) - np.concatenate(truth)
    assert own["centered"]["mse"] == pytest.approx((error**2).mean())
    pcc = [pearsonr(np.concatenate(parts)[:, j], np.concatenate(truth)[:, j]).statistic for j in range(12)]
    assert own["centered"]["pcc@10"] == pytest.approx(np.mean(sorted(pcc)[2:]))
    one = all_metrics(t + noise, t, np.array(["A"] * 30), complete)
    assert one["centered"]["pcc@10"] == pytest.approx(one["pooled"]["pcc@10"])


def test_mean_and_sample_standard_deviation() -> None:
    rows = [{"mse": 1.0}, {"mse": 2.0}, {"mse": 4.0}]
    assert mean_of(rows)["mse"] == pytest.approx(7 / 3)
    assert std_of(rows)["mse"] == pytest.approx(np.std([1, 2, 4], ddof=1))
    assert std_of(rows[:1])["mse"] == 0


def test_baselines() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 40))
    y = x[:, :15] @ rng.normal(size=(15, 25)) + rng.normal(size=(300, 25)) * 0.1
    spot, niche = torch.from_numpy(x).chunk(2, dim=1)
    expression, rows = torch.from_numpy(y), torch.arange(300)
    slide, complete = torch.zeros(300, dtype=torch.int64), torch.ones(300, dtype=torch.bool)
    data = SpotData(spot, niche, expression, expression, slide, rows, complete, ["A"], [f"G{i}" for i in range(25)])
    ridge = RidgeModel(RidgeConfig(embedding_width=20, n_genes=25))
    ridge.prepare(data, rows[:200], rows[200:250], seed=0)
    predicted = ridge.predict(Images(spot[250:], niche[250:], rows[250:])).numpy()
    assert summarize(predicted, y[250:])["pcc@10"] > 0.99
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = RidgeModel(RidgeConfig(embedding_width=20, n_genes=25))
        alone.prepare(data, rows[:1], rows[200:250], seed=0)
    assert alone.predict(Images(spot[250:], niche[250:], rows[250:])).numpy() == pytest.approx(np.tile(y[0], (50, 1)))
    assert permuted(predicted, y[250:], seed=0)["pcc@10"] < 0.5
    mean_baseline = summarize(train_mean(y[:200], 50), y[250:])
    assert mean_baseline["pcc@10"] == 0
    assert mean_baseline["mse"] == pytest.approx(((y[:200].mean(0) - y[250:]) ** 2).mean())
