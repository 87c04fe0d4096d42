"""Embeddings of a fine-tuned encoder: no fold tests what its adapter has seen without every place saying so."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import extract.cli
import hist_cache.metadata
import sweeps.cli
import train.report.cli
from extract.encoders.adapter_slides import AdapterSlides
from extract.encoders.adapters import OWNER, read_adapter_slides
from hist_cache import open_cache
from hist_cache.runs import Fold, Run
from hist_cache.slide_file import read_slide
from tests.conftest import TINY_ENCODER, write_slide
from train.cli import main

Command = Callable[..., tuple[int, str]]
SMALL = ("--width", 8, "--depth", 1, "--epochs", 1, "--batch-size", 16, "--n-genes", 20)
LOSO = ("--dataset", "tiny", "--split", "loso", *SMALL)
TUNE = ("--finetune-lora", "--lora-layers", 1, "--precision", "fp32", "--folds", 2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four slides of three patients, a cache, adapters of two folds, and the cache of the first adapter.

    Leaving one slide out, fold 0 tests TINY1 and validates TINY2, fold 1 tests TINY2 and validates TINY3.
    """
    where = tmp_path_factory.mktemp("leaks")
    for i, patient in enumerate("AABC", 1):
        write_slide(where / "hest", f"TINY{i}", rows=4, columns=6, seed=i, metadata={"patient": patient})
    write_slide(where / "hest", "OTHER1", rows=4, columns=6, seed=9, metadata={"patient": "Z"})
    data = ["--data-root", str(where / "hest"), "--cache", str(where / "cache"), "--precision", "fp32"]
    plain = [*data, "--encoder", TINY_ENCODER, "--random-weights"]
    assert extract.cli.main(["--ids", "OTHER1", "--dataset", "other", *plain]) == 0
    assert extract.cli.main(["--ids", "TINY1-4", "--dataset", "tiny", *plain]) == 0
    at = ["--cache", str(where / "cache"), "--runs", str(where / "runs")]
    assert main([*map(str, (*at, *LOSO, *TUNE))]) == 0
    adapter = str(run_folder(where / "runs") / "fold0")
    assert extract.cli.main(["--ids", "TINY1-4", "--dataset", "tiny", *data, "--lora", adapter]) == 0
    return where


def run_folder(runs: Path, pattern: str = "full-lora1-*", dataset: str = "tiny") -> Path:
    [folder] = runs.glob(f"{dataset}/{pattern}")
    return folder


def tuned_folder(where: Path) -> str:
    [name] = {f.name for f in (where / "cache/tiny").iterdir()} - {open_cache(where / "cache", "tiny").folder.name}
    return name


def test_a_tuned_cache_names_its_slides_and_is_taken_on_request_only(
    made: Path, run_command: Command, tmp_path: Path
) -> None:
    adapter = read_adapter_slides(run_folder(made / "runs") / "fold0/adapter")
    assert adapter is not None
    assert (adapter.train, adapter.val, adapter.test) == (("TINY3", "TINY4"), ("TINY2",), ("TINY1",))
    assert adapter.patients["TINY3"] == "tiny B"
    tuned = open_cache(made / "cache", "tiny", tuned_folder(made))
    assert AdapterSlides.from_dict(tuned.fingerprint().common["adapter"]) == adapter
    plain = open_cache(made / "cache").folder.name
    code, text = run_command(main, "--cache", made / "cache", "--runs", "runs", "--split", "loso", *SMALL, "--dry-run")
    assert code == 0, text
    assert f"2 caches of tiny: taking {plain} (the only one of an encoder that was not fine-tuned), not" in text
    assert f"{tuned.folder.name} (fine-tuned)" in text
    shutil.copytree(tuned.folder, tmp_path / "alone/tiny" / tuned.folder.name)
    for encoder in ([], ["--encoder", tuned.folder.name.rsplit("-", 1)[0]]):
        code, text = run_command(main, "--cache", "alone", *LOSO, *encoder)
        assert code == 2
        assert f"only caches of encoders that were fine-tuned ({tuned.folder.name}); choose one with --encoder" in text


@pytest.mark.parametrize(
    ("command", "more", "says"),
    [
        (main, [], "fold 1 tests TINY2, which chose the adapter's epoch; fold 2 tests TINY3, which"),
        (main, ["--fold", 2], "fold 2 tests TINY3, which the adapter was trained on: give each fold its own adapter"),
        (main, ["--fold", 0, "--finetune-lora", "--dry-run"], "its encoder is fine-tuned already"),
        (main, ["--fold", 0, "--lora", "x"], "--lora x: "),
        (sweeps.cli.main, ["--trials", 1, "--fold", 0], "fold 2 tests TINY3"),
        (sweeps.cli.main, ["--trials", 1, "--fold", 1], "fold 1 validates on TINY3, which the adapter was trained on"),
        (sweeps.cli.main, ["--trials", 1, "--lora", "x"], "hist-sweep searches on one cache"),
    ],
)
def test_folds_that_the_adapter_has_seen_are_refused(
    made: Path, run_command: Command, command: Callable[[list[str]], int], more: list[object], says: str
) -> None:
    code, text = run_command(command, "--cache", made / "cache", *LOSO, "--encoder", tuned_folder(made), *more)
    assert code == 2, text
    assert says in text
    assert len([line for line in text.splitlines() if "LEAK" in line or "error" in line.lower()]) <= 1


@pytest.mark.long
def test_allowed_leaks_are_said_everywhere(made: Path, run_command: Command, tmp_path: Path) -> None:
    tuned = ("--cache", made / "cache", *LOSO, "--encoder", tuned_folder(made))
    code, text = run_command(main, *tuned, "--fold", 0, "--runs", "clean")
    assert code == 0, text
    assert "LEAK" not in text
    assert "full, tuned cache" in text
    code, text = run_command(main, *tuned, "--folds", 3, "--allow-leak")
    assert code == 0, text
    assert "full, tuned cache, LEAK" in text
    assert "ridge, PCA-256, LEAK" in text  # of the same embeddings
    assert "train mean, LEAK" not in text
    run = run_folder(tmp_path / "runs", "full-*")
    leaks = [fold.config["leak"] for fold in Run(run).folds]
    assert leaks == [
        "",
        "tests TINY2, which chose the adapter's epoch",
        "tests TINY3, which the adapter was trained on",
    ]
    assert any("LEAK" in line for line in Fold(run / "fold2").metrics["warnings"])
    assert json.loads((run / "summary.json").read_text())["leaks"] == {"fold1": leaks[1], "fold2": leaks[2]}
    assert main([*map(str, ("--cache", made / "cache", *LOSO, "--folds", 3))]) == 0  # the frozen encoder beside it
    for form in ("rich", "latex"):  # CSV: the files below
        code, text = run_command(train.report.cli.main, "runs", "--format", form)
        assert code == 0, text
        assert "full, tuned cache, LEAK" in text
        assert "LoRA" not in text
    page = (tmp_path / "runs/tiny/report/report.html").read_text()
    assert page.count("fold 2 tests TINY3, which the adapter was trained on") >= 2  # a warning, and below the table
    tables = list((tmp_path / "runs/tiny/report/tables").glob("*.csv"))
    with_tuned = [t for t in tables if "tuned" in t.read_text()]
    assert with_tuned
    assert all("full, tuned cache, LEAK" in t.read_text() for t in with_tuned)


@pytest.mark.slow
def test_one_adapter_a_fold_is_one_command(made: Path, run_command: Command, tmp_path: Path) -> None:
    shutil.copytree(made / "cache", tmp_path / "cache")
    adapters = run_folder(made / "runs")
    each = (*LOSO, "--folds", 2, "--lora", adapters, "--model", "hist,ridge")
    code, text = run_command(main, *each, "--dry-run")
    assert code == 0, text
    assert "fold 1: 4 of 4 slides to embed with its adapter" in text
    code, text = run_command(main, *each)
    assert code == 0, text
    assert "LEAK" not in text
    folds = Run(run_folder(tmp_path / "runs", "full-*")).folds
    assert [fold.config["leak"] for fold in folds] == ["", ""]
    assert len({fold.config["embedded_by"] for fold in folds}) == 2
    alone = run_command(main, *LOSO, "--encoder", tuned_folder(made), "--fold", 0, "--runs", "alone")
    assert alone[0] == 0, alone[1]
    [first] = Run(run_folder(tmp_path / "alone", "full-*")).folds
    assert first.metrics["pooled"] == folds[0].metrics["pooled"], "the same embeddings"
    assert first.metrics["pooled"] != folds[1].metrics["pooled"]
    code, text = run_command(main, *each)
    assert code == 0
    assert "4 done before, not run again" in text
    code, text = run_command(main, *LOSO, "--lora", adapters)
    assert code == 2
    assert "no finished fold2 with an adapter" in text
    split = [{"train": ["TINY1"], "val": ["TINY2"], "test": ["TINY4"]}]
    (tmp_path / "split.json").write_text(json.dumps(split))
    for run, says in (
        (adapters, "fold 0 tests TINY4, which the adapter was trained on: give a run that was fine-tuned on these"),
        (adapters / "fold0", "no run here (looked for fold*); give the folder that holds the folds"),
    ):
        code, text = run_command(main, *LOSO, "--split", "split.json", "--lora", run)
        assert code == 2
        assert says in text
    owner = adapters / "fold0/adapter" / OWNER
    kept = owner.read_text()
    for damage in ([], 7, {"train": "TINY3"}, {"dataset": "tiny", "train": []}):
        owner.write_text(json.dumps(json.loads(kept) | {"slides": damage}))
        code, text = run_command(main, *LOSO, "--fold", 0, "--lora", adapters)
        assert code == 2
        assert "its slides cannot be read" in text
    owner.write_text(kept)


def test_what_adapters_need_is_checked_in_a_dry_run(
    made: Path, run_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of any scale, as the plain cache is; a damaged file is computed again."""
    shutil.copytree(made / "cache", tmp_path / "cache")
    shutil.copytree(made / "hest", tmp_path / "hest")
    monkeypatch.setitem(hist_cache.metadata.USUAL, "inter_spot_dist", (500.0, 1000.0))
    each = (*LOSO, "--folds", 2, "--lora", run_folder(made / "runs"), "--data-root", "hest")
    code, text = run_command(main, *each, "--dry-run")
    assert code == 0, text
    assert "fold 1: 4 of 4 slides to embed" in text
    assert text.count("to embed with its adapter") == 1, "fold 0 has all"
    damaged = tmp_path / "cache/tiny" / tuned_folder(made) / "TINY3.h5"
    damaged.write_bytes(damaged.read_bytes()[:-300])
    code, text = run_command(main, *each, "--fold", 0, "--dry-run")
    assert code == 0, text
    assert "fold 0: 1 of 4 slides to embed" in text
    code, text = run_command(main, *each, "--fold", 0)
    assert code == 0, text
    assert text.count("it is computed again") == 1
    assert read_slide(damaged).digests == read_slide(made / "cache/tiny" / damaged.parent.name / "TINY3.h5").digests
    image = tmp_path / "hest/wsis/TINY2.tif"
    image.write_bytes(image.read_bytes()[:-300])
    code, text = run_command(main, *each, "--fold", 1, "--dry-run")
    assert code == 1, text
    assert "hest/wsis/TINY2.tif: " in text


def test_slides_of_other_names_patients_and_unknown_ones(made: Path, run_command: Command, tmp_path: Path) -> None:
    shutil.copytree(made / "hest", tmp_path / "hest")
    for folder, ending in (("st", "h5ad"), ("wsis", "tif"), ("metadata", "json")):
        shutil.copy(tmp_path / f"hest/{folder}/TINY3.{ending}", tmp_path / f"hest/{folder}/COPY.{ending}")
        source = "OTHER1" if folder == "wsis" else "TINY3"  # the same counts with another image
        shutil.copy(tmp_path / f"hest/{folder}/{source}.{ending}", tmp_path / f"hest/{folder}/SAVED.{ending}")
    metadata = json.loads((tmp_path / "hest/metadata/OTHER1.json").read_text())
    (tmp_path / "hest/metadata/OTHER1.json").write_text(json.dumps(metadata | {"patient": "B"}))
    shutil.copytree(run_folder(made / "runs") / "fold0/adapter", tmp_path / "lost")
    owner = json.loads((tmp_path / "lost" / OWNER).read_text())
    (tmp_path / "lost" / OWNER).write_text(json.dumps({k: v for k, v in owner.items() if k != "slides"}))
    cases = {
        "saved": ("SAVED,TINY1,TINY2", run_folder(made / "runs") / "fold0", "SAVED, which the adapter was trained on"),
        "copies": ("COPY,TINY1,TINY2", run_folder(made / "runs") / "fold0", "COPY, which the adapter was trained on"),
        "tiny": ("OTHER1,TINY1,TINY2", run_folder(made / "runs") / "fold0", "OTHER1, of patients that the adapter"),
        "unknown": ("TINY1,TINY2,TINY4", tmp_path / "lost", "which these are is unknown"),
    }
    for name, (ids, adapter, says) in cases.items():
        code, text = run_command(
            extract.cli.main, "--ids", ids, "--dataset", name, "--data-root", "hest", "--lora", adapter
        )
        assert code == 0, text
        assert ("does not say which slides" in text) == (name == "unknown")
        [folder] = (tmp_path / "cache" / name).iterdir()
        code, text = run_command(main, "--dataset", name, "--split", "loso", *SMALL, "--encoder", folder.name)
        assert code == 2, text
        assert says in " ".join(text.split())


def test_version_0_1_said_it_in_the_folds_configuration(made: Path, tmp_path: Path) -> None:
    fold = tmp_path / "run/fold0"
    shutil.copytree(run_folder(made / "runs") / "fold0", fold)
    owner = json.loads((fold / "adapter" / OWNER).read_text())
    (fold / "adapter" / OWNER).write_text(json.dumps({k: v for k, v in owner.items() if k != "slides"}))
    slides = read_adapter_slides(fold / "adapter")
    assert slides is not None
    assert slides.train == ("TINY3", "TINY4")
    assert slides.patients["TINY4"] == "tiny C"


def test_finetuned_and_tested_on_another_dataset_in_one_command(
    made: Path, run_command: Command, tmp_path: Path
) -> None:
    shutil.copytree(made / "cache", tmp_path / "cache")
    code, text = run_command(main, *LOSO, *TUNE, "--fold", 0, "--test-dataset", "other")
    assert code == 0, text
    [fold] = Run(run_folder(tmp_path / "runs")).folds
    assert set(fold.predictions.obs["slide"]) == {"OTHER1"}
    slides = read_adapter_slides(fold.folder / "adapter")
    assert slides is not None
    assert slides.test == ("OTHER1",)
    assert slides.patients["OTHER1"] == "other Z"
