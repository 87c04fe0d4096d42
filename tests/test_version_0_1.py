"""Caches, runs and a study that version 0.1 made: opened, verified, gone on with, reported, and not computed again.

tests/data/version_0_1.tar.xz holds three tiny slides, two caches of them (one with --min-spot-um 112), seven finished
runs, two that were stopped after the second epoch (one of them fine-tunes the encoder), and a study of three trials.
expected.json has the validation errors of the two when nothing stopped them.
"""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

import extract.cli
import sweeps.cli
import train.cli
import train.report.cli
from extract.encoders.registry import load_encoder
from hist_cache import load_run, open_cache
from tests.conftest import TINY_ENCODER, stored_version
from train.experiments.outputs import load_model

Run = Callable[..., tuple[int, str]]
ENCODER = ("--encoder", TINY_ENCODER, "--random-weights", "--precision", "fp32")
DATA = ("--ids", "TINY1-3", "--dataset", "tiny", "--data-root", "hest")


@pytest.fixture
def folder(tmp_path: Path, run_command: Run) -> Path:
    """What version 0.1 left, as the working folder."""
    return stored_version(tmp_path)


@pytest.fixture(autouse=True)
def fast_bf16(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is begun here would be in bf16, which version 0.1 did not know."""
    monkeypatch.setattr("train.experiments.precision.has_fast_bf16", lambda device: True)
    monkeypatch.setattr("train.experiments.precision.measured_speedup", lambda device, width, rows: 2.0)


def stamps(folder: Path) -> dict[str, int]:
    files = (p for p in folder.rglob("*") if p.is_file() and p.suffix in (".h5", ".json", ".h5ad", ".safetensors"))
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in files if "last.json" not in p.name}


def argv_of(config: dict) -> list[str]:
    """The arguments of the command that made a run, as it stands in its config.json."""
    return shlex.split(config["provenance"]["command"])[1:]


def test_caches_are_whole_and_nothing_is_extracted_again(folder: Path, run_command: Run) -> None:
    encoder = load_encoder(TINY_ENCODER, random_weights=True)
    if encoder.digest != open_cache(folder / "cache", "tiny").fingerprint().common["weights"]:
        pytest.skip("torch draws other random weights here than where the cache was made")
    before = stamps(folder)
    code, text = run_command(extract.cli.main, *DATA, "--verify")
    assert code == 0, text
    assert text.count("  ok") == 6
    for more in (["--neighbors", "6,18"], ["--neighbors", 6, "--min-spot-um", 112]):
        code, text = run_command(extract.cli.main, *DATA, *ENCODER, *more)
        assert code == 0, text
        assert "3 slides complete, 0 to extract" in text
        assert "0 crops" in text
    assert stamps(folder) == before


def test_finished_runs_are_found_and_not_run_again(folder: Path, run_command: Run) -> None:
    before = stamps(folder)
    commands = {}
    for file in sorted(folder.glob("runs/tiny/*/fold*/config.json")):
        config = json.loads(file.read_text())
        if (file.parent / "metrics.json").exists() and "hist-train" in config["provenance"]["command"]:
            commands[config["provenance"]["command"]] = (argv_of(config), file.parents[1].name)
    assert len(commands) == 5
    for argv, name in commands.values():
        code, text = run_command(train.cli.main, *argv)
        assert code == 0, text
        assert name in text
        assert "done before, not run again" in text
    after = stamps(folder)
    changed = {name for name in before if before[name] != after[name]}
    assert {Path(name).name for name in changed} <= {"summary.json"}
    for fold in load_run(folder / "runs/tiny/full-02ccdabb").folds:
        load_model(fold.folder)


@pytest.mark.parametrize("name", ["plain", "tuned"])
def test_a_stopped_run_goes_on_with_the_numbers_of_an_unbroken_one(folder: Path, run_command: Run, name: str) -> None:
    expected = json.loads((folder / "expected.json").read_text())[name]
    fold = folder / "runs/tiny" / expected["folder"]
    config = json.loads((fold / "config.json").read_text())
    code, text = run_command(
        train.cli.main, *argv_of(config), "--resume", *(["--data-root", "hest"] * (name == "tuned"))
    )
    assert code == 0, text
    assert "going on with the stopped run" in text
    rows = list(csv.DictReader((fold / "history.csv").open()))
    errors = [float(row["val_mse"]) for row in rows]
    assert errors[:2] == pytest.approx(expected["val_mse"][:2], rel=1e-6)  # from the checkpoint
    assert errors == pytest.approx(expected["val_mse"], rel=1e-3)  # dropout draws other masks than version 0.1 did
    assert not (fold / "checkpoint.pt").exists()


def test_runs_are_reported(folder: Path, run_command: Run) -> None:
    code, text = run_command(train.report.cli.main, "runs/tiny", "--format", "csv")
    assert code == 0, text
    metrics = load_run(folder / "runs/tiny/full-02ccdabb").summary["mean"]["hist"]
    assert str(metrics["pcc@10"]) in text
    assert "hycoclip" in text
    assert (folder / "runs/tiny/report/report.html").exists()


def test_a_study_goes_on(folder: Path, run_command: Run) -> None:
    command = json.loads((folder / "runs/tiny/sweep-tiny/study.json").read_text())["provenance"]["command"]
    argv = shlex.split(command)[1:]
    code, text = run_command(sweeps.cli.main, *argv)
    assert code == 0, text
    assert "the study has 3 trials or more: nothing to search" in text
    argv[argv.index("--trials") + 1] = "4"
    code, text = run_command(sweeps.cli.main, *argv)
    assert code == 0, text
    assert "1 trials, 3 done before" in text
    assert "trial 3" in text
