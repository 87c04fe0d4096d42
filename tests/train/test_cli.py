"""hist-train as a whole, on tiny slides."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scanpy as sc
import torch
from safetensors.torch import load_file

import extract.cli
from hist_cache import load_run, open_cache
from hist_cache.datasets import get_dataset
from hist_cache.errors import InputError
from tests.commands import Command
from tests.conftest import TALKATIVE, TINY_ENCODER, epochs_run, wait_for_epochs, write_slide
from train.assembly import assemble, read_slides
from train.cli import main
from train.experiments.outputs import load_model
from train.fit.loop import predict
from train.metrics import summarize

Run = Callable[..., tuple[int, str]]
SMALL = ("--width", 16, "--depth", 1, "--epochs", 4, "--batch-size", 16, "--n-genes", 20, "--lr", 1e-3)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four tiny slides, extracted."""
    where = tmp_path_factory.mktemp("cache")
    for i in range(1, 5):
        write_slide(where / "hest", f"TINY{i}", seed=i, metadata={"patient": f"Patient {(i + 1) // 2}"})
    code = extract.cli.main(
        ["--ids", "TINY1-4", "--data-root", str(where / "hest"), "--cache", str(where / "cache"),
         "--encoder", TINY_ENCODER, "--random-weights", "--neighbors", "6,18"]
    )  # fmt: skip
    assert code == 0
    return where / "cache"


@pytest.mark.slow
def test_leave_one_slide_out_writes_whole_runs(cache: Path, run_command: Run, tmp_path: Path) -> None:
    code, text = run_command(main, "--cache", cache, "--split", "loso", *SMALL)
    assert code == 0, text
    assert "dataset custom (the one extracted last)" in text
    assert "random weights" in text
    assert "Patient 1 in train and test" in text
    assert "ridge" in text
    [folder] = (tmp_path / "runs/custom").iterdir()
    assert folder.name.startswith("full-")
    run = load_run(folder)
    assert [f.folder.name for f in run.folds] == ["fold0", "fold1", "fold2", "fold3"]
    fold = run.folds[0]
    assert sorted(p.name for p in fold.folder.iterdir()) == [
        "config.json", "cost.json", "geometry.png", "history.csv", "maps.png", "metrics.json",
        "model.safetensors", "panel.txt", "predictions.h5ad", "training.png",
    ]  # fmt: skip
    assert len({p.stat().st_mode for p in fold.folder.iterdir()}) == 1, "all files may be read by the same people"
    table = sc.read_h5ad(fold.folder / "predictions.h5ad")
    assert table.shape == (30, 20)
    assert list(table.var_names) == fold.panel
    assert set(table.obs["slide"]) == {fold.config["split"]["test"][0]}
    assert table.obsm["spatial"].shape == (30, 2)
    sc.pp.pca(table, n_comps=3)  # scanpy works on it

    metrics = fold.metrics
    assert set(metrics["controls"]) == {"permuted", "train_mean", "ridge"}
    again = summarize(np.asarray(table.X), table.layers["truth"])
    for key, value in metrics["pooled"].items():
        assert value == pytest.approx(again[key], abs=1e-6)
    pcc = [f.metrics["pooled"]["pcc@10"] for f in run.folds]
    assert run.summary["mean"]["hist"]["pcc@10"] == pytest.approx(np.mean(pcc))
    assert run.summary["std"]["hist"]["pcc@10"] == pytest.approx(np.std(pcc, ddof=1))
    assert {
        "epoch",
        "mse",
        "val_mse",
        "hca",
        "hea",
        "c",
        "tau",
        "aperture",
        "violated",
        "radius_gene_niche",
    } <= set(fold.history)
    assert fold.config["protocol"]["name"] == "paper"
    assert fold.config["variant"]["name"] == "full"
    assert fold.config["cache"]["encoder"] == TINY_ENCODER
    assert "torch" in fold.config["provenance"]["versions"]

    before = (fold.folder / "metrics.json").stat().st_mtime_ns
    code, text = run_command(main, "--cache", cache, "--split", "loso", *SMALL)
    assert code == 0
    assert "4 folds, 4 done before, not run again" in text
    assert (fold.folder / "metrics.json").stat().st_mtime_ns == before


def test_truth_is_what_the_h5ad_says(cache: Path, run_command: Run, tmp_path: Path) -> None:
    run_command(main, "--cache", cache, "--split", "loso", "--fold", 1, *SMALL)
    [fold] = load_run(next((tmp_path / "runs/custom").iterdir())).folds
    table = fold.predictions
    raw = sc.read_h5ad(cache.parent / "hest/st" / f"{fold.config['split']['test'][0]}.h5ad")
    raw = raw[list(table.obs["barcode"]), list(table.var_names)]
    np.testing.assert_allclose(table.layers["truth"], np.log2(1 + raw.X.toarray()), rtol=1e-6)


def test_the_saved_model_gives_the_saved_predictions(cache: Path, run_command: Run, tmp_path: Path) -> None:
    run_command(main, "--cache", cache, "--split", "loso", "--fold", 0, *SMALL)
    [fold] = load_run(next((tmp_path / "runs/custom").iterdir())).folds
    slides = read_slides(open_cache(cache), [6])
    data = assemble(slides, 6, fold.panel, torch.device("cpu"))
    again = predict(load_model(fold.folder), data, data.rows(tuple(fold.config["split"]["test"])))
    np.testing.assert_allclose(again.numpy(), fold.predictions.X, rtol=1e-5, atol=1e-5)


def test_the_same_seed_twice_gives_the_same_metrics_and_another_others(
    cache: Path, run_command: Run, tmp_path: Path
) -> None:
    texts = []
    for where, seed in (("a", 42), ("b", 42), ("c", 7)):
        run_command(
            main,
            "--cache",
            cache,
            "--split",
            "loso",
            "--fold",
            0,
            "--runs",
            tmp_path / where,
            "--seed",
            seed,
            *SMALL,
        )
        texts.append(next((tmp_path / where).glob("*/*/fold0/metrics.json")).read_text())
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.long
def test_other_settings_are_other_runs(cache: Path, run_command: Run, tmp_path: Path) -> None:
    for more in ([], ["--neighbors", 18], ["--ablation", "no_hea"], ["--alpha", 0.3], ["--alpha", 0]):
        code, text = run_command(main, "--cache", cache, "--split", "loso", "--fold", 0, *SMALL, *more)
        assert code == 0, text
    names = sorted(p.name for p in (tmp_path / "runs/custom").iterdir())
    assert len(names) == 5
    assert sum(n.startswith("no_hea-") for n in names) == 1
    alphas = {json.loads(p.read_text())["model"]["alpha"] for p in (tmp_path / "runs").glob("*/*/fold0/config.json")}
    assert alphas == {0.2, 0.3, 0.0}


def test_config_files(cache: Path, run_command: Run, tmp_path: Path) -> None:
    code, text = run_command(main, "--cache", cache, "--alpha", 0.5, "--print_config")
    assert code == 0
    assert "alpha: 0.5" in text
    (tmp_path / "c.yaml").write_text("split: loso\nfold: 0\nwidth: 16\nepochs: 2\nn_genes: 20\nbatch_size: 16\n")
    assert run_command(main, "--cache", cache, "--config", "c.yaml")[0] == 0
    (tmp_path / "c.yaml").write_text("splitt: loso\n")
    assert run_command(main, "--cache", cache, "--config", "c.yaml")[0] == 2


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--ablation", "no_hae"], "no_hea"),
        (["--dataset", "kidney"], "run hist-extract --dataset kidney"),
        (["--fold", "9"], "--fold 9: there are splits 0 to 3"),
        (["--neighbors", "36"], "hist-extract --neighbors 36"),
        (["--n-genes", "5000"], "ask for fewer"),
        (["--curvature", "50"], "--curvature 50"),
        (["--resume"], "no stopped run"),
        (["--encoder", "uni"], "no cache of custom with uni"),
        (["--split", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_wrong_input_exits_with_2_and_one_line(cache: Path, run_command: Run, more: list[str], says: str) -> None:
    code, text = run_command(main, "--cache", cache, "--split", "loso", *SMALL, *more)
    assert code == 2, text
    assert says in text
    assert "Traceback" not in text


def test_nothing_extracted_yet(run_command: Run) -> None:
    code, text = run_command(main)
    assert code == 2
    assert "run hist-extract" in text
    with pytest.raises(InputError, match="no finished run"):
        load_run("nowhere")


@pytest.mark.slow
def test_ctrl_c_keeps_the_best_weights_and_resume_goes_on(
    cache: Path, start_command: Callable[..., Command], tmp_path: Path
) -> None:
    argv = ("--cache", cache, "--runs", tmp_path / "runs", "--split", "loso", "--fold", 0, *SMALL)
    argv += ("--epochs", 4000, "--patience", 4000, "--lr", 1e-5)
    process = start_command(TALKATIVE, *argv)
    wait_for_epochs(process)
    process.send_signal(signal.SIGINT)
    text = process.communicate()[0]
    assert process.returncode == 130, text
    assert "kept the best weights so far" in text
    [folder] = tmp_path.glob("runs/*/*/fold0")
    assert load_file(folder / "model.safetensors")
    assert not (folder / "metrics.json").exists()
    done = epochs_run(folder)
    again = start_command(TALKATIVE, *argv, "--resume")
    wait_for_epochs(again)
    again.send_signal(signal.SIGINT)
    again.communicate()
    assert epochs_run(folder) > done


@pytest.mark.long
def test_kidney_literally_on_a_generated_root(run_command: Run, tmp_path: Path) -> None:
    """The 23 published IDs, tiny slides, the published splits."""
    for i, slide in enumerate(get_dataset("kidney").ids):
        write_slide(tmp_path / "data", slide, rows=4, columns=6, seed=i)
    code, text = run_command(extract.cli.main, "--dataset", "kidney", "--encoder", TINY_ENCODER, "--random-weights")
    assert code == 0, text
    assert "23 slides in" in text
    code, text = run_command(main, "--ablation", "no_hea", "--fold", 0, *SMALL)
    assert code == 0, text
    assert "NCBI711" in text.split(", test ")[1].splitlines()[0]
    [fold] = load_run(next((tmp_path / "runs/kidney").iterdir())).folds
    assert sorted(set(fold.predictions.obs["slide"])) == ["NCBI698", "NCBI711"]
