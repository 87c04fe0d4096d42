"""hist-predict with adapters: of a fold whose encoder was fine-tuned, and of a run on an adapter's embeddings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest

import train.cli
from hist_cache.runs import Fold
from tests.commands import make_quick
from tests.small import make_cache
from tests.train.predict.test_predict import argv_of, run_of, slide_of
from train.export.cli import main as export
from train.predict.cli import main

Run = Callable[..., tuple[int, str]]
SHORT = ("--split", "loso", "--width", 8, "--depth", 1, "--epochs", 1, "--batch-size", 16, "--n-genes", 20, "--fold", 1)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fold whose encoder was fine-tuned, and ridge on the embeddings of its adapter."""
    where = tmp_path_factory.mktemp("adapters")
    argv = ("--cache", make_cache(where), "--runs", where / "runs")
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        tuned = (
            *SHORT,
            "--jobs",
            1,
            "--lr",
            1e-2,
            "--finetune-lora",
            "--lora-layers",
            2,
            "--data-root",
            where / "hest",
        )
        assert train.cli.main([str(a) for a in (*argv, *tuned)]) == 0
        short = ("--split", "loso", "--n-genes", 20, "--fold", 1, "--jobs", 1)
        on_adapter = (*short, "--lora", run_of(where, "full"), "--model", "ridge", "--data-root", where / "hest")
        assert train.cli.main([str(a) for a in (*argv, *on_adapter)]) == 0
    return where


@pytest.mark.parametrize("method", ["full", "ridge"])
def test_the_adapter_of_a_fold_is_in_its_predictions(work: Path, run_command: Run, tmp_path: Path, method: str) -> None:
    fold, tuned = run_of(work, method) / "fold1", run_of(work, "full")
    argv = argv_of(work, fold, slide_of(fold), tmp_path / "out")
    if method == "ridge":
        code, text = run_command(main, *argv)
        assert code == 2
        assert "--lora" in text
        argv = (*argv, "--lora", tuned)
    code, text = run_command(main, *argv)
    assert code == 0, text
    assert "with the adapter" in text
    found, expected = anndata.read_h5ad(tmp_path / "out" / f"{slide_of(fold)}.h5ad"), Fold(fold).predictions
    np.testing.assert_allclose(found.X, expected.X, rtol=1e-2, atol=1e-2)  # its tokens were kept in float16


def test_an_export_has_the_adapter_and_no_names(work: Path, run_command: Run, tmp_path: Path) -> None:
    run, out = run_of(work, "ridge"), tmp_path / "out"
    argv = (run, "--cache", work / "cache", "--lora", run_of(work, "full"), "--out", out)
    code, text = run_command(export, *argv)
    assert code == 0, text
    content = b"".join(file.read_bytes() for file in out.rglob("*") if file.is_file())
    assert b"TINY" not in content
    assert b"Patient" not in content
    slide = slide_of(run / "fold1")
    code, text = run_command(main, *argv_of(work, out, slide, tmp_path / "there", tmp_path / "cache"))
    assert code == 0, text
    found, expected = anndata.read_h5ad(tmp_path / "there" / f"{slide}.h5ad"), Fold(run / "fold1").predictions
    np.testing.assert_allclose(found.X, expected.X, rtol=1e-2, atol=1e-2)
