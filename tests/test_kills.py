"""Whatever stops extraction or training, and wherever: the same command goes on and ends in the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import Command
from tests.kills import kill_loop
from tests.small import TRAIN, cached, extraction, make_cache, slides, trained, unfinished

Start = Callable[..., Command]
HIST_EXTRACT = "from hist_cache.commands import hist_extract; raise SystemExit(hist_extract())"
CHECKPOINTS = "import train.fit.loop; train.fit.loop.CHECKPOINT_EVERY_S = 0\n"  # after every epoch
HIST_TRAIN = CHECKPOINTS + "from hist_cache.commands import hist_train; raise SystemExit(hist_train())"


@pytest.mark.slow
def test_extraction(tmp_path: Path, start_command: Start) -> None:
    """Of embeddings, then of tokens."""
    cache = tmp_path / "cache"
    argv = extraction(slides(tmp_path), cache, "--tokens-at", 4)

    def read(folder: Path) -> object:
        return cached(folder), unfinished(folder), (folder / "last.json").read_text()

    kill_loop(start_command, HIST_EXTRACT, argv, cache, read, lambda: cached(cache))


@pytest.mark.slow
def test_training(tmp_path: Path, start_command: Start) -> None:
    runs = tmp_path / "runs"
    argv = ["--cache", make_cache(tmp_path), "--runs", runs, *TRAIN, "--epochs", 3]

    def read(folder: Path) -> object:
        return trained(folder), unfinished(folder), sorted(p.name for p in folder.rglob("*") if p.is_file())

    kill_loop(start_command, HIST_TRAIN, argv, runs, read, lambda: trained(runs))
