"""The corrected t-test and its effect size, against formulas written out and integrated numerically."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from tests.train.report.fake_runs import RIDGE, write_run
from train.report.effects_table import effects_table
from train.report.reading import read_results
from train.report.resampling import (
    compare_corrected,
    corrected_effect,
    hedges_factor,
    noncentrality_interval,
    split_ratio,
)
from train.report.significance import holm

A = [0.711, 0.702, 0.745, 0.698, 0.731]
B = [0.701, 0.704, 0.725, 0.690, 0.728]
C = [0.640, 0.690, 0.650, 0.688, 0.610]
D = np.array(A) - np.array(B)


def t_tail(t: float, degrees: int) -> float:
    """P(|T| > t) by integrating the density of Student's t, whose normalisation is written out."""
    scale = math.gamma((degrees + 1) / 2) / (math.sqrt(degrees * math.pi) * math.gamma(degrees / 2))
    return 2 * integrate.quad(lambda x: scale * (1 + x * x / degrees) ** (-(degrees + 1) / 2), abs(t), math.inf)[0]


def noncentral_cdf(t: float, degrees: int, noncentrality: float) -> float:
    """P((Z + noncentrality) / sqrt(V / degrees) <= t) by integrating over w = sqrt(V / degrees)."""

    def density(w: float) -> float:
        chance = 0.5 * math.erfc((noncentrality - t * w) / math.sqrt(2))
        return 2 * degrees * w * float(stats.chi2.pdf(degrees * w * w, degrees)) * chance

    return integrate.quad(density, 0, 12, points=[0.5, 1, 2], limit=200)[0]


def test_the_formula_of_nadeau_and_bengio() -> None:
    ratio = 2 / 6
    effect = corrected_effect(D, ratio)
    mean = math.fsum(D) / 5
    variance = math.fsum((d - mean) ** 2 for d in D) / 4
    t = mean / math.sqrt((1 / 5 + ratio) * variance)
    assert effect.difference == pytest.approx(mean)
    assert effect.p == pytest.approx(t_tail(t, 4), rel=1e-9)
    assert effect.low is not None
    assert effect.high is not None
    assert (effect.low + effect.high) / 2 == pytest.approx(mean)
    at_the_end = (mean - effect.low) / math.sqrt((1 / 5 + ratio) * variance)
    assert t_tail(at_the_end, 4) == pytest.approx(0.05, rel=1e-9)


def test_without_a_test_set_it_is_the_paired_t_test() -> None:
    effect = corrected_effect(D, 0)
    assert effect.p == pytest.approx(stats.ttest_rel(A, B).pvalue)
    low, high = stats.ttest_rel(A, B).confidence_interval(0.95)
    assert (effect.low, effect.high) == pytest.approx((low, high))


def test_the_effect_size_and_its_interval() -> None:
    ratio = 0.25
    effect = corrected_effect(D, ratio)
    d_z = D.mean() / D.std(ddof=1)
    factor = math.gamma(4 / 2) / (math.sqrt(4 / 2) * math.gamma(3 / 2))
    assert effect.g == pytest.approx(factor * d_z)
    scale = math.sqrt(1 / 5 + ratio)
    assert effect.g_low is not None
    assert effect.g_high is not None
    for end, share in ((effect.g_low, 0.975), (effect.g_high, 0.025)):
        assert noncentral_cdf(d_z / scale, 4, end / factor / scale) == pytest.approx(share, abs=1e-5)


@pytest.mark.parametrize(("statistic", "degrees"), [(0.0, 2), (0.3, 3), (-2.5, 4), (12.0, 9), (40.0, 29)])
def test_intervals_of_the_noncentrality(statistic: float, degrees: int) -> None:
    low, high = noncentrality_interval(statistic, degrees)
    assert low is not None
    assert high is not None
    assert noncentral_cdf(statistic, degrees, low) == pytest.approx(0.975, abs=1e-4)
    assert noncentral_cdf(statistic, degrees, high) == pytest.approx(0.025, abs=1e-4)


def test_hedges_factor_makes_the_mean_unbiased() -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(0.8, 1, (200_000, 6))
    raw = samples.mean(1) / samples.std(1, ddof=1)
    assert raw.mean() > 0.9
    assert hedges_factor(5) * raw.mean() == pytest.approx(0.8, abs=0.01)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([-0.2, 0.0, 0.1, 0.1 + 1e-9, 3.0]), max_size=6), st.sampled_from([0, 0.1, 1.0]))
def test_what_cannot_be_said_is_none_and_nothing_is_nan(differences: list[float], ratio: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        effect = corrected_effect(np.array(differences), ratio)
    numbers = [v for v in vars(effect).values() if v is not None]
    assert all(math.isfinite(v) for v in numbers)
    assert (effect.difference is None) == (not differences)
    assert (effect.low is None) == (len(differences) < 2)
    if len(set(differences)) < 2:
        assert effect.p is None
    if effect.p is not None and effect.low is not None and effect.high is not None:
        assert (effect.p < 0.05) == (not effect.low <= 0 <= effect.high)
        if effect.g_low is not None and effect.g_high is not None:
            assert (effect.p < 0.05) == (not effect.g_low <= 0 <= effect.g_high) or abs(effect.p - 0.05) < 1e-4


def test_it_finds_too_much_less_often_where_splits_share_data() -> None:
    """Two equal methods on random splits of 30 points: the plain test errs far more often than 5 %."""
    rng = np.random.default_rng(1)
    wrong = np.zeros(2)
    n_repeats = 400
    for _ in range(n_repeats):
        points = rng.normal(0, 1, 30)  # what one method is better by at each point, were it not for its training set
        noise = rng.normal(0, 1, 30)
        d = []
        for _ in range(10):
            order = rng.permutation(30)
            d.append(points[order[:10]].mean() + noise[order[10:]].mean())
        wrong += [(corrected_effect(np.array(d), r).p or 1) < 0.05 for r in (0, 10 / 20)]
    plain, corrected = wrong / n_repeats
    assert plain > 0.25
    assert corrected < 0.5 * plain


def test_runs_are_compared_on_their_common_splits(tmp_path: Path) -> None:
    write_run(tmp_path, A)
    write_run(tmp_path, B[:4], change={"variant.name": "no_hea"})
    results = read_results([tmp_path])
    full, no_hea = results.runs
    effect = compare_corrected(results, no_hea, full, "pcc@10")
    assert split_ratio(full.folds) == pytest.approx(1 / 2)  # one test slide, two train slides, one that validates
    d = np.array(B[:4]) - np.array(A[:4])
    t = d.mean() / (d.std(ddof=1) * math.sqrt(1 / 4 + 1 / 2))
    assert effect.n == 4
    assert effect.p == pytest.approx(t_tail(t, 3), rel=1e-6)


def test_the_table_of_effects(tmp_path: Path) -> None:
    write_run(tmp_path, A)
    write_run(tmp_path, B, change={"variant.name": "no_hea"})
    write_run(tmp_path, C, change=RIDGE)
    results = read_results([tmp_path])
    table = effects_table(results, results.runs)
    assert table is not None
    columns = [column.title for column in table.columns]
    rows = [dict(zip(columns, row.cells, strict=True)) for row in table.rows]
    assert [row.label for row in table.rows] == ["no_hea − full"] * 4 + ["ridge − full"] * 4
    assert [row["metric"].text for row in rows] == ["PCC@10", "PCC@50", "MSE", "MAE"] * 2
    t = -D.mean() / (D.std(ddof=1) * math.sqrt(1 / 5 + 1 / 2))
    assert rows[0]["p, paired t"].value == pytest.approx(stats.ttest_rel(B, A).pvalue)
    assert rows[0]["p, corrected t"].value == pytest.approx(t_tail(t, 4), rel=1e-6)
    assert rows[0]["splits"].value == 5
    for p in ("p, paired t", "p, corrected t"):
        assert [row[f"{p}, Holm"].value for row in rows] == pytest.approx(holm([row[p].value for row in rows]))
    text = " ".join(table.notes)
    assert "counted in slides: 0.5." in text
    assert "all 8 tests" in text
    assert "log2(1 + count)" in text


def test_no_table_where_nothing_can_be_tested(tmp_path: Path) -> None:
    write_run(tmp_path, A[:1])
    write_run(tmp_path, B[:1], change={"variant.name": "no_hea"})
    results = read_results([tmp_path])
    assert effects_table(results, results.runs) is None
