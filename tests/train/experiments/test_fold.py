"""Folds that cannot end well: each ends in one line, or its result says what is wrong with it."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import shutil
import signal
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import extract.cli
import sweeps.cli
import train.experiments.claims
import train.fit.loop
import train.report.cli
from hist_cache import load_run
from hist_cache.errors import HistError, InputError
from hist_cache.runs import Fold
from tests.commands import Command
from tests.conftest import HIST_TRAIN, TINY_ENCODER, write_slide
from tests.train.models.toy import ToyConfig, ToyModel
from train.cli import main
from train.experiments.claims import claim_fold
from train.experiments.outputs import load_model
from train.metrics import divergence
from train.models import registry

Run = Callable[..., tuple[int, str]]
SMALL = ("--width", 8, "--depth", 1, "--epochs", 2, "--batch-size", 16, "--n-genes", 20, "--lr", 1e-3)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tiny slides; TWO has two spots."""
    where = tmp_path_factory.mktemp("fold")
    for i, slide in enumerate(("ONE", "THREE", "TWO")):
        rows, columns = (1, 4) if slide == "TWO" else (6, 10)
        write_slide(where / "hest", slide, rows=rows, columns=columns, seed=i)
    code = extract.cli.main(
        ["--ids", "ONE,THREE,TWO", "--dataset", "tiny", "--data-root", str(where / "hest"), "--cache",
         str(where / "cache"), "--encoder", TINY_ENCODER, "--random-weights", "--neighbors", "6"]
    )  # fmt: skip
    assert code == 0
    (where / "s.json").write_text('[{"train": ["ONE"], "val": ["TWO"], "test": ["THREE"]}]')
    return where / "cache"


def argv_of(cache: Path, *more: object) -> tuple[object, ...]:
    return ("--cache", cache, "--split", cache.parent / "s.json", *SMALL, *more)


def one_line(text: str, kind: str = "error") -> str:
    """The only error in what a command printed."""
    assert "Traceback" not in text
    [line] = [line for line in text.splitlines() if line.startswith(f"{kind}: ")]
    return line


def the_fold(where: Path) -> Path:
    [fold] = where.glob("runs/tiny/*/fold0")
    return fold


@pytest.fixture(scope="module")
def finished(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished fold."""
    where = tmp_path_factory.mktemp("finished")
    assert main([str(a) for a in argv_of(cache, "--runs", where / "runs", "--jobs", 1)]) == 0
    return where


@pytest.mark.parametrize("content", ["null", "[]", "{}", "7", '"x"', b"\xff", "", '{"split": null}', '{"split": {}}'])
@pytest.mark.parametrize("name", ["config.json", "metrics.json"])
def test_damaged_results(
    cache: Path, finished: Path, run_command: Run, tmp_path: Path, name: str, content: str | bytes
) -> None:
    shutil.copytree(finished / "runs", tmp_path / "runs")
    file = the_fold(tmp_path) / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    code, text = run_command(main, *argv_of(cache))
    assert code == 2, text
    assert one_line(text).startswith(f"error: {file.relative_to(tmp_path)}: ")


@pytest.mark.slow
def test_damaged_results_of_the_default_setting_in_a_sweep(
    cache: Path, finished: Path, run_command: Run, tmp_path: Path
) -> None:
    shutil.copytree(finished / "runs", tmp_path / "runs")
    (the_fold(tmp_path) / "metrics.json").write_text("null")
    code, text = run_command(
        sweeps.cli.main, *argv_of(cache, "--space", "alpha", "--objective", "mse", "--trials", 1, "--jobs", 1)
    )
    assert code == 2, text
    assert "fold0/metrics.json: " in one_line(text)


def test_a_leftover_checkpoint_that_cannot_be_removed(
    cache: Path, finished: Path, run_command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fold was killed between its last two steps; its folder has become read-only since."""
    shutil.copytree(finished / "runs", tmp_path / "runs")
    left = the_fold(tmp_path) / "checkpoint.pt"
    left.write_bytes(b"")

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        code, text = run_command(main, *argv_of(cache))
    assert code == 0, text
    assert left.exists()
    assert run_command(main, *argv_of(cache))[0] == 0
    assert not left.exists()


def test_a_model_that_cannot_be_made_without_values(
    cache: Path, run_command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory is not known beforehand, as of a user's model that reads weights from a file."""
    monkeypatch.setitem(registry._ENTRIES, "scaled", registry.ModelEntry("scaled", "a toy", ScaledModel, ToyConfig))
    code, text = run_command(
        main, "--cache", cache, "--model", "scaled", "--split", cache.parent / "s.json", *SMALL[4:]
    )
    assert code == 0, text


class ScaledModel(ToyModel):
    """A toy whose making needs a value of its weights."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.scale = float(self.layers[0].weight.std().item())


def test_a_damaged_model_is_not_loaded(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "runs", tmp_path / "runs")
    fold = the_fold(tmp_path)
    content = (fold / "model.safetensors").read_bytes()
    load_model(fold)
    recorded = json.loads((fold / "metrics.json").read_text())
    for digest in (True, False):  # version 0.1 recorded none: then only what cannot be a model is found
        for at in range(0, len(content), len(content) // 40 if digest else 1000):
            damaged = bytearray(content)
            damaged[at] ^= 0x10
            (fold / "model.safetensors").write_bytes(damaged if digest else content[:at])
            with pytest.raises(InputError, match=r"model\.safetensors: damaged"):
                load_model(fold)
        (fold / "metrics.json").write_text(json.dumps({k: v for k, v in recorded.items() if k != "model_digest"}))


def test_a_damaged_checkpoint(cache: Path, run_command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    epoch = train.fit.loop.train_epoch

    def stop(*args: object, **more: object) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        return epoch(*args, **more)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(train.fit.loop, "train_epoch", stop)
        assert run_command(main, *argv_of(cache))[0] == 130
    file = the_fold(tmp_path) / "checkpoint.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    code, text = run_command(main, *argv_of(cache))
    assert code == 1, text
    says = f"error: {file.relative_to(tmp_path)}: is damaged; delete it to start over, or give another --runs folder"
    assert one_line(text) == says
    file.unlink()
    assert run_command(main, *argv_of(cache))[0] == 0


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        (["--runs", "file"], 2, "error: --runs: file/tiny cannot be written (Not a directory)"),
        (["--runs", "file", "--dry-run"], 2, "error: --runs: file/tiny cannot be written (Not a directory)"),
        (["--runs", "/proc/none"], 2, "error: --runs: /proc/none/tiny cannot be written (No such file or directory)"),
        (["--width", 100000], 1, "give a smaller model (such as --width)"),
        (["--edge-spots", "drop"], 1, "TWO: no spot has a complete niche, so that --edge-spots drop leaves none"),
    ],
)
def test_what_ends_in_one_line(
    cache: Path, run_command: Run, tmp_path: Path, more: list[object], code: int, says: str
) -> None:
    (tmp_path / "file").touch()
    got, text = run_command(main, *argv_of(cache, *more))
    assert got == code, text
    assert says in one_line(text)
    assert not list(tmp_path.glob("runs/**/metrics.json"))


def test_memory_that_ends_while_training(cache: Path, run_command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[weakref.ref[torch.nn.Module]] = []

    def allocate(model: torch.nn.Module, *args: object, **more: object) -> None:
        assert all(before() is None for before in models), "a fold that failed keeps no memory"
        models.append(weakref.ref(model))
        torch.empty(2**60)

    monkeypatch.setattr(train.fit.loop, "train_epoch", allocate)
    code, text = run_command(main, *argv_of(cache, "--ablation", "full,clip"))
    assert code == 1, text
    assert len(models) == 2
    assert "Traceback" not in text
    assert text.count("out of memory; give a smaller model (such as --width) or --batch-size") == 2


@pytest.mark.parametrize("where", ["scipy.linalg.eigh", "torch.linalg.eigh"])
def test_principal_components_that_do_not_converge(
    cache: Path, run_command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def fail(*args: object, **more: object) -> None:
        kind = np.linalg.LinAlgError if "scipy" in where else torch.linalg.LinAlgError  # type: ignore[attr-defined]
        raise kind("did not converge")

    monkeypatch.setattr(where, fail)
    code, text = run_command(main, *argv_of(cache))
    if "scipy" in where:
        assert code == 1, text
        assert "ridge: the principal components of the embeddings cannot be computed" in one_line(text)
    else:  # only a picture is lost
        assert code == 0, text
        assert "geometry: the axes of its figure cannot be computed (did not converge)" in " ".join(text.split())
        assert not (the_fold(tmp_path) / "geometry.png").exists()


@pytest.mark.parametrize("more", [["--weight-decay", 1e4, "--lr", 0.1], ["--lr", 30, "--epochs", 20]])
def test_a_run_that_diverged_is_marked(cache: Path, run_command: Run, tmp_path: Path, more: list[object]) -> None:
    code, text = run_command(main, *argv_of(cache, *more))
    assert code == 0, text
    [reason] = Fold(the_fold(tmp_path)).metrics["diverged"]
    assert "is far worse than that of the train mean" in reason
    assert f"diverged: {reason}" in " ".join(text.split())
    assert load_run(the_fold(tmp_path).parent).summary["diverged"] == ["fold0"]
    assert "│ full, diverged" in text, "in the table of hist-train"
    code, text = run_command(train.report.cli.main, "runs", "--format", "csv")
    assert text.count('"full, diverged",run,') == 3, "in all tables of hist-report"
    assert '"full, diverged, permuted"' in text
    assert "full, diverged, fold 0: diverged: its MSE" in text


def test_skipped_steps_mark_a_run_too(
    cache: Path, run_command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    epoch = train.fit.loop.train_epoch
    monkeypatch.setattr(train.fit.loop, "train_epoch", lambda *a, **k: epoch(*a, **k) | {"skipped": 3.0})
    code, text = run_command(main, *argv_of(cache))
    assert code == 0, text
    assert "│ full, diverged" in text
    reason = "3 steps of the best epoch had a non-finite gradient and were skipped"
    assert Fold(the_fold(tmp_path)).metrics["diverged"] == [reason]


def test_a_short_run_has_not_diverged(finished: Path) -> None:
    metrics = Fold(the_fold(finished)).metrics
    assert metrics["diverged"] == []
    assert divergence(4.0, 1.0, 4.0) == [], "predicting 0 is where training begins"
    assert divergence(30.0, 2.0, 29.0) == [], "also where expression is far from 0"
    assert len(divergence(50.0, 2.0, 29.0)) == 1


def test_test_slides_of_two_spots_have_no_pcc(cache: Path, run_command: Run, tmp_path: Path) -> None:
    (tmp_path / "two.json").write_text('[{"train": ["ONE"], "val": ["THREE"], "test": ["TWO"]}]')
    code, text = run_command(main, *argv_of(cache), "--split", "two.json")
    assert code == 0, text
    metrics = Fold(the_fold(tmp_path)).metrics
    assert metrics["spots"] == {"TWO": 2}
    assert set(metrics["pooled"]) == set(metrics["slides"]["TWO"]) == {"mse", "mae"}
    assert "no PCC where there are fewer than 3 test spots: TWO has 2 spots" in " ".join(text.split())
    assert "PCC@" not in text.replace("no PCC", "")
    (tmp_path / "both.json").write_text(
        '[{"train": ["ONE"], "val": ["THREE"], "test": ["TWO"]}, {"train": ["ONE"], "val": ["TWO"], "test": ["THREE"]}]'
    )
    code, text = run_command(main, *argv_of(cache), "--split", "both.json")
    assert code == 0, text
    assert "PCC@10" in text
    code, text = run_command(train.report.cli.main, "runs")
    assert code == 0, text
    assert "TWO has 2 spots" in " ".join(text.split())


@pytest.mark.slow
def test_two_commands_on_the_same_runs_where_locks_fail(
    cache: Path, start_command: Callable[..., Command], tmp_path: Path
) -> None:
    """Where locks work, and where they do nothing, see tests/test_two_at_once.py."""
    script = (
        "import errno, fcntl\n"
        "def no_locks(*_): raise OSError(errno.ENOLCK, 'no locks available')\n"
        f"fcntl.flock = no_locks\n{HIST_TRAIN}"
    )
    argv = ("--cache", cache, "--runs", tmp_path / "runs", "--split", "loso", "--folds", 2, *SMALL, "--jobs", 1)
    both = [start_command(script, *argv) for _ in range(2)]
    texts = [command.communicate()[0] for command in both]
    assert not any("Traceback" in text for text in texts), texts
    assert [command.returncode for command in both] == [0, 0], texts
    [run] = (tmp_path / "runs/tiny").glob("full-*")
    assert [fold.folder.name for fold in load_run(run).folds] == ["fold0", "fold1"]
    assert not list(tmp_path.rglob("*partial*"))
    assert not list(tmp_path.rglob("*.lock"))


def test_a_fold_is_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(claim_fold(tmp_path))
        with pytest.raises(HistError, match="another command is training this fold"), claim_fold(tmp_path):
            pass
    with claim_fold(tmp_path):
        pass

    def no_locks(*_: object) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(train.experiments.claims.fcntl, "flock", no_locks)
    monkeypatch.setattr(train.experiments.claims, "_without_locks", set())
    with caplog.at_level(logging.WARNING), claim_fold(tmp_path), claim_fold(tmp_path):
        pass
    assert caplog.text.count(f"{tmp_path}: no locks there (no locks available); two commands at once") == 1
