"""Runs of several seeds as one row, against pandas; rows of other settings and other splits stay apart."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.train.report.fake_runs import RIDGE, numbers, write_run
from train.report.paper_tables import results_tables
from train.report.reading import read_results
from train.report.sections import summary_text
from train.report.table import Table, to_csv

FULL = pd.DataFrame({1: (0.7, 0.72, 0.74), 2: (0.71, 0.76, 0.7), 3: (0.6, 0.75, 0.72)})  # seeds x folds
CLIP = FULL - np.array([[0.02, 0.05, 0.03]]).T


def write_seeds(root: Path, split_seed: int | None = 1) -> None:
    """Two variants under three seeds; without a seed of splits each seed drew its own."""
    for variant, values in (("full", FULL), ("clip", CLIP)):
        for seed in values:
            change: dict[str, Any] = {"variant.name": variant, "loop.seed": int(seed)}
            if split_seed not in (None, seed):
                change["split_seed"] = split_seed
            folder = write_run(root, list(values[seed]), change=change)
            for i, file in enumerate(sorted(folder.glob("fold*/config.json"))):
                config = json.loads(file.read_text())
                config["split"]["name"] = f"slide-seed{seed if split_seed is None else split_seed}-{i}"
                file.write_text(json.dumps(config))


def metrics(root: Path) -> Table:
    [table] = results_tables(read_results([root]))
    return table


def test_a_row_has_the_spread_over_folds_and_that_over_seeds(tmp_path: Path) -> None:
    write_seeds(tmp_path)
    table = metrics(tmp_path)
    assert [(r.label, r.kind) for r in table.rows[:5]] == [
        ("full, mean of 3 seeds", "run"), ("± over 3 seeds", "seeds"),
        ("clip, mean of 3 seeds", "run"), ("± over 3 seeds", "seeds"), ("p against full, mean of 3 seeds", "p"),
    ]  # fmt: skip
    run, seeds, clip, _, p = (row.cells[0] for row in table.rows[:5])
    assert run.value == pytest.approx(FULL.to_numpy().mean())
    assert run.spread == pytest.approx(FULL.mean(axis=1).std())
    assert seeds.value == pytest.approx(FULL.mean(axis=0).std())
    assert seeds.text == f"± {FULL.mean(axis=0).std():.3f}"
    assert (run.best, clip.best, seeds.best) == (True, False, False)
    assert p.value == pytest.approx(stats.ttest_rel(CLIP.mean(axis=1), FULL.mean(axis=1)).pvalue)
    assert any("training with seeds 1, 2, 3, on the same splits" in note for note in table.notes)
    [ridge] = [row for row in table.rows if row.label.startswith("ridge")]
    assert ridge.cells[0].value == pytest.approx(0.41)


def test_csv_has_both_columns(tmp_path: Path) -> None:
    write_seeds(tmp_path)
    rows = list(csv.DictReader(io.StringIO(to_csv(metrics(tmp_path)))))
    assert [row["row"] for row in rows[:3]] == ["run", "run", "p against full, mean of 3 seeds"]
    assert float(rows[0]["PCC@10 std"]) == pytest.approx(FULL.mean(axis=1).std())
    assert float(rows[1]["PCC@10 std over seeds"]) == pytest.approx(CLIP.mean(axis=0).std())
    assert rows[2]["PCC@10 std over seeds"] == ""


def test_seeds_that_drew_other_splits_stay_apart(tmp_path: Path) -> None:
    write_seeds(tmp_path, split_seed=None)
    table = metrics(tmp_path)
    assert [row.label for row in table.rows if row.kind == "run"] == [
        f"{variant}, seed {seed}" for seed in FULL for variant in ("full", "clip")
    ]
    assert not any(row.kind == "seeds" for row in table.rows)


def test_seeds_of_several_splits_are_taken_together_by_their_splits(tmp_path: Path) -> None:
    write_seeds(tmp_path)
    write_seeds(tmp_path, split_seed=9)
    write_run(tmp_path, list(FULL[2]), change={"variant.name": "full", "loop.seed": 2})  # it drew its own splits
    rows = [row for row in metrics(tmp_path).rows if row.kind in ("run", "p") and "full" in row.label]
    assert [row.label for row in rows if row.kind == "run"] == [
        "full, mean of 3 seeds, seeds 1, 2, 3, split seed 1", "full, mean of 3 seeds, seeds 1, 2, 3, split seed 9",
        "full, seed 2, splits by the seed",
    ]  # fmt: skip
    assert rows[0].cells[0].value == pytest.approx(FULL.to_numpy().mean())


def test_the_seed_of_splits_is_no_difference_of_its_own(tmp_path: Path) -> None:
    write_seeds(tmp_path, split_seed=9)
    change = RIDGE | {"loop": RIDGE["loop"] | {"seed": 1}, "split_seed": 9}
    folder = write_run(tmp_path, list(FULL[1]), change=change)
    for i, file in enumerate(sorted(folder.glob("fold*/config.json"))):
        config = json.loads(file.read_text())
        config["split"]["name"] = f"slide-seed9-{i}"
        file.write_text(json.dumps(config))
    [p] = [row.label for row in metrics(tmp_path).rows if row.kind == "p" and "clip" not in row.label][-1:]
    assert "split" not in p, p


def test_a_run_of_one_seed_beside_them_says_its_seed(tmp_path: Path) -> None:
    write_seeds(tmp_path)
    write_run(tmp_path, list(FULL[1]), change={"variant.name": "meru"})
    labels = {row.label for row in metrics(tmp_path).rows if row.kind == "run"}
    assert labels == {"full, mean of 3 seeds, seeds 1, 2, 3", "clip, mean of 3 seeds, seeds 1, 2, 3", "meru, seed 42"}


def test_one_seed_may_be_the_reference_and_none_is_called_the_best(tmp_path: Path) -> None:
    write_seeds(tmp_path)
    results = read_results([tmp_path])
    [table] = results_tables(results, reference=results.runs[0].label)
    assert [row.label for row in table.rows if row.kind == "run"] == [run.label for run in results.runs]
    text = summary_text(results, list(results.runs), "pcc@50")
    mean = numbers(float(FULL.to_numpy().mean()))["pcc@50"]
    assert text.startswith(f"Highest PCC@50: full, mean of 3 seeds, {mean:.3f} ± ")
