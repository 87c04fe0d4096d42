"""Whatever stops extraction or training, and wherever: the same command goes on and ends in the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

import hist_cache.commands
import train.cli
from hist_cache.files import HOST
from tests.commands import Command
from tests.kills import kill_loop
from tests.small import TRAIN, Run, cached, extraction, slides, trained, unfinished

Start = Callable[..., Command]
HIST_EXTRACT = "from hist_cache.commands import hist_extract; raise SystemExit(hist_extract())"
CHECKPOINTS = "import train.fit.loop; train.fit.loop.CHECKPOINT_EVERY_S = 0\n"  # after every epoch
HIST_TRAIN = CHECKPOINTS + "from hist_cache.commands import hist_train; raise SystemExit(hist_train())"


@pytest.mark.slow
def test_extraction(tmp_path: Path, start_command: Start) -> None:
    """Of embeddings, then of tokens."""
    cache = tmp_path / "cache"
    argv = extraction(slides(tmp_path, rows=4, columns=6), cache, "--tokens-at", 4)

    def read(folder: Path) -> object:
        return cached(folder), unfinished(folder), (folder / "last.json").read_text()

    kill_loop(start_command, HIST_EXTRACT, argv, cache, read, lambda: cached(cache))


@pytest.mark.slow
def test_training(cache: Path, tmp_path: Path, start_command: Start) -> None:
    runs = tmp_path / "runs"
    argv = ["--cache", cache, "--runs", runs, *TRAIN, "--folds", 2, "--epochs", 3]

    def read(folder: Path) -> object:
        return trained(folder), unfinished(folder), sorted(p.name for p in folder.rglob("*") if p.is_file())

    kill_loop(start_command, HIST_TRAIN, argv, runs, read, lambda: trained(runs))


def test_what_a_kill_amid_a_checkpoint_left_is_removed(cache: Path, tmp_path: Path, run_command: Run) -> None:
    argv = ("--cache", cache, *TRAIN, "--fold", 0)
    assert run_command(train.cli.main, *argv)[0] == 0
    [metrics] = tmp_path.glob("runs/tiny/*/fold0/metrics.json")
    metrics.with_name("checkpoint.pt").write_bytes(b"of a fold that was killed before this was removed")
    assert run_command(train.cli.main, *argv)[0] == 0
    assert not metrics.with_name("checkpoint.pt").exists()
    metrics.unlink()
    leftover = metrics.with_name(f"checkpoint.pt.{HOST}-{2**30}-0123abcd.partial")
    leftover.write_bytes(b"half")
    assert run_command(train.cli.main, *argv)[0] == 0
    assert unfinished(tmp_path) == []


def test_ctrl_c_while_a_command_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.cli.parse", Mock(side_effect=KeyboardInterrupt))
    assert hist_cache.commands.hist_train() == 130
