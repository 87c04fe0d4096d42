"""Paired tests, against scipy on numbers written out."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hist_cache.errors import InputError
from tests.train.report.fake_runs import RIDGE, write_run
from train.report.analysis_tables import significance_table
from train.report.reading import read_results
from train.report.significance import compare, comparisons, holm, paired, references

A = [0.711, 0.702, 0.745, 0.698, 0.731]
B = [0.701, 0.704, 0.725, 0.690, 0.728]


def test_against_scipy() -> None:
    result = paired(np.array(A), np.array(B))
    d = np.array(A) - np.array(B)
    t = d.mean() / (d.std(ddof=1) / np.sqrt(5))
    assert result.n == 5
    assert result.difference == pytest.approx(d.mean())
    assert result.p_t == pytest.approx(2 * stats.t.sf(abs(t), 4))
    assert result.p_t == pytest.approx(stats.ttest_rel(A, B).pvalue)
    assert result.p_wilcoxon == pytest.approx(stats.wilcoxon(A, B).pvalue)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from([0.1, 0.2, 0.3, 0.7])] * 2), min_size=0, max_size=7))
def test_never_nan_and_never_a_warning(pairs: list[tuple[float, float]]) -> None:
    first, second = (np.array([p[i] for p in pairs]) for i in (0, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = paired(first, second)
    for p in (result.p_t, result.p_wilcoxon):
        assert p is None or 0 <= p <= 1
    if len(pairs) < 2 or (first == second).all():
        assert result.p_t is None
        assert result.p_wilcoxon is None


def test_differences_that_do_not_vary_have_no_t_test() -> None:
    result = paired(np.array([0.3, 0.4, 0.5]), np.array([0.2, 0.3, 0.4]))
    assert result.p_t is None
    assert result.difference == pytest.approx(0.1)


def test_runs_are_matched_by_split_not_by_place(tmp_path: Path) -> None:
    write_run(tmp_path, A)
    other = write_run(tmp_path, B, change={"variant.name": "no_hea"})
    (other / "fold1").rename(other / "fold9")  # fold 9 of draw-1; the pair is the split's
    (other / "fold0/metrics.json").unlink()
    results = read_results([tmp_path])
    full, no_hea = results.runs
    result = compare(results, no_hea, full, "pcc@10")
    assert result.n == 4
    assert result.p_t == pytest.approx(stats.ttest_rel(B[1:], A[1:]).pvalue)
    table = comparisons(results, ["pcc@10", "mse"])
    assert table[["run", "reference", "metric", "n"]].to_numpy().tolist() == [
        ["no_hea", "full", "pcc@10", 4], ["no_hea", "full", "mse", 4],
    ]  # fmt: skip


def test_splits_of_the_same_name_with_other_slides_are_no_pairs(tmp_path: Path) -> None:
    write_run(tmp_path, A, tests=[["S0"]] * 5)
    write_run(tmp_path, B, change={"variant.name": "no_hea"}, tests=[["S1"]] * 5)
    results = read_results([tmp_path])
    result = compare(results, results.runs[1], results.runs[0], "pcc@10")
    assert (result.n, result.difference, result.p_t) == (0, None, None)


def test_each_run_has_the_nearest_reference(tmp_path: Path) -> None:
    for neighbors in (6, 18):
        for variant in ("full", "clip"):
            write_run(tmp_path, A, change={"variant.name": variant, "neighbors": neighbors})
    results = read_results([tmp_path])
    assert {k: r.label for k, r in references(results).items()} == {
        "clip, 6 neighbours": "full, 6 neighbours",
        "full, 18 neighbours": "full, 6 neighbours",
        "clip, 18 neighbours": "full, 18 neighbours",
    }
    against = references(results, "clip, 6 neighbours")
    assert {r.label for r in against.values()} == {"clip, 6 neighbours"}
    with pytest.raises(InputError, match="--against meru: not among the runs; there are full; clip"):
        references(results, "meru")


def test_another_model_can_be_the_reference(tmp_path: Path) -> None:
    write_run(tmp_path, A)
    write_run(tmp_path, B, change=RIDGE)
    results = read_results([tmp_path])
    assert {label: r.label for label, r in references(results).items()} == {"ridge": "full"}
    assert {label: r.label for label, r in references(results, "ridge").items()} == {"full": "ridge"}
    full, ridge = results.runs
    assert compare(results, ridge, full, "pcc@10").p_t == pytest.approx(stats.ttest_rel(B, A).pvalue)
    with pytest.raises(InputError, match="--against meru: not among the runs; there are full; ridge"):
        references(results, "meru")


def test_the_table_has_both_tests(tmp_path: Path) -> None:
    write_run(tmp_path, A)
    write_run(tmp_path, B, change={"variant.name": "no_hea"})
    results = read_results([tmp_path])
    table = significance_table(results, results.runs)
    assert table is not None
    assert [r.label for r in table.rows] == ["no_hea − full, 5 pairs", "p, paired t-test", "p, Wilcoxon", "p, Holm"]
    assert table.rows[1].cells[0].value == pytest.approx(stats.ttest_rel(B, A).pvalue)
    assert table.rows[2].cells[0].value == pytest.approx(stats.wilcoxon(B, A).pvalue)
    assert "not independent" in table.notes[0]


def rejected_step_by_step(p: list[float], level: float) -> set[int]:
    """What Holm's procedure rejects at a level: the smallest p against level / n, the next against level / (n - 1)."""
    rejected = set()
    for left, i in zip(range(len(p), 0, -1), sorted(range(len(p)), key=lambda i: p[i]), strict=True):
        if p[i] > level / left:
            break
        rejected.add(i)
    return rejected


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 999), min_size=1, max_size=9, unique=True))
def test_holm_rejects_what_its_procedure_does(thousandths: list[int]) -> None:
    p = [value / 1000 for value in thousandths]
    corrected = holm(p)
    for level in (0.0105, 0.0505, 0.2005):
        assert {
            i for i, value in enumerate(corrected) if value is not None and value <= level
        } == rejected_step_by_step(p, level)


def test_holm_leaves_out_what_was_not_tested() -> None:
    assert holm([0.03, None, 0.01, 0.9]) == pytest.approx([0.06, None, 0.03, 0.9])
    assert holm([None]) == [None]


def test_the_table_is_corrected_over_runs_and_metrics(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write_run(tmp_path, A)
    for variant in ("no_hea", "clip"):
        write_run(tmp_path, [a + 0.02 * rng.normal() for a in A], change={"variant.name": variant})
    results = read_results([tmp_path])
    table = significance_table(results, results.runs)
    assert table is not None
    p = [cell.value for row in table.rows if row.label == "p, paired t-test" for cell in row.cells]
    shown = [cell.value for row in table.rows if row.label == "p, Holm" for cell in row.cells]
    assert len(p) == 8
    assert shown == pytest.approx(holm(p))
    assert "all 8 tests of this table" in table.notes[1]
