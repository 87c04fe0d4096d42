"""Controls are computed once for all runs on the same data, in one process or in several."""

from pathlib import Path

import numpy as np
import pytest
import torch

import train.experiments.controls
from hist_cache.splits import Split
from train.data import SpotData
from train.experiments.controls import Controls
from train.workspace import DataKey

SPLIT = Split(train=("A",), val=("B",), test=("C",), name="one")


def make_data(genes: int = 12) -> tuple[SpotData, DataKey]:
    rng = np.random.default_rng(0)
    spot, niche = torch.from_numpy(rng.normal(size=(2, 90, 6)).astype(np.float16))
    expression = torch.cat([spot.float(), niche.float()], dim=1)[:, :genes]
    slide, complete = torch.arange(3).repeat_interleave(30), torch.ones(90, dtype=torch.bool)
    panel = tuple(f"G{i}" for i in range(genes))
    data = SpotData(
        spot, niche, expression, expression, slide, torch.arange(90), complete, ["A", "B", "C"], list(panel)
    )
    return data, DataKey(6, panel, "log2", drop_edges=False)


def test_computed_once_and_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, key = make_data()
    first = Controls(tmp_path)
    metrics = first.metrics(data, key, SPLIT)
    assert metrics["controls"]["ridge"]["mse"] < 0.01 < metrics["controls"]["train_mean"]["mse"]
    truth = data.expression[data.rows(("C",))].double().numpy()
    centered = metrics["controls_centered"]
    assert centered["train_mean"]["mse"] == pytest.approx(truth.var(0).mean()), "what is left of it is nothing"
    assert centered["ridge"]["mse"] <= metrics["controls"]["ridge"]["mse"]
    assert metrics == Controls().metrics(data, key, SPLIT)

    smaller, other_key = make_data(genes=10)
    alone = Controls().metrics(smaller, other_key, SPLIT)
    with monkeypatch.context() as patch:
        patch.setattr(train.experiments.controls, "principal_components", None)
        assert first.metrics(smaller, other_key, SPLIT) == alone, "another panel, the same components"
        (tmp_path / "copy").mkdir()
        for file in tmp_path.glob("*.npz"):
            file.rename(tmp_path / "copy" / file.name)
        assert Controls(tmp_path / "copy").metrics(smaller, other_key, SPLIT) == alone, "components of another process"
        patch.setattr(train.experiments.controls, "RidgeModel", None)
        assert Controls(tmp_path).metrics(data, key, SPLIT) == metrics, "metrics of another process"


def test_another_split_has_controls_of_its_own(tmp_path: Path) -> None:
    data, key = make_data()
    shared = Controls(tmp_path)
    for split in (SPLIT, Split(("B",), ("A",), ("C",), "two"), Split(("A",), ("C",), ("B",), "three")):
        assert shared.metrics(data, key, split) == Controls().metrics(data, key, split)
