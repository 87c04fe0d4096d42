"""hist-train on grids, protocols and other datasets, on tiny slides."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata
import numpy as np
import pytest

import extract.cli
import train.fit.loop
from hist_cache import load_run
from hist_cache.runs import Fold
from tests.commands import REPOSITORY, Command
from tests.conftest import HIST_TRAIN, TALKATIVE, TINY_ENCODER, wait_for_epochs, write_slide
from tests.kills import KILLS, kill_as_it_writes
from train.cli import main
from train.experiments.jobs import check_validate_on
from train.experiments.runner import by_data
from train.models.configs import HistConfig
from train.models.variants import load_variants
from train.report.reading import read_results

Run = Callable[..., tuple[int, str]]
Start = Callable[..., Command]
SMALL = ("--width", 8, "--depth", 1, "--epochs", 2, "--batch-size", 16, "--n-genes", 20, "--lr", 1e-3)
NUMBERS = ("metrics.json", "model.safetensors", "panel.txt")


def extract_all(where: Path, *more: object) -> Path:
    code = extract.cli.main(
        ["--data-root", str(where / "hest"), "--cache", str(where / "cache"), "--encoder", TINY_ENCODER,
         "--random-weights", "--neighbors", "6,18", *map(str, more)]
    )  # fmt: skip
    assert code == 0
    return where / "cache"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four tiny slides of three patients, and one more as a dataset of its own."""
    where = tmp_path_factory.mktemp("grid")
    for i in range(1, 6):
        write_slide(where / "hest", f"TINY{i}", seed=i, metadata={"patient": f"Patient {min(i, 3)}"})
    extract_all(where, "--ids", "TINY5", "--dataset", "elsewhere")
    return extract_all(where, "--ids", "TINY1-4", "--dataset", "tiny")


def finished(where: Path) -> list[Path]:
    return sorted(where.glob("runs/*/*/fold*/metrics.json"))


@pytest.mark.long
def test_all_variants_in_one_grid_then_from_the_folders(cache: Path, run_command: Run, tmp_path: Path) -> None:
    argv = ("--cache", cache, "--split", "loso", "--fold", 1, "--ablation", "all", *SMALL)
    code, text = run_command(main, *argv, "--jobs", 2)
    assert code == 0, text
    variants = load_variants()
    assert f"{len(variants)} settings x folds = {len(variants)} runs" in text
    runs = {p.name.rsplit("-", 1)[0]: load_run(p) for p in (tmp_path / "runs/tiny").iterdir() if p.name != "report"}
    assert set(runs) == set(variants)
    assert all(run.summary["folds"] == ["fold1"] for run in runs.values())
    stamps = {p: p.stat().st_mtime_ns for p in finished(tmp_path)}
    code, text = run_command(main, *argv)
    assert code == 0
    assert f"{len(variants)} done before, not run again" in text
    assert {p: p.stat().st_mtime_ns for p in finished(tmp_path)} == stamps


def test_the_letter_of_the_text_is_a_protocol(cache: Path, run_command: Run, tmp_path: Path) -> None:
    argv = ("--cache", cache, "--split", "loso", "--fold", 1, *SMALL)
    code, text = run_command(main, *argv, "--protocol", "paper,literal")
    assert code == 0, text
    runs = {run.setting.protocol.name: run for run in read_results([tmp_path / "runs"]).runs}
    model, loop = runs["literal"].setting.model, runs["literal"].setting.fit
    assert isinstance(model, HistConfig)
    found = (model.decoder_space, model.image_network, model.gene_network, model.map_scale, model.limits)
    assert found == ("points", "none", "shared", "one", "none")
    assert (loop.select_by, loop.clip_norm, loop.epochs) == ("loss", 0, 2)
    assert "val_loss" in runs["literal"].folds[0].fold.history.columns
    assert "val_loss" not in runs["paper"].folds[0].fold.history.columns
    code, text = run_command(main, *argv, "--protocol", "literal", "--gene-network", "own", "--clip-norm", 5)
    assert code == 0, text
    settings = [run.setting for run in read_results([tmp_path / "runs"]).runs]
    overridden = [s for s in settings if s.protocol.name == "literal" and s.fit.clip_norm == 5]
    assert [getattr(s.model, "gene_network", "") for s in overridden] == ["own"]


@pytest.mark.slow
def test_side_by_side_gives_what_one_by_one_gives(
    cache: Path, run_command: Run, start_command: Start, tmp_path: Path
) -> None:
    argv = ("--cache", cache, "--split", "loso", "--fold", 1, "--ablation", "full,clip", *SMALL)
    assert run_command(main, *argv, "--jobs", 2, "--runs", tmp_path / "two")[0] == 0
    # Another process, with one thread: it sums in the same order as a process on one core.
    one_by_one = start_command(HIST_TRAIN, *argv, "--jobs", 1, "--runs", tmp_path / "one")
    text, _ = one_by_one.communicate()
    assert one_by_one.returncode == 0, text
    for name in NUMBERS:
        one, two = (sorted((tmp_path / which).glob(f"*/*/*/{name}")) for which in ("one", "two"))
        assert len(one) == len(two) == 2
        assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]


@pytest.mark.slow
def test_a_grid_killed_again_and_again_loses_nothing(cache: Path, start_command: Start, tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    script = f"import tempfile; tempfile.tempdir = {str(tmp_path / 'temporary')!r}\n{HIST_TRAIN}"
    argv = ["--cache", cache, "--runs", tmp_path / "runs", "--split", "loso", "--folds", 3]
    argv += ["--ablation", "full,no_hea", *SMALL, "--jobs", 2]
    seen: dict[Path, int] = {}

    def files() -> int:
        for path in finished(tmp_path):
            assert seen.setdefault(path, path.stat().st_mtime_ns) == path.stat().st_mtime_ns, "a fold is run once"
        walked = os.walk(tmp_path / "runs"), os.walk(tmp_path / "temporary")  # folders may vanish meanwhile
        return sum(len(names) for _, _, names in itertools.chain(*walked))

    kill_as_it_writes(lambda: start_command(script, *argv), files, 6, KILLS)
    files()
    assert len(finished(tmp_path)) == 6
    assert not list(tmp_path.glob("runs/**/*.partial"))
    assert not list((tmp_path / "temporary").iterdir())


@pytest.mark.slow
def test_ctrl_c_in_a_grid_keeps_what_runs(cache: Path, start_command: Start, tmp_path: Path) -> None:
    argv = ["--cache", cache, "--runs", tmp_path / "runs", "--split", "loso", *SMALL]
    argv += ["--jobs", 2, "--epochs", 100000, "--patience", 100000, "--lr", 1e-6]
    process = start_command(TALKATIVE, *argv)
    wait_for_epochs(process, folds=2)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 130, text
    assert text.count("kept the best weights so far") == 2
    assert len(list(tmp_path.glob("runs/*/*/fold*/checkpoint.pt"))) == 2
    assert not finished(tmp_path)


def test_a_dry_run_writes_nothing(cache: Path, run_command: Run, tmp_path: Path) -> None:
    code, text = run_command(main, "--cache", cache, "--split", "loso", "--ablation", "full,clip", *SMALL, "--dry-run")
    assert code == 0
    assert "2 settings x folds = 8 runs" in text
    assert not (tmp_path / "runs").exists()


def plant_a_gene(where: Path, slide: str) -> None:
    """GENE3, alike everywhere else, varies more than any other gene in one slide."""
    for path in (where / "hest/st").glob("*.h5ad"):
        table = anndata.read_h5ad(path)
        counts = table.X.toarray()
        counts[:, 3] = 1
        if path.stem == slide:
            counts[::2, 3] = 500
        table.X = type(table.X)(counts)
        table.write_h5ad(path)


@pytest.mark.slow
def test_a_strict_panel_never_sees_a_test_slide(cache: Path, run_command: Run, tmp_path: Path) -> None:
    shutil.copytree(cache.parent / "hest", tmp_path / "planted/hest")
    plant_a_gene(tmp_path / "planted", "TINY2")
    planted = extract_all(tmp_path / "planted", "--ids", "TINY1-4", "--dataset", "tiny")
    options = ("--model", "ridge", "--n-genes", 20, "--split", "loso", "--folds", 3)  # any model: it is given the panel
    for protocol in ("paper", "strict"):
        code, text = run_command(main, "--cache", planted, "--protocol", protocol, "--runs", protocol, *options)
        assert code == 0, text
    tests = {}
    for protocol in ("paper", "strict"):
        for fold in load_run(next((tmp_path / protocol / "tiny").iterdir())).folds:
            tests[protocol, fold.config["split"]["test"][0]] = "GENE3" in fold.panel
    assert tests["paper", "TINY2"]
    assert not tests["strict", "TINY2"]
    assert not tests["strict", "TINY1"]  # there TINY2 is the validation slide: not trained on, not looked at
    assert tests["strict", "TINY3"]


def test_strict_splits_by_patient(cache: Path, run_command: Run, tmp_path: Path) -> None:
    code, text = run_command(main, "--cache", cache, "--protocol", "strict", "--folds", 2, *SMALL)
    assert code == 0, text
    assert "optimistic" not in text
    [run] = map(load_run, (tmp_path / "runs/tiny").glob("full-*"))
    for fold in run.folds:
        sides = [fold.config["split"][part] for part in ("train", "test")]
        assert ("TINY3" in sides[0], "TINY4" in sides[0]) in ((True, True), (False, False))
        assert fold.config["split_kind"] == "patient"
        assert fold.config["protocol"]["panel_from"] == "train"


def test_validating_on_slides_alike_is_another_run(cache: Path, run_command: Run, tmp_path: Path) -> None:
    argv = ("--cache", cache, "--model", "ridge", "--n-genes", 20, "--split", "loso", "--folds", 3)
    assert run_command(main, *argv)[0] == 0
    code, text = run_command(main, *argv, "--validate-on", "alike")
    assert code == 0, text
    assert "validate TINY2 (other patients: TINY1 is the only slide of its patient), test TINY1" in text
    assert "validate TINY4 (any patient: TINY3 has only one other slide of its patient), test TINY3" in text
    results = read_results([tmp_path / "runs/tiny"])
    assert [run.setting.split for run in results.runs] == ["loso", "loso alike"]
    assert [run.label for run in results.runs] == ["ridge, loso split", "ridge, loso alike split"]
    assert [fold.split.name for fold in results.runs[1].folds] == [f"loso-TINY{i}-alike" for i in (1, 2, 3)]
    for rule in ("next", "alike"):
        assert "3 done before, not run again" in run_command(main, *argv, "--validate-on", rule)[1]


def test_only_loso_validates_on_slides_alike(cache: Path, run_command: Run) -> None:
    argv = ("--cache", cache, "--n-genes", 20, "--validate-on", "alike", "--dry-run")
    code, text = run_command(main, *argv, "--split", "patient")
    assert (code, text.splitlines()[-1]) == (
        2,
        "error: --validate-on alike: is for --split loso, not patient; give that, or leave it out",
    )
    assert run_command(main, *argv, "--split", "loso,patient")[0] == 0
    check_validate_on(None, {"patient"})
    check_validate_on("next", {"patient"})


def test_predictions_do_not_depend_on_the_test_slides_counts(cache: Path, run_command: Run, tmp_path: Path) -> None:
    """Other counts in the test slide, everything else the same: the same predictions to the last bit."""
    shutil.copytree(cache.parent / "hest", tmp_path / "other/hest")
    path = tmp_path / "other/hest/st/TINY1.h5ad"
    table = anndata.read_h5ad(path)
    table.X = type(table.X)(np.random.default_rng(0).poisson(9, table.shape).astype(np.float32))
    table.write_h5ad(path)
    other = extract_all(tmp_path / "other", "--ids", "TINY1-4", "--dataset", "tiny")
    argv = ("--protocol", "strict", "--split", "loso", "--fold", 0, *SMALL)
    found = []
    for where, runs in ((cache, tmp_path / "a"), (other, tmp_path / "b")):
        assert run_command(main, "--cache", where, "--runs", runs, *argv)[0] == 0
        found.append(Fold(next(runs.glob("*/*/fold0"))))
    assert found[0].config["split"]["test"] == ["TINY1"]
    a, b = (fold.predictions for fold in found)
    assert not np.array_equal(a.layers["truth"], b.layers["truth"])
    np.testing.assert_array_equal(a.X, b.X)


def test_the_release_protocol(cache: Path, run_command: Run, tmp_path: Path) -> None:
    code, text = run_command(main, "--cache", cache, "--protocol", "release", "--split", "loso", "--fold", 0, *SMALL)
    assert code == 0, text
    assert "run hist-extract --min-spot-um 112" in text
    [fold] = load_run(next((tmp_path / "runs/tiny").glob("full-*"))).folds
    assert fold.config["variant"]["terms"]["entail"] == [0.5] * 4
    table = fold.predictions
    assert table.obs["complete_niche"].all()
    assert 0 < table.n_obs < 30
    raw = anndata.read_h5ad(cache.parent / "hest/st/TINY1.h5ad")[list(table.obs["barcode"]), list(table.var_names)]
    np.testing.assert_allclose(table.layers["truth"], np.log2(1 + raw.X.toarray()), rtol=1e-6)
    np.testing.assert_array_equal(table.obsm["spatial"], raw.obsm["spatial"])


def test_the_last_weights_are_not_the_best(cache: Path, run_command: Run, tmp_path: Path) -> None:
    argv = ("--cache", cache, "--split", "loso", "--fold", 0, *SMALL, "--lr", 0.05, "--epochs", 12)
    for tested in ("best", "last"):
        assert run_command(main, *argv, "--tested", tested, "--runs", tested)[0] == 0
    best, last = (Fold(next((tmp_path / t).glob("*/*/fold0"))) for t in ("best", "last"))
    assert best.metrics["best_epoch"] < best.metrics["epochs"] - 1
    columns = ["mse", "val_mse", "hca"]
    np.testing.assert_array_equal(best.history[columns], last.history[columns])  # the same training
    assert best.metrics["pooled"] != last.metrics["pooled"]


def test_another_datasets_slides(cache: Path, run_command: Run, tmp_path: Path) -> None:
    argv = ("--cache", cache, "--dataset", "tiny", "--split", "loso", "--folds", 2, *SMALL)
    code, text = run_command(main, *argv, "--test-dataset", "elsewhere")
    assert code == 0, text
    [run] = map(load_run, (tmp_path / "runs/tiny").glob("full-*"))
    for fold in run.folds:
        assert set(fold.predictions.obs["slide"]) == {"TINY5"}
        assert fold.config["test_dataset"] == "elsewhere"
        assert "TINY5" not in fold.config["split"]["train"] + fold.config["split"]["val"]
    code, text = run_command(main, *argv, "--test-dataset", "nowhere")
    assert code == 2
    assert "run hist-extract --dataset nowhere" in text


def test_another_transform(cache: Path, run_command: Run, tmp_path: Path) -> None:
    argv = ("--cache", cache, "--split", "loso", "--fold", 0, *SMALL)
    code, text = run_command(main, *argv, "--transform", "ln_cp10k")
    assert code == 0, text
    [fold] = load_run(next((tmp_path / "runs/tiny").glob("full-*"))).folds
    table = fold.predictions
    assert table.uns["expression"] == "ln(1 + count per 10,000)"
    raw = anndata.read_h5ad(cache.parent / "hest/st/TINY1.h5ad")
    counts = raw.X.toarray()
    expected = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    at = [list(raw.var_names).index(g) for g in table.var_names]
    np.testing.assert_allclose(table.layers["truth"], expected[:, at], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.unpatched
def test_genes_to_plot(cache: Path, run_command: Run, tmp_path: Path) -> None:
    argv = ("--cache", cache, "--split", "loso", "--fold", 0, *SMALL)
    assert run_command(main, *argv)[0] == 0
    [picture] = (tmp_path / "runs").glob("*/*/fold0/maps.png")
    before = picture.read_bytes()
    gene = Fold(picture.parent).panel[-1]
    code, text = run_command(main, *argv, "--genes-to-plot", gene)
    assert code == 0, text
    assert picture.read_bytes() != before
    code, text = run_command(main, *argv, "--genes-to-plot", f"{gene},NOSUCH")
    assert code == 2
    assert "--genes-to-plot NOSUCH" in text


def test_the_cost_of_a_fold_is_kept_apart_from_its_metrics(cache: Path, run_command: Run, tmp_path: Path) -> None:
    assert run_command(main, "--cache", cache, "--split", "loso", "--fold", 0, *SMALL)[0] == 0
    [fold] = load_run(next((tmp_path / "runs/tiny").glob("full-*"))).folds
    assert {"train_s_per_epoch", "inference_s", "peak_memory_gb"} <= set(fold.cost)
    assert all(fold.cost[k] > 0 for k in ("train_s_per_epoch", "inference_s", "peak_memory_gb"))


def test_folds_with_the_same_tensors_follow_one_another() -> None:
    jobs: list[Any] = [SimpleNamespace(fold=i % 2, data="ab"[i % 2], setting=i // 2) for i in range(6)]
    assert [(job.data, job.setting) for job in by_data(jobs)] == [(data, i) for data in "ab" for i in range(3)]
    jobs = [SimpleNamespace(data="a", setting=i) for i in range(4)]
    assert by_data(jobs) == jobs


def test_a_fold_that_fails_does_not_take_the_others_with_it(
    cache: Path, run_command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ("--cache", cache, "--split", "loso", "--folds", 2, *SMALL)
    code, text = run_command(main, *argv, "--lr", 1e30, "--ablation", "full", "--jobs", 2)
    assert code == 1
    assert "diverged" in text
    assert "Traceback" not in text


@pytest.mark.long
def test_workers_import_our_packages_beside_the_users_own_train(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("raise SystemExit('the wrong train')")
    script = (
        "from hist_cache.commands import hist_train\nif __name__ == '__main__':\n    raise SystemExit(hist_train())\n"
    )
    (tmp_path / "hist-train.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "hist-train.py", "--cache", str(cache), "--split", "loso", "--folds", "2", "--jobs", "2",
         "--model", "ridge", "--n-genes", "20"],
        cwd=tmp_path, capture_output=True, text=True, timeout=200,
        env=os.environ | {"PYTHONPATH": f".:{REPOSITORY}", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(finished(tmp_path)) == 2


@pytest.mark.parametrize("end", ["finished", "stopped"])
def test_a_fold_is_not_gone_on_with_on_other_slides(
    cache: Path, run_command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """A train slide that has become a test slide since must not have been trained on."""
    splits = tmp_path / "s.json"
    splits.write_text('[{"train": ["TINY1", "TINY2"], "val": ["TINY3"], "test": ["TINY4"]}]')
    argv = ("--cache", cache, "--split", splits, *SMALL)
    if end == "stopped":
        epoch = train.fit.loop.train_epoch

        def stop(*args: object, **more: object) -> dict[str, float]:
            os.kill(os.getpid(), signal.SIGINT)
            return epoch(*args, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(train.fit.loop, "train_epoch", stop)
    assert run_command(main, *argv)[0] == (0 if end == "finished" else 130)
    splits.write_text('[{"train": ["TINY4", "TINY2"], "val": ["TINY3"], "test": ["TINY1"]}]')
    before = {p: p.read_bytes() for p in (tmp_path / "runs").rglob("*") if p.is_file()}
    code, text = run_command(main, *argv)
    assert code == 2, text
    says = "was run on other slides than this split has" if end == "finished" else "split.test TINY4 -> TINY1"
    assert says in " ".join(text.split())
    assert "give another --runs folder" in text
    assert {p: p.read_bytes() for p in (tmp_path / "runs").rglob("*") if p.is_file()} == before
