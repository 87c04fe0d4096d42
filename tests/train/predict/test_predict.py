"""hist-predict: the same numbers as hist-train has for its test slide, from the image alone; nothing computed twice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest

import train.cli
from extract import spot_blocks
from extract.pipeline import Pipeline
from hist_cache.cache_file import open_complete
from hist_cache.runs import Fold, read_object
from tests.commands import make_quick
from tests.conftest import write_slide
from tests.small import IDS, TRAIN, make_cache, train_once, unfinished
from train.predict.cli import main

Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slides, their cache and runs of a few methods, each tested on every slide."""
    where = tmp_path_factory.mktemp("predict")
    cache = make_cache(where)
    train_once(cache, where / "runs")
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        short = ("--split", "loso", "--epochs", 2, "--batch-size", 16, "--n-genes", 20, "--jobs", 1, "--fold", 1)
        strong = ("--recipe", "strong", "--ensemble", 2, "--smooth", 0.3, "--width", 8, "--depth", 1)
        triplex = ("--model", "triplex", "--width", 8, "--heads", 2)
        for more in (strong, ("--model", "ridge,bleep,stevs"), triplex):
            argv = ("--cache", cache, "--runs", where / "runs", *short, *more)
            assert train.cli.main([str(a) for a in argv]) == 0
    return where


def run_of(work: Path, method: str, recipe: str = "") -> Path:
    for run in (work / "runs" / "tiny").glob(f"{method}-*"):
        config = read_object(next(run.glob("fold*/config.json")))
        if config.get("recipe", {}).get("name", "") == recipe:
            return run
    raise AssertionError(f"no run of {method}")


def slide_of(fold: Path) -> str:
    return str(Fold(fold).config["split"]["test"][0])


def argv_of(work: Path, run: Path, slide: str, out: Path, cache: Path | None = None) -> tuple[Any, ...]:
    hest = work / "hest"
    return (
        *("--run", run, "--wsi", hest / "wsis" / f"{slide}.tif", "--truth", hest / "st" / f"{slide}.h5ad"),
        *("--out", out, "--cache", cache or work / "cache", "--any-focus"),
    )


METHODS = [("full", ""), ("full", "strong"), ("ridge", ""), ("bleep", ""), ("stevs", ""), ("triplex", "")]


@pytest.mark.parametrize(("method", "recipe"), METHODS)
def test_a_test_slide_gets_the_numbers_of_hist_train(
    work: Path, run_command: Run, tmp_path: Path, method: str, recipe: str
) -> None:
    fold = run_of(work, method, recipe) / "fold1"
    slide = slide_of(fold)
    code, text = run_command(main, *argv_of(work, fold, slide, tmp_path / "out"))
    assert code == 0, text
    found, expected = anndata.read_h5ad(tmp_path / "out" / f"{slide}.h5ad"), Fold(fold).predictions
    assert list(found.obs_names) == list(expected.obs["barcode"])
    assert list(found.var_names) == list(expected.var_names)
    np.testing.assert_allclose(found.X, expected.X, rtol=2e-4, atol=2e-4)
    np.testing.assert_array_equal(found.layers["truth"], expected.layers["truth"])
    np.testing.assert_array_equal(found.obsm["spatial"], expected.obsm["spatial"])
    assert found.uns["expression"] == expected.uns["expression"]
    metrics, trained = read_object(tmp_path / "out" / f"{slide}.metrics.json"), Fold(fold).metrics
    for name, value in trained["pooled"].items():
        assert metrics["pooled"][name] == pytest.approx(value, rel=1e-3, abs=1e-3), name
    assert "LEAK" not in text
