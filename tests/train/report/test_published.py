"""The published numbers, against values typed from the paper's tables."""

from __future__ import annotations

import json

import pytest

from tests.conftest import SHARED
from train.report.published import published_cost, published_numbers, published_rows


@pytest.mark.parametrize(
    ("setting", "metric", "mean", "std"),
    [
        (("colorectum", "full"), "pcc@200", 0.477, 0.184),  # table 1
        (("colorectum", "no_gi_hea"), "mse", 1.523, 0.471),  # table 3
        (("colorectum", "clip"), "mae", 1.011, 0.124),
        (("skin", "meru"), "pcc@50", 0.784, 0.115),  # table 13
        (("kidney", "no_hea"), "pcc@200", 0.377, 0.066),  # not the 0.368 of the summary of HyperST
        (("kidney", "niche_only"), "pcc@10", 0.588, 0.097),  # table 15
        (("skin", "spot_only"), "mae", 0.673, 0.187),
        (("kidney", "full", "hmhvg", 200, "patient"), "pcc@10", 0.587, 0.065),  # table 8
        (("colorectum", "full", "hmhvg", 200, "slide", 36), "mse", 1.616, 0.613),  # table 10
        (("colorectum", "full", "hmhvg", 3000), "pcc@2000", 0.353, 0.156),  # table 9
        (("kidney", "full", "hmhvg", 200, "default", 6, "kidney_papilla"), "pcc@10", 0.51, 0.016),  # table 6
    ],
)
def test_typed_from_the_paper(setting: tuple, metric: str, mean: float, std: float) -> None:
    assert published_numbers(*setting)[metric] == (mean, std)


def test_a_frozen_encoder_is_told_apart() -> None:
    frozen = {d: published_numbers(d, "full", lora_layers=0)["pcc@200"][0] for d in ("colorectum", "skin", "kidney")}
    assert frozen == {"colorectum": 0.458, "skin": 0.751, "kidney": 0.366}
    assert published_numbers("kidney", "no_hea", lora_layers=0) == {}


def test_lung_has_means_alone() -> None:
    assert published_numbers("lung", "full")["pcc@200"] == (0.459, None)


@pytest.mark.parametrize(
    "setting",
    [
        ("her2st", "full"),
        ("demo", "full"),
        ("kidney", "hycoclip"),
        ("kidney", "full", "hmhvg", 300),
        ("kidney", "full", "hmhvg", 200, "loso"),
        ("kidney", "full", "hmhvg", 200, "default", 18),
        ("kidney", "full", "hmhvg", 200, "default", 6, "lung"),
    ],
)
def test_nothing_published(setting: tuple) -> None:
    assert published_numbers(*setting) == {}


def test_the_table_asked_for_is_right_where_tables_disagree() -> None:
    assert published_numbers("kidney", "no_hea", table=13)["pcc@200"] == (0.377, 0.066)
    assert published_cost("colorectum") == {
        "peak_memory_gb": (18.39, None), "train_s_per_epoch": (74.0, None), "inference_s": (3.0, None),
    }  # fmt: skip
    assert published_cost("colorectum", 3000)["inference_s"] == (2.0, None)
    assert published_cost("kidney") == {}


@pytest.mark.skipif(not (SHARED / "published_results.json").exists(), reason="no ../shared beside the repository")
def test_every_published_number_is_there() -> None:
    source = json.loads((SHARED / "published_results.json").read_text())["rows"]
    expected = sorted((str(r["table"]), r["method"], r["metric"], r["mean"], r.get("std", -1.0)) for r in source)
    values = sorted(
        (str(row["table"]), row["method"], metric, mean, *(std or [-1.0]))
        for row in published_rows()
        for metric, (mean, *std) in row["values"].items()
    )
    assert values == expected
