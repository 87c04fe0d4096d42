"""A run on other contents of the same slides is another run: hist-train, --resume, hist-report, and studies."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import anndata
import pytest

import extract.cli
import sweeps.cli
import train.cli
import train.fit.loop
import train.report.cli
from hist_cache import load_run
from tests.conftest import TINY_ENCODER, write_slide

Run = Callable[..., tuple[int, str]]
SMALL = ("--width", 8, "--depth", 1, "--epochs", 2, "--batch-size", 16, "--lr", 1e-3)


def extract_slides(where: Path) -> None:
    code = extract.cli.main(
        ["--ids", "TINY1-3", "--dataset", "tiny", "--data-root", str(where / "hest"), "--cache", str(where / "cache"),
         "--encoder", TINY_ENCODER, "--random-weights", "--neighbors", "6"]
    )  # fmt: skip
    assert code == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tiny slides in a cache, and a second cache from which the counts of TINY1 were corrected."""
    first, second = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("corrected")
    for i in range(1, 4):
        write_slide(first / "hest", f"TINY{i}", rows=4, columns=8, seed=i)
    extract_slides(first)
    shutil.copytree(first, second, dirs_exist_ok=True)
    file = second / "hest/st/TINY1.h5ad"
    table = anndata.read_h5ad(file)
    table.X.data[0] += 100
    table.write_h5ad(file)
    next(second.glob("cache/tiny/*/TINY1.h5")).unlink()  # as hist-extract says where it finds it stale
    extract_slides(second)
    (first / "corrected").symlink_to(second / "cache")
    (first / "genes.txt").write_text("".join(f"GENE{i}\n" for i in range(20)))  # counts do not choose the panel
    return first


def folders(where: Path) -> list[str]:
    return sorted(p.name for p in (where / "runs/tiny").iterdir() if p.name.startswith("full-"))


def stop_in_first_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    epoch = train.fit.loop.train_epoch

    def stop(*args: object, **more: object) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        return epoch(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(train.fit.loop, "train_epoch", stop)


def test_corrected_counts_are_another_run(made: Path, run_command: Run, tmp_path: Path) -> None:
    argv = ("--split", "loso", "--fold", 0, "--genes", made / "genes.txt", *SMALL)
    assert run_command(train.cli.main, "--cache", made / "cache", *argv)[0] == 0
    [name] = folders(tmp_path)
    before = {p: p.read_bytes() for p in (tmp_path / "runs/tiny" / name / "fold0").iterdir()}
    code, text = run_command(train.cli.main, "--cache", made / "corrected", *argv)
    assert code == 0, text
    assert "not run again" not in text
    assert f"runs/tiny/{name}: made before its slides changed (TINY1 has other counts)" in " ".join(text.split())
    assert len(folders(tmp_path)) == 2
    [other] = set(folders(tmp_path)) - {name}
    assert other.startswith(f"{name}-")
    assert {p: p.read_bytes() for p in before} == before, "what was computed is there as it was"
    truth = [load_run(tmp_path / "runs/tiny" / n).folds[0].predictions.layers["truth"] for n in (name, other)]
    assert (truth[0] != truth[1]).any()

    for cache, own in (("cache", name), ("corrected", other)):
        code, text = run_command(train.cli.main, "--cache", made / cache, *argv)
        assert code == 0, text
        assert "1 done before, not run again" in text
        assert f"runs/tiny/{own}: summary.json" in " ".join(text.split())

    code, text = run_command(train.report.cli.main, "runs", "--format", "csv")
    assert code == 0, text
    assert len({line.split('"')[1] for line in text.splitlines() if '",run,' in line}) == 2, "told apart by counts"
    assert '"full, counts ' in text
    assert "p against" not in text, "they do not predict the same"


def test_corrected_counts_that_change_the_panel_are_said_too(made: Path, run_command: Run, tmp_path: Path) -> None:
    argv = ("--split", "loso", "--fold", 0, "--n-genes", 20, *SMALL)
    assert run_command(train.cli.main, "--cache", made / "cache", *argv)[0] == 0
    [name] = folders(tmp_path)
    code, text = run_command(train.cli.main, "--cache", made / "corrected", *argv, "--alpha", 0.3)
    assert code == 0, text
    assert "made before" not in text, "other options are another run in any case"
    code, text = run_command(train.cli.main, "--cache", made / "corrected", *argv)
    assert code == 0, text
    says = f"runs/tiny/{name}: made before its slides changed (TINY1 has other counts), and the gene panel with them"
    assert says in " ".join(text.split())


def test_a_stopped_run_does_not_go_on_with_corrected_counts(
    made: Path, run_command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ("--split", "loso", "--fold", 0, "--genes", made / "genes.txt", *SMALL)
    with monkeypatch.context() as patch:
        stop_in_first_epoch(patch)
        assert run_command(train.cli.main, "--cache", made / "cache", *argv)[0] == 130
    [name] = folders(tmp_path)
    code, text = run_command(train.cli.main, "--cache", made / "corrected", *argv, "--resume")
    assert code == 2, text
    assert "--resume: no stopped run in" in text
    # The folder of the corrected run, with the checkpoint of the other: what it was made for stands in the checkpoint.
    code, text = run_command(train.cli.main, "--cache", made / "corrected", *argv)
    assert code == 0, text
    [other] = set(folders(tmp_path)) - {name}
    for file in ("checkpoint.pt", "config.json"):
        shutil.copy(tmp_path / "runs/tiny" / name / "fold0" / file, tmp_path / "runs/tiny" / other / "fold0" / file)
    (tmp_path / "runs/tiny" / other / "fold0/metrics.json").unlink()
    code, text = run_command(train.cli.main, "--cache", made / "corrected", *argv)
    assert code == 2, text
    text = " ".join(text.split())
    assert "checkpoint.pt: was made for another run: digests.TINY1.counts" in text
    assert "delete it to start over, or give another --runs folder" in text
    code, text = run_command(train.cli.main, "--cache", made / "cache", *argv, "--resume")
    assert code == 0, text
    assert "going on with the stopped run" in text


def test_folds_of_version_0_1_do_not_know_what_they_were_made_from(
    made: Path, run_command: Run, tmp_path: Path
) -> None:
    argv = ("--cache", made / "cache", "--split", "loso", "--fold", 0, "--n-genes", 20, *SMALL)
    assert run_command(train.cli.main, *argv)[0] == 0
    [file] = tmp_path.glob("runs/tiny/*/fold0/config.json")
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "digests"}))
    code, text = run_command(train.cli.main, *argv)
    assert code == 0, text
    assert "1 done before, not run again" in text
    assert "fold0 made by version 0.1, which did not record what its slides held" in " ".join(text.split())


@pytest.mark.slow
def test_a_study_is_of_the_slides_as_they_were(made: Path, run_command: Run) -> None:
    argv = (
        "--split",
        "loso",
        "--folds",
        1,
        "--genes",
        made / "genes.txt",
        *SMALL,
        "--trials",
        1,
        "--name",
        "s",
        "--space",
        "alpha",
        "--jobs",
        1,
    )
    code, text = run_command(sweeps.cli.main, "--cache", made / "cache", *argv)
    assert code == 0, text
    code, text = run_command(sweeps.cli.main, "--cache", made / "corrected", *argv)
    assert code == 2, text
    assert "TINY1 has other counts" in " ".join(text.split())
    assert "give another --name" in text
