"""Which published row a run may be compared with, and the rows of other methods."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import train.report.cli
from hist_cache.splits import published_splits
from tests.train.report.fake_runs import RIDGE, write_run
from train.fit.config import FitConfig
from train.models.configs import HistConfig
from train.report.paper_tables import cost_table, results_tables
from train.report.published import published_method_costs, published_methods, published_rows, published_status
from train.report.reading import read_results
from train.report.table import Table

LORA = {"layers": 11, "rank": 4, "alpha": 8, "dropout": 0.1}
TUNING = {"lora": LORA, "start": "tokens", "augment": False, "precision": "bf16"}
OPTIONS = {"model": asdict(HistConfig(1024, 200)), "loop": asdict(FitConfig())}


def published_run(root: Path, folds: int = 5, **change: Any) -> Path:
    """A run as the published ones were made, but for `change`."""
    more = {key.replace("__", "."): value for key, value in change.items()}
    change = copy.deepcopy({"dataset": "kidney", "n_genes": 200} | OPTIONS | more)
    folder = write_run(root, [0.5] * folds, change=change)
    for i, split in enumerate((published_splits("kidney", "slide") or [])[:folds]):
        file = folder / f"fold{i}/config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"split": asdict(split)}))
    return folder


def pooled(root: Path) -> Table:
    return results_tables(read_results([root]))[0]


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "full: compare with LoRA 0 and the other methods of the published rows"),
        ({"tuning": TUNING}, "full: compare with LoRA 11 and the other methods of the published rows"),
        ({"loop__seed": 7}, "full: compare with LoRA 0 and"),
        ({"model__alpha": 0.3}, "full: compare with the other methods of the published rows: alpha 0.3 instead of 0.2"),
        ({"recipe": {"name": "strong"}}, "full: compare with LoRA 0 and the other methods of the published rows"),
        (
            {"recipe": {"standardize": "slide", "ridge": "skip", "smooth": 0.5, "ensemble": 3}},
            "full: compare with the other methods of the published rows: standardize slide instead of none; "
            "ridge skip instead of none; smooth 0.5 instead of 0.0; ensemble 3 instead of 1",
        ),
        (
            {"recipe": {"ridge": "mean"}},
            "full+ridge: compare with the other methods of the published rows: ridge mean instead of none",
        ),
        ({"cache__encoder": "virchow2"}, "rows: encoder virchow2 instead of uni"),
        ({"cache__crop_rule": {"min_spot_um": 112.0}}, "rows: min spot um 112.0 instead of 0.0"),
        ({"tuning": TUNING | {"lora": LORA | {"rank": 8}}}, "rows: LoRA rank 8 instead of 4"),
        ({"protocol__tested": "last"}, "rows: tested last instead of best"),
        (
            {"protocol__panel_from": "train"},
            "full: compare with none of the published rows: panel from train",
        ),
        (
            {"transform": "ln_cp10k"},
            "full: compare with none of the published rows: transform ln_cp10k",
        ),
        ({"neighbors": 18}, "full: compare with the other methods of the published rows: none was published of its"),
        ({"genes": "hvg"}, "full: compare with none of the published rows: none was published of its setting"),
        ({"folds": 3}, "full: compare with none of the published rows: 3 of the 5 published splits"),
        ({"split_kind": "loso"}, "compare with none of the published rows: splits are not published (loso)"),
        (
            {"cache__lora": "1" * 64},
            "full, tuned cache, LEAK: compare with none of the published rows: test",
        ),
        (RIDGE, "ridge: compare with the other methods of the published rows"),
        ({"dataset": "mine"}, "full: no published row to compare with, nothing was published of mine"),
    ],
)
def test_what_a_run_may_be_compared_with(tmp_path: Path, change: dict[str, Any], verdict: str) -> None:
    published_run(tmp_path, **change)
    assert verdict in " | ".join(pooled(tmp_path).notes)


def test_rows_say_whether_they_compare(tmp_path: Path) -> None:
    published_run(tmp_path)
    assert [r.label for r in pooled(tmp_path).rows if r.kind == "published"] == [
        "published, LoRA 0", "published, LoRA 11, not comparable",
    ]  # fmt: skip
    published_run(tmp_path / "tuned", cache__lora="1" * 64)
    assert not [r for r in pooled(tmp_path / "tuned").rows if r.kind == "published"]


def test_other_methods_are_shown(tmp_path: Path) -> None:
    published_run(tmp_path)
    rows = {r.label: [c.text for c in r.cells] for r in pooled(tmp_path).rows if r.kind == "method"}
    assert list(rows) == ["TRIPLEX, published", "ST-Net, published", "BLEEP, published", "Stem, published"]
    table_1 = [row for row in published_rows() if row["table"] == 1 and row["method"] == "stem"]
    [stem] = [row["values"]["pcc@10"] for row in table_1 if row["dataset"] == "kidney"]
    assert rows["Stem, published"][0] == f"{stem[0]:.3f} ± {stem[1]:.3f}"
    published_run(tmp_path, split_kind="patient")
    labels = [r.label for r in pooled(tmp_path).rows if r.kind == "method"]
    assert len(labels) == 8
    assert "BLEEP, published, hmhvg 200, patient split" in labels


@pytest.mark.parametrize(
    ("data", "method", "metric", "value"),
    [
        (("colorectum",), "TRIPLEX", "pcc@10", (0.701, 0.128)),  # table 1
        (("colorectum",), "Stem", "pcc@10", None),
        (("skin", "hvg", 300), "BLEEP", "mse", None),  # table 7
        (("kidney", "hmhvg", 200, "patient"), "ST-Net", "mae", None),  # table 8
        (("kidney", "hmhvg", 200, "default", "kidney_papilla"), "TRIPLEX", "pcc@200", None),  # table 6
        (("lung",), "TRIPLEX", "pcc@200", None),  # the summary of HyperST
    ],
)
def test_numbers_of_other_methods(data: tuple, method: str, metric: str, value: tuple | None) -> None:
    found = published_methods(*data)[method][metric]
    assert value is None or found == value
    assert 0 < found[0] < 4


def test_no_published_row_of_another_method_is_left_out() -> None:
    """Each of the 51 has its values in one of the tables; the summary's repeat those of table 1 and 2."""
    rows = [row for row in published_rows() if row["method"] != "hist"]
    assert len(rows) == 51
    titles = {"triplex": "TRIPLEX", "stnet": "ST-Net", "bleep": "BLEEP", "stem": "Stem"}
    for row in rows:
        title, values = titles[row["method"]], {k: v[0] for k, v in row["values"].items()}
        if row.get("dataset") is None:
            shown = published_status()[title]
        elif "memory_gb" in values:
            shown = published_method_costs(row["dataset"], row["n_genes"])[title]
            values = dict(zip(shown, values.values(), strict=True))
        else:
            data = (row["dataset"], row["genes"], row["n_genes"], row["split"], row.get("test_dataset"))
            shown = published_methods(*data)[title]
        assert {k: shown[k][0] for k in values} == values, row


def test_costs_and_the_table_that_is_published_only(
    tmp_path: Path, run_command: Callable[..., tuple[int, str]]
) -> None:
    write_run(tmp_path, [0.5], change={"dataset": "colorectum", "n_genes": 200}, predictions=True)
    methods = [row.label for row in cost_table(read_results([tmp_path])).rows if row.kind == "method"]
    assert methods == ["TRIPLEX, published", "ST-Net, published", "BLEEP, published", "Stem, published"]
    code, text = run_command(train.report.cli.main, tmp_path, "--table", 2, "--format", "csv")
    assert code == 0, text
    assert '"BLEEP, published",method,' in text
    assert '"HiST, published",method,' in text
    assert "Microsatellite" in (tmp_path / "colorectum/report/report.html").read_text()
