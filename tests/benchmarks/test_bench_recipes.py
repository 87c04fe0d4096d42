"""The comparison of recipes: what it trains, what its scores depend on, and the file that keeps them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import Tensor

import extract.cli
from hist_cache.errors import InputError
from hist_cache.splits import Split
from tests.commands import REPOSITORY
from tests.conftest import TINY_ENCODER, write_slide
from train.data import SpotData
from train.experiments.announcements import open_workspace
from train.fit.checkpoints import Progress
from train.fit.config import FitConfig
from train.models.base import Model
from train.models.hist import HistModel
from train.options import TrainOptions

IDS = ("TINY1", "TINY2", "TINY3", "TINY4")
SPLIT = Split(("TINY1",), ("TINY2",), ("TINY3",), "without TINY4")
SMALL = {"width": 8, "depth": 1, "epochs": 2, "batch_size": 16, "n_genes": 20, "dataset": "tiny"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bench_recipes")
    for i, slide in enumerate(IDS):
        write_slide(root / "hest", slide, seed=i)
    argv = ("--dataset", "tiny", "--ids", ",".join(IDS), "--data-root", root / "hest", "--cache", root / "cache")
    assert extract.cli.main([*map(str, argv), "--encoder", TINY_ENCODER, "--random-weights"]) == 0
    return root / "cache"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module of the benchmark."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    yield importlib.import_module("bench_recipes")
    for name in ("bench_recipes", "results"):
        sys.modules.pop(name, None)


def make_scorer(bench: ModuleType, cache: Path, **more: Any) -> Any:
    options = TrainOptions().with_values(SMALL | {"cache": str(cache)} | more)
    return bench.Scorer(open_workspace(options, [6]), options)


@pytest.mark.parametrize("panel_from", ["all", "train"])
def test_the_panel_is_chosen_where_it_is_asked_for(bench: ModuleType, cache: Path, panel_from: str) -> None:
    scorer = make_scorer(bench, cache, panel_from=panel_from)
    setting, key = scorer.setting("paper", 42, SPLIT)
    chosen_on = IDS if panel_from == "all" else SPLIT.train
    assert setting.protocol.panel_from == panel_from
    assert list(key.panel) == scorer.workspace.panel("hmhvg", 20, chosen_on)


class FakeScorer:
    """Scores nothing, and says what it was asked for."""

    def __init__(self, scorer: Any) -> None:
        self.key, self.asked = scorer.key, []

    def score(self, recipe: str, seed: int, split: Split) -> dict[str, float]:
        self.asked.append((recipe, seed, split.test))
        return {"model": 0.5, "ridge": 0.4, "mse": 1.0}


def test_scores_are_kept_for_the_same_setting_and_slides_alone(bench: ModuleType, cache: Path, tmp_path: Path) -> None:
    keep, file = tmp_path / "keep.jsonl", tmp_path / "rows.toml"

    def asked(splits: list[Split], smooth: float = 0.5, **more: Any) -> list[Any]:
        file.write_text(f"[mine.options]\nsmooth = {smooth}\n")
        scorer = FakeScorer(make_scorer(bench, cache, recipe_file=str(file), **more))
        scores = bench.all_scores(scorer, ["mine"], [42], splits, keep)
        assert [(s["scored"],) for s in scores] == [split.test for split in splits]  # and none of other commands
        return scorer.asked

    first, second = list(bench.inner_splits(list(IDS), 1))[:2]
    assert len(asked([first, second])) == 2
    assert asked([first]) == []
    assert len(asked([first], smooth=0.3)) == 1
    assert len(asked([first], width=16)) == 1
    assert len(asked([replace(first, train=first.val, val=first.train)])) == 1
    assert asked([first, second]) == []


def test_a_line_that_a_kill_cut_off_is_scored_again(bench: ModuleType, cache: Path, tmp_path: Path) -> None:
    keep = tmp_path / "keep.jsonl"
    splits = list(bench.inner_splits(list(IDS), 1))[:2]
    scorer = FakeScorer(make_scorer(bench, cache))
    bench.all_scores(scorer, ["paper"], [42], splits, keep)
    whole = keep.read_text()
    keep.write_text(whole[:-20])
    for expected in (3, 3):
        bench.all_scores(scorer, ["paper"], [42], splits, keep)
        assert len(scorer.asked) == expected
    assert keep.read_text() == whole
    keep.write_text("no scores\n")
    with pytest.raises(InputError, match="does not hold scores"):
        bench.read_scores(keep)


def test_three_slides_are_too_few(bench: ModuleType) -> None:
    with pytest.raises(InputError, match="3 slides in the cache: 4 at least are needed"):
        list(bench.inner_splits(list(IDS[:3]), 1))
    splits = list(bench.inner_splits(list(IDS), 5, 2))
    assert len(splits) == 6
    assert {split.name for split in splits} == {"without TINY1", "without TINY2"}


def test_members_are_trained_as_those_of_hist_train(
    bench: ModuleType, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each member has a seed of its own for its weights and its batches, and is prepared first."""
    prepared, fitted = [], []

    def fit(model: Model, data: SpotData, train: Tensor, val: Tensor, config: FitConfig, checkpoint: None) -> Progress:
        fitted.append(config.seed)
        return Progress()

    monkeypatch.setattr(bench, "fit", fit)
    monkeypatch.setattr(HistModel, "prepare", lambda model, data, train, val, seed: prepared.append(seed))
    score = make_scorer(bench, cache, ensemble=3).score("paper", 7, SPLIT)
    assert prepared == fitted == [7, 8, 9]
    assert len(score["epochs"]) == 3
