"""Runs against ridge: differences and intervals against scipy on numbers written out, and the sentences."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from scipy import stats

from tests.train.report.fake_runs import RIDGE, numbers, write_run
from train.experiments.cautions import ridge_warnings
from train.report.against_ridge import AgainstRidge, against_ridge, paired_interval
from train.report.baseline_rows import RIDGE as FIXED
from train.report.baseline_rows import RIDGE_TUNED
from train.report.cli import main
from train.report.context import result_warnings
from train.report.forest import plot_forest
from train.report.reading import read_results
from train.report.ridge_table import ridge_tables, ridge_text
from train.report.terminal import to_rich

FULL = (0.70, 0.72, 0.74, 0.69)
TUNED = (0.69, 0.70, 0.73, 0.66)
STRONG: dict[str, Any] = {"recipe": {"name": "strong", "standardize": "slide"}}


def write_scored(root: Path, own: Sequence[float], tuned: Sequence[float] | None = None, **more: Any) -> Path:
    """A run whose folds have the PCC@10 `own`, and `tuned` for ridge on the same inputs."""
    folder = write_run(root, own, **more)
    for i, value in enumerate(tuned or ()):
        change_metrics(folder / f"fold{i}", {"ridge_tuned": numbers(value)})
    return folder


def change_metrics(fold: Path, controls: Mapping[str, Any], **entries: Any) -> None:
    file = fold / "metrics.json"
    metrics = json.loads(file.read_text())
    metrics["controls"] |= controls
    file.write_text(json.dumps(metrics | entries))


def compared(root: Path) -> list[AgainstRidge]:
    return against_ridge(read_results([root]).runs)


def test_the_interval_is_scipys() -> None:
    first, second = np.array(FULL), np.array(TUNED)
    estimate = paired_interval(first - second)
    interval = stats.ttest_rel(first, second).confidence_interval(0.95)
    assert estimate.mean == pytest.approx((first - second).mean())
    assert (estimate.low, estimate.high) == pytest.approx((interval.low, interval.high))
    single = paired_interval(np.array([0.1]))
    assert (single.mean, single.low, single.high) == (0.1, None, None)


def test_both_ridges_fold_by_fold(tmp_path: Path) -> None:
    write_scored(tmp_path, FULL, TUNED, change=STRONG)
    tuned, fixed = compared(tmp_path)
    assert (tuned.ridge, fixed.ridge, tuned.metric) == (RIDGE_TUNED, FIXED, "pcc@50")  # the widest there is
    own, other = np.array(FULL) - 0.1, np.array(TUNED) - 0.1
    assert tuned.pcc.mean == pytest.approx((own - other).mean())
    assert tuned.mse.mean == pytest.approx((other - own).mean())  # MSE is 2 - PCC@10 in these runs
    assert tuned.n_above == 4
    ratios = own / other
    assert tuned.worst is not None
    assert (tuned.worst.number, tuned.worst.ratio) == (int(ratios.argmin()), pytest.approx(ratios.min()))
    assert fixed.pcc.mean == pytest.approx(np.mean(np.array(FULL) - (0.4, 0.41, 0.42, 0.43)))


def test_pcc_200_is_taken_where_all_have_it(tmp_path: Path) -> None:
    folder = write_run(tmp_path, FULL)
    for i, value in enumerate(FULL):
        wide = numbers(value) | {"pcc@200": value - 0.2, "pcc@500": value - 0.3}
        change_metrics(folder / f"fold{i}", {"ridge": wide | {"pcc@200": 0.4}}, pooled=wide)
    [fixed] = compared(tmp_path)
    assert fixed.metric == "pcc@200"
    assert fixed.pcc.mean == pytest.approx(np.mean(FULL) - 0.6)
    write_run(tmp_path, FULL, change={"variant.name": "clip"})
    assert {one.metric for one in compared(tmp_path)} == {"pcc@50"}


def test_ridge_on_the_same_inputs_is_left_out_where_a_fold_lacks_it(tmp_path: Path) -> None:
    write_scored(tmp_path, FULL, TUNED[:3], change=STRONG)
    assert [one.ridge for one in compared(tmp_path)] == [FIXED]


def test_ridge_itself_is_not_compared(tmp_path: Path) -> None:
    write_run(tmp_path, FULL, change=RIDGE)
    assert compared(tmp_path) == []
    assert ridge_tables(read_results([tmp_path])) == []
    write_run(tmp_path, FULL)
    assert [one.label for one in compared(tmp_path)] == ["full"]


def test_seeds_are_averaged_in_each_fold_first(tmp_path: Path) -> None:
    values = {1: FULL, 2: (0.75, 0.70, 0.71, 0.60), 3: (0.65, 0.71, 0.78, 0.70)}
    for seed, own in values.items():
        write_scored(tmp_path, own, TUNED, change=STRONG | {"loop.seed": seed})
    found = compared(tmp_path)
    assert [one.label for one in found][::2] == [
        "full, seed 1",
        "full, seed 2",
        "full, seed 3",
        "full, mean of 3 seeds",
    ]
    pooled = found[-2]
    assert (pooled.ridge, pooled.n_seeds, len(pooled.folds)) == (RIDGE_TUNED, 3, 4)
    difference = np.mean(list(values.values()), axis=0) - np.array(TUNED)
    interval = stats.ttest_1samp(difference, 0).confidence_interval(0.95)
    assert (pooled.pcc.low, pooled.pcc.high) == pytest.approx((interval.low, interval.high))
    [table] = ridge_tables(read_results([tmp_path]))
    assert any("mean over seeds in each fold first" in note for note in table.notes)
    assert [note for note in table.notes if note.startswith("full")] == [pooled.sentence]  # not each seed by itself


def test_seeds_of_other_splits_are_not_averaged(tmp_path: Path) -> None:
    write_run(tmp_path, FULL, change={"loop.seed": 1}, tests=[["S0"]] * 4)
    write_run(tmp_path, FULL, change={"loop.seed": 2}, tests=[["S1"]] * 4)
    results = read_results([tmp_path])
    assert [one.n_seeds for one in against_ridge(results.runs)] == [1, 1]
    [table] = ridge_tables(results)
    assert any(note.startswith("full, seed 1; full, seed 2: 0 of 4 folds have the same") for note in table.notes)


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ((0.72, 0.74, 0.74, 0.70), "above {} by 0.030 [0.007, 0.053], in 4 of 4 folds"),
        ((0.66, 0.67, 0.69, 0.64), "BELOW {} by 0.030 [0.017, 0.043], above it in 0 of 4 folds"),
        ((0.70, 0.69, 0.74, 0.65), "no clear difference to {}: 0.000 [−0.018, 0.018], above it in 2 of 4 folds"),
    ],
)
def test_the_sentence(tmp_path: Path, own: Sequence[float], says: str) -> None:
    write_scored(tmp_path, own, TUNED, change=STRONG)
    tuned, _ = compared(tmp_path)
    expected = f"full: {says.format('ridge on the same inputs')}"
    assert tuned.sentence == expected
    assert ridge_text([tuned]) == f"PCC@50 minus that of ridge, mean over folds with a 95 % interval. {expected}."


def test_a_single_fold_has_no_interval(tmp_path: Path) -> None:
    write_run(tmp_path, FULL[:1])
    [one] = compared(tmp_path)
    assert one.sentence == "full: 0.300 above ridge in a single fold, so without an interval"
    [table] = ridge_tables(read_results([tmp_path]))
    assert [c.text for c in table.rows[0].cells] == [
        "PCA-256", "+0.300", "one fold", "1 of 1", "2.00", "−0.300", "one fold",
    ]  # fmt: skip


@pytest.mark.usefixtures("quick")
def test_the_page_says_nothing_twice(tmp_path: Path) -> None:
    write_run(tmp_path, FULL, predictions=True)
    assert main([str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out/report.html").read_text()
    section = text[text.index('<section id="part-against-ridge"') : text.index('<figure class="picture"')]
    assert section.count("full: above ridge by") == 1
    assert "full: above ridge by" in section[: section.index("<figure")]


def test_a_long_label_cuts_off_no_number_on_the_terminal(tmp_path: Path) -> None:
    write_scored(tmp_path, FULL, TUNED, change=STRONG)
    [table] = ridge_tables(read_results([tmp_path]))
    table = replace(table, rows=tuple(replace(row, label=f"{row.label}, {'x ' * 40}") for row in table.rows))
    text = io.StringIO()
    Console(width=110, file=text).print(to_rich(table))
    assert "…" not in text.getvalue()
    assert all(cell.text in text.getvalue() for row in table.rows for cell in row.cells)


def test_many_runs_are_counted_in_the_text(tmp_path: Path) -> None:
    for i, variant in enumerate(("full", "no_hea", "clip", "meru")):
        write_run(tmp_path, [v - 0.4 * (i == 3) for v in FULL], change={"variant.name": variant})
    assert ridge_text(compared(tmp_path)) == "In PCC@50, of 4 rows: 3 above ridge, 1 BELOW ridge."


def test_a_fold_far_below_ridge_is_in_the_warnings(tmp_path: Path) -> None:
    folder = write_run(tmp_path, (0.3, 0.9))
    for i, value in enumerate((0.3, 0.9)):
        said = ridge_warnings(numbers(value), {"ridge": numbers(0.4 + 0.01 * i)})
        change_metrics(folder / f"fold{i}", {}, warnings=said)
    results = read_results([tmp_path])
    expected = "full, fold 0: far below ridge: PCC@50 0.200, where ridge on the same embeddings has 0.300"
    assert [w for w in result_warnings(results) if "ridge" in w] == [expected]
    worst = against_ridge(results.runs)[0].worst
    assert worst is not None
    assert worst.ratio == pytest.approx(0.2 / 0.3)


def test_the_plot_grows_with_the_runs(tmp_path: Path) -> None:
    write_scored(tmp_path / "runs", FULL, TUNED, change=STRONG)
    sizes = []
    for variant in ("clip", "meru"):
        write_run(tmp_path / "runs", FULL[:1], change={"variant.name": variant})
        plot_forest(tmp_path / "forest.png", compared(tmp_path / "runs"))
        with Image.open(tmp_path / "forest.png") as image:
            sizes.append(image.size)
    assert sizes[0][0] == sizes[1][0]
    assert sizes[0][1] < sizes[1][1]
