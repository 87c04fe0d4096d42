"""Several seeds and other numbers in one command: their runs have the names that single commands give them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from train.cli import main

Run = Callable[..., tuple[int, str]]
SMALL = (
    *("--split", "patient", "--folds", 2, "--width", 8, "--depth", 1, "--epochs", 2, "--batch-size", 16),
    *("--n-genes", 20, "--lr", 1e-3, "--precision", "fp32"),
)


def names(text: str) -> list[str]:
    """Names of the runs that a dry run lists, in order."""
    return re.findall(r"protocol paper; \S+/([\w-]+)\n", text)


def dry_run(run_command: Run, cache: Path, *argv: object) -> str:
    code, text = run_command(main, "--cache", cache, *SMALL, *argv, "--dry-run")
    assert code == 0, text
    return text


def test_splits_are_the_same_for_all_seeds_and_drawn_with_the_first(cache: Path, run_command: Run) -> None:
    text = dry_run(run_command, cache, "--seed", "1,2")
    assert "splits are drawn with seed 1 for all of --seed 1,2, so that runs differ by training alone" in text
    assert re.findall(r"20 genes, 6 neighbours, width 8, (seed \d), protocol", text) == ["seed 1", "seed 2"]
    assert text.count("fold 0: train") == 1, "each split once"
    first, second = names(text)
    alone = dry_run(run_command, cache, "--seed", 1)
    assert names(alone) == [first], "a run that was made alone is found again"
    assert "splits are drawn" not in alone
    own_splits = names(dry_run(run_command, cache, "--seed", 2))
    assert own_splits != [second], "which has other slides in its folds"
    assert names(dry_run(run_command, cache, "--seed", 2, "--split-seed", 1)) == [second]
    assert names(dry_run(run_command, cache, "--seed", 2, "--split-seed", 2)) == own_splits


def test_nothing_is_drawn_where_each_slide_is_left_out(cache: Path, run_command: Run) -> None:
    loso = ("--split", "loso")
    both = names(dry_run(run_command, cache, *loso, "--seed", "1,2"))
    assert both == [name for seed in (1, 2) for name in names(dry_run(run_command, cache, *loso, "--seed", seed))]
    text = dry_run(run_command, cache, *loso, "--seed", 2, "--split-seed", 1)
    assert "--split-seed 1 changes nothing: no splits are drawn here" in text
    assert names(text) == both[1:]


def test_lists_of_numbers_are_the_runs_of_single_ones(cache: Path, run_command: Run) -> None:
    text = dry_run(run_command, cache, "--alpha", "0.1,0.2", "--smooth", "0,0.5", "--model", "hist,knn")
    assert "width 8, smooth 0.5, alpha 0.2, protocol" in text
    singles = [
        names(dry_run(run_command, cache, "--alpha", alpha, "--smooth", smooth))[0]
        for smooth in (0, 0.5)
        for alpha in (0.1, 0.2)
    ]
    assert [name for name in names(text) if name.startswith("full")] == singles
    assert len([name for name in names(text) if name.startswith("knn")]) == 2, "which has no alpha"


def test_ensembles_of_neighbouring_seeds_share_members(cache: Path, run_command: Run) -> None:
    assert "ensembles of 2 have members of the same seeds" in dry_run(
        run_command, cache, "--seed", "1,2", "--ensemble", 2
    )
    assert "members of the same" not in dry_run(run_command, cache, "--seed", "1,3", "--ensemble", 2)


def test_runs_of_several_seeds_are_one_row(cache: Path, run_command: Run, tmp_path: Path) -> None:
    code, text = run_command(main, "--cache", cache, *SMALL, "--seed", "1,2", "--device", "cpu")
    assert code == 0, text
    assert "full, mean of 2 seeds" in " ".join(text.split())
    assert "± over 2 seeds" in " ".join(text.split())
    configs = [json.loads(file.read_text()) for file in sorted(tmp_path.glob("runs/tiny/*/fold0/config.json"))]
    assert sorted((c["loop"]["seed"], c.get("split_seed")) for c in configs) == [(1, None), (2, 1)]
    assert configs[0]["split"] == configs[1]["split"]
    assert run_command(main, "--cache", cache, *SMALL, "--device", "cuda:77")[0] == 2
