"""Models by name; a model that is registered from outside does all that HiST does."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import extract.cli
import sweeps.cli
import train.report.cli
from hist_cache import load_run
from hist_cache.errors import InputError
from tests.commands import Command
from tests.conftest import TALKATIVE, TINY_ENCODER, epochs_run, wait_for_epochs, write_slide
from tests.train.models.toy import ToyConfig, ToyModel, register_toy
from train.cli import main
from train.experiments.outputs import load_model
from train.models import registry
from train.models.configs import RidgeConfig
from train.models.registry import get_model, model_entries, named_models

Run = Callable[..., tuple[int, str]]
SMALL = ("--width", 6, "--epochs", 3, "--batch-size", 16, "--n-genes", 20, "--lr", 1e-2, "--split", "loso")


@pytest.fixture
def toy() -> Iterator[None]:
    before = dict(registry._ENTRIES)
    register_toy()
    yield
    registry._ENTRIES.clear()
    registry._ENTRIES.update(before)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four tiny slides, extracted."""
    where = tmp_path_factory.mktemp("models")
    for i in range(1, 5):
        write_slide(where / "hest", f"TINY{i}", seed=i)
    code = extract.cli.main(
        ["--ids", "TINY1-4", "--dataset", "tiny", "--data-root", str(where / "hest"), "--cache", str(where / "cache"),
         "--encoder", TINY_ENCODER, "--random-weights"]
    )  # fmt: skip
    assert code == 0
    return where / "cache"


def test_names() -> None:
    assert [entry.name for entry in named_models("ridge, hist")] == ["ridge", "hist"]
    assert named_models("all") == list(model_entries())
    with pytest.raises(InputError, match=r"--model rdige: no such model \(did you mean ridge\?\)"):
        get_model("rdige")


def test_an_entry_and_its_class_must_agree() -> None:
    wrong = registry.ModelEntry("wrong", "", "train.models.baselines:RidgeModel", RidgeConfig)
    with pytest.raises(ValueError, match="learns is True in its entry and False in its class"):
        wrong.load()


def test_a_trained_model_may_keep_what_it_has_prepared() -> None:
    class Banked(ToyModel):
        """Keeps a bank beside its weights."""

    torch.manual_seed(0)
    model, again = Banked(ToyConfig(4, 2)), Banked(ToyConfig(4, 2))
    model.keep(bank=torch.arange(6.0))
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.state_dict()["bank"], torch.arange(6.0))
    assert torch.equal(again.layers[0].weight, model.layers[0].weight)
    with pytest.raises(RuntimeError, match="nothing"):
        again.load_state_dict(model.state_dict() | {"layers.nothing": torch.zeros(1)})


@pytest.mark.parametrize("entry", list(model_entries()), ids=lambda entry: entry.name)
def test_every_entry_is_what_its_class_says(entry: registry.ModelEntry) -> None:
    assert entry.load().learns == entry.learns
    assert entry.config(8, 4).n_genes == 4  # every option has a default


@pytest.mark.long
def test_a_registered_model_trains_reports_and_sweeps(toy: None, cache: Path, run_command: Run, tmp_path: Path) -> None:
    argv = ("--cache", cache, "--model", "hist,toy,ridge", "--folds", 1, *SMALL, "--depth", 1, "--shrink", 0.25)
    code, text = run_command(main, *argv, "--jobs", 2)  # known in other processes too
    assert code == 0, text
    assert "this is a toy" in text
    folders = {p.name.split("-")[0]: p for p in (tmp_path / "runs/tiny").iterdir() if p.name != "report"}
    assert set(folders) == {"full", "toy", "ridge"}
    fold = load_run(folders["toy"]).folds[0]
    assert fold.config["model"] == {"embedding_width": 64, "n_genes": 20, "shrink": 0.25, "width": 6}
    assert list(fold.history.columns) == ["epoch", "loss", "mse", "gradient_norm", "skipped", "val_mse", "seconds"]
    assert "geometry.png" not in {p.name for p in fold.folder.iterdir()}
    assert load_run(folders["toy"]).summary["mean"]["toy"]["mse"] > 0
    model = load_model(fold.folder)
    assert isinstance(model, ToyModel)

    code, text = run_command(main, *argv)
    assert "3 runs, 3 done before, not run again" in text
    code, text = run_command(main, *argv, "--shrink", 0.5, "--dry-run")
    assert text.count("done before") == 1
    assert "3 runs, 2 done before" in text  # only the toy has this option

    code, text = run_command(train.report.cli.main, "runs/tiny", "--against", "ridge")
    assert code == 0, text
    page = (tmp_path / "runs/tiny/report/report.html").read_text()
    assert "toy" in page
    code, text = run_command(
        sweeps.cli.main, "--cache", cache, "--model", "toy", "--space", "lr", "--trials", 2, "--jobs", 1,
        *(a for a in SMALL if a not in ("--lr", 1e-2)),
    )  # fmt: skip
    assert code == 0, text
    assert "--model toy" in json.loads(next((tmp_path / "runs/tiny").glob("sweep-*/best.json")).read_text())["command"]


def test_options_of_a_model_can_be_searched_by_a_file(toy: None, cache: Path, run_command: Run, tmp_path: Path) -> None:
    (tmp_path / "space.toml").write_text("[shrink]\nlow = 0.1\nhigh = 1.0\n")
    argv = ("--cache", cache, "--model", "toy", "--folds", 1, *SMALL, "--trials", 2, "--jobs", 1)
    code, text = run_command(sweeps.cli.main, *argv, "--space", "space.toml")
    assert code == 0, text
    assert "search shrink: 0.1 to 1; default 0.5" in text
    code, text = run_command(sweeps.cli.main, *argv, "--space", "alpha")
    assert code == 2
    assert "alpha is no option of --model toy: give --space" in text


def test_without_a_space_the_training_of_another_model_is_searched(
    toy: None, cache: Path, run_command: Run, tmp_path: Path
) -> None:
    argv = ("--cache", cache, "--model", "toy", "--folds", 1, *SMALL, "--trials", 1, "--jobs", 1)
    code, text = run_command(sweeps.cli.main, *argv)
    assert code == 0, text
    assert "search weight decay" in text
    assert "alpha" not in text


@pytest.mark.slow
def test_a_registered_model_goes_on_where_it_was_stopped(
    cache: Path, start_command: Callable[..., Command], tmp_path: Path
) -> None:
    script = "from tests.train.models.toy import register_toy\nregister_toy()\n" + TALKATIVE
    argv = ("--cache", cache, "--runs", tmp_path / "runs", "--model", "toy", "--fold", 0, *SMALL)
    epochs = []
    for more in ([], ["--resume"]):
        process = start_command(script, *argv, "--epochs", 100000, "--patience", 100000, *more)
        wait_for_epochs(process)
        process.send_signal(signal.SIGINT)
        text = process.communicate()[0]
        assert process.returncode == 130, text
        [folder] = tmp_path.glob("runs/*/*/fold0")
        epochs.append(epochs_run(folder))
    assert epochs[1] > epochs[0] > 0


def test_baselines_are_models_too(cache: Path, run_command: Run, tmp_path: Path) -> None:
    """Ridge as a model gives the numbers of ridge as a baseline; neither depends on options of the loop."""
    argv = ("--cache", cache, "--folds", 2, "--n-genes", 20, "--split", "loso")
    code, text = run_command(main, *argv, "--model", "ridge,knn", "--nearest", 5)
    assert code == 0, text
    folders = {p.name.split("-")[0]: p for p in (tmp_path / "runs/tiny").iterdir()}
    for fold in load_run(folders["ridge"]).folds:
        ridge = fold.metrics["controls"]["ridge"]
        assert fold.metrics["pooled"] == pytest.approx(ridge, rel=1e-4)  # predictions are float32
        assert (fold.metrics["epochs"], fold.metrics["best_epoch"]) == (0, None)
        assert not {"history.csv", "training.png", "checkpoint.pt"} & {p.name for p in fold.folder.iterdir()}
    code, text = run_command(main, *argv, "--model", "hist,ridge", "--epochs", 9, "--patience", 2, "--dry-run")
    assert "2 settings x folds = 4 runs, 2 done before" in text
    for name in ("ridge", "knn"):
        fold = load_run(folders[name]).folds[0]
        again = load_model(fold.folder)
        assert {k: v.shape for k, v in again.state_dict().items()}
        assert np.isfinite(fold.predictions.X).all()
