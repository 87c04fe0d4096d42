"""What is said of the best setting beside the default: every metric, and what is chance."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import sweeps.final_test
from sweeps.final_test import FinalTest, verdict
from train.report.significance import Paired, paired

VALUES = {  # of each metric: best and default on four splits
    "pcc@10": ([0.35, 0.46, 0.25, 0.56], [0.3, 0.4, 0.2, 0.5]),
    "mse": ([2.5, 2.61, 2.4, 2.7], [2.0, 2.1, 1.9, 2.2]),
    "mae": ([1.1, 1.0, 1.0, 1.1], [1.0, 1.1, 0.9, 1.2]),
}


def final_test(splits: int, monkeypatch: pytest.MonkeyPatch) -> FinalTest:
    """Two runs with these values, and nothing else of a run."""

    def compare(results: Any, run: Any, reference: Any, metric: str) -> Paired:
        return paired(np.array(run.values[metric][:splits]), np.array(reference.values[metric][:splits]))

    monkeypatch.setattr(sweeps.final_test, "compare", compare)
    folds = [SimpleNamespace(metrics={"pooled": dict.fromkeys(VALUES, 0.0)})]
    best, default = (SimpleNamespace(values={m: pair[i] for m, pair in VALUES.items()}, folds=folds) for i in (0, 1))
    return FinalTest(SimpleNamespace(runs=(best, default)), Path("best"), ())  # type: ignore[arg-type]


def test_every_metric_is_named_before_what_follows_from_them(monkeypatch: pytest.MonkeyPatch) -> None:
    text = verdict(final_test(4, monkeypatch))
    head, _, conclusion = text.partition("; it is ")
    assert head.startswith("On test the best setting against the default, over 4 splits: PCC@10 +0.0550 (p < 0.001), ")
    assert "MSE +0.5025 (p < 0.001), MAE +0.0000 (p = 1.000)" in head
    assert conclusion == "better by PCC@10 and WORSE by MSE; the others may be chance."


def test_one_split_says_nothing_of_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    assert verdict(final_test(1, monkeypatch)).endswith("MAE +0.1000; one split says nothing of chance.")


def test_the_same_setting() -> None:
    results = SimpleNamespace(runs=(1,))
    assert "nothing better" in verdict(FinalTest(results, Path("best"), ()))  # type: ignore[arg-type]
