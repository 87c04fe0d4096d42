"""hist-train and hist-report within slices, on tiny slides."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata
import numpy as np
import pytest
import torch

import extract.cli
import train.report.cli
from hist_cache import load_run, open_cache
from hist_cache.errors import InputError
from hist_cache.panels import choose_panel
from sweeps.final_test import test_slide_warnings as slide_warnings
from sweeps.objective import fold_data
from tests.conftest import TINY_ENCODER, write_slide
from train.cli import main
from train.experiments.grid import points
from train.experiments.jobs import make_jobs
from train.experiments.outputs import load_model
from train.options import TrainOptions
from train.parts import BandCut
from train.workspace import Workspace

Run = Callable[..., tuple[int, str]]
SMALL = ("--width", 8, "--depth", 1, "--epochs", 2, "--batch-size", 16, "--n-genes", 20, "--lr", 1e-3)
SPOTS = 120


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three slides of 2 x 0.5 mm, of one patient."""
    where = tmp_path_factory.mktemp("within")
    for i in (1, 2, 3):
        metadata = {"patient": "Patient 1"}
        write_slide(where / "hest", f"LONG{i}", rows=6, columns=40, um_per_px=4.0, seed=i, metadata=metadata)
    argv = ["--ids", "LONG1-3", "--dataset", "long", "--data-root", str(where / "hest")]
    argv += ["--cache", str(where / "cache"), "--encoder", TINY_ENCODER, "--random-weights"]
    assert extract.cli.main(argv) == 0
    return where / "cache"


@pytest.mark.long
def test_all_bands_are_tested_and_the_report_says_within_slices(cache: Path, run_command: Run, tmp_path: Path) -> None:
    argv = ("--cache", cache, "--split", "within", "--model", "hist,ridge,stevs", *SMALL)
    code, text = run_command(main, *argv)
    assert code == 0, text
    plain = " ".join(text.split())
    assert "band 4 of 5 tested and band 0 validated" in plain
    assert "test spots are on slides that were trained on" in plain
    assert "in train and test: the metrics are optimistic" not in plain
    assert "Metrics, long, within slices" in plain
    assert "interpolated, places alone" in plain
    counts = re.findall(r"train (\d+) spots, validate (\d+), test (\d+); (\d+) dropped", plain)
    assert [sum(map(int, found)) for found in counts] == [3 * SPOTS] * 5
    for folder in (tmp_path / "runs/long").iterdir():
        run = load_run(folder)
        tested: list[str] = []
        for i, fold in enumerate(run.folds):
            table = fold.predictions
            assert set(table.obs["slide"]) == {"LONG1", "LONG2", "LONG3"} == set(table.uns["spatial"])
            assert set(fold.metrics["slides"]) == {"LONG1", "LONG2", "LONG3"}
            assert "interpolated" in fold.metrics["controls"]
            assert fold.config["split_kind"] == "within"
            assert fold.config["split"]["test"] == [f"LONG{n}@test{i}" for n in (1, 2, 3)]
            assert fold.config["patients"] == dict.fromkeys(("LONG1", "LONG2", "LONG3"), "Patient 1")
            load_model(fold.folder)
            tested += list(table.obs_names)
        assert len(tested) == len(set(tested)) == 3 * SPOTS, "each spot once"
    check_predictions(cache, table)
    code, text = run_command(main, *argv)
    assert code == 0
    assert "15 done before, not run again" in text

    code, text = run_command(main, "--cache", cache, "--split", "loso", "--model", "ridge", "--n-genes", 20)
    assert code == 0, text
    assert "interpolated" not in text
    code, text = run_command(train.report.cli.main, "runs/long", "--genes-to-plot", "GENE1", "--slide", "LONG2")
    assert code == 0, text
    page = (tmp_path / "runs/long/report/report.html").read_text()
    for heading in ("Metrics, long, within slices", "Metrics, long<", "test spots are on slides that were trained on"):
        assert heading in page, heading
    across = next((tmp_path / "runs/long/report/tables").glob("metrics-pooled-long.csv")).read_text()
    assert "interpolated" not in across
    assert "full" not in across


def check_predictions(cache: Path, table: anndata.AnnData) -> None:
    """Truth and places are those of the spots with these barcodes."""
    opened = open_cache(cache, "long")
    for name in ("LONG1", "LONG2", "LONG3"):
        slide, own = opened.read(name, [6]), table[table.obs["slide"] == name]
        rows = [slide.barcodes.index(b) for b in own.obs["barcode"]]
        genes = [slide.genes.index(g) for g in own.var_names]
        np.testing.assert_allclose(own.layers["truth"], np.log2(1 + slide.counts.toarray()[np.ix_(rows, genes)]))
        np.testing.assert_array_equal(own.obsm["spatial"], slide.coords[rows])
        np.testing.assert_array_equal(own.obs["complete_niche"], (slide.neighbors[6][rows] >= 0).all(1))


def test_genes_can_be_chosen_on_train_parts(cache: Path) -> None:
    workspace = Workspace(open_cache(cache, "long"), [6])
    cut = BandCut(6, 3)
    names = [name for name in workspace.parts(cut) if "@train" in name]
    panel = workspace.panel("hmhvg", 10, names, cut)
    tables = {}
    for name in names:
        slide = workspace.cache.read(name.split("@")[0])
        own = slide.counts[workspace.parts(cut)[name].rows]
        tables[name] = ((lambda own=own: own), slide.genes)
    assert panel == choose_panel("hmhvg", 10, tables)
    assert panel != workspace.panel("hmhvg", 10, list(workspace.slides))
    workspace.keep_panels()
    assert len(list(workspace.cache.folder.glob("panels/hmhvg-10-*"))) == 1, "that of whole slides alone"


def test_the_same_slide_under_two_names_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(open_cache(cache, "long"), [6])
    monkeypatch.setattr(workspace, "twins", [("LONG1", "LONG3")])
    with pytest.raises(InputError, match="LONG1 and LONG3 are the same slide under two names"):
        workspace.parts(BandCut(6, 0))


def test_what_has_no_meaning_within_slices_is_refused(cache: Path, run_command: Run) -> None:
    argv = ("--cache", cache, "--dataset", "long", "--split", "within", *SMALL)
    for more, message in (
        (("--test-dataset", "long"), "--split within tests parts of the slides that are trained on, not long"),
        (("--finetune-lora", "--lora-layers", 1), "an adapter learns whole slides"),
        (("--neighbors", 36), "niches of 36"),
        (("--validate-on", "alike"), "is for --split loso, not within"),
    ):
        code, text = run_command(main, *argv, *more)
        assert code == 2, text
        assert message in " ".join(text.split()), text


def test_a_slide_that_is_too_small_ends_in_one_line(run_command: Run, tmp_path: Path) -> None:
    for i in (1, 2):
        write_slide(tmp_path / "hest", f"TINY{i}", seed=i)
    data = ("--data-root", tmp_path / "hest", "--cache", tmp_path / "cache", "--random-weights")
    extracted = run_command(extract.cli.main, "--ids", "TINY1-2", "--dataset", "tiny", *data, "--encoder", TINY_ENCODER)
    assert extracted[0] == 0, extracted[1]
    code, text = run_command(main, "--cache", tmp_path / "cache", "--split", "within", *SMALL)
    assert code == 2
    [line] = [" ".join(line.split()) for line in text.split("error:")[1:]]
    assert re.match(r"TINY1: too small for --split within: of its 30 spots none is left in .*; give fewer", line), line


def test_a_trial_of_a_search_holds_no_test_spot(cache: Path, tmp_path: Path) -> None:
    workspace = Workspace(open_cache(cache, "long"), [6])
    options = TrainOptions(split="within", model="ridge", n_genes=20)
    jobs = make_jobs(points(options), options, workspace, tmp_path)
    assert [job.data.tested_band for job in jobs] == [0, 1, 2, 3, 4]
    assert len({job.setting.name for job in jobs}) == 1
    for job in jobs:
        data, parts = fold_data(workspace, torch.device("cpu"), job, jobs), workspace.parts(BandCut(6, job.fold))
        for i, name in enumerate(data.slides):
            rows = data.row[data.slide == i].tolist()
            assert rows == ([] if name in job.split.test else parts[name].rows.tolist())


def test_a_search_over_other_folds_has_seen_the_test_spots() -> None:
    def job(fold: int) -> Any:
        split = SimpleNamespace(train=(f"A@train{fold}",), val=(f"A@val{fold}",), test=(f"A@test{fold}",))
        return SimpleNamespace(fold=fold, split=split, setting=SimpleNamespace(is_within=True))

    jobs = [job(i) for i in range(3)]
    assert slide_warnings(jobs[:1], jobs[:1]) == []
    assert "folds 1, 2: test slides of these" in slide_warnings(jobs[:1], jobs)[0]
