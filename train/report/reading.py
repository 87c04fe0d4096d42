"""Finished runs read from their folders, in the order of tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hist_cache.errors import InputError
from hist_cache.runs import CONFIG, METRICS, Fold, clean_run, fold_folders
from train.experiments.protocols import protocol_names
from train.models.registry import model_entries
from train.models.variants import load_variants
from train.report.fold_result import read_fold
from train.report.results import Results, RunResult, with_labels
from train.report.run_settings import RANKING


def read_results(paths: Sequence[str | Path]) -> Results:
    """Read all finished folds in and below some folders.

    Args:
        paths: folders of a run, of a dataset, or of all runs.

    Returns:
        The runs in the order of the paths; below one path by setting, then by variant.

    Raises:
        InputError: A folder holds nothing finished, or a file of another version.
    """
    runs: dict[Path, RunResult] = {}
    for path in map(Path, paths):
        found = {file.parent for file in path.glob(f"**/fold*/{METRICS}")}
        folders = sorted({fold.parent for fold in found if fold in fold_folders(fold.parent)})
        if not folders:
            raise InputError(f"{path}: no finished run here (looked for fold*/{METRICS} in it and below)")
        for run in sorted(map(read_run, folders), key=_rank):
            runs.setdefault(run.folder.resolve(), run)
    return Results(tuple(with_labels(list(runs.values()))))


def read_run(folder: Path) -> RunResult:
    """Read the finished folds of one run; the run has no label yet.

    Raises:
        InputError: A file cannot be read, or is of another version.
    """
    clean_run(folder)
    folders = fold_folders(folder)
    folds = tuple(read_fold(path) for path in folders if Fold(path).finished)
    for fold in folds[1:]:
        if fold.setting.identity() != folds[0].setting.identity():
            raise InputError(
                f"{fold.fold.folder / CONFIG}: another setting than that of {folds[0].fold.folder.name} beside it; "
                "move the fold to a folder of its own"
            )
    first = folds[0].setting  # equal ones are kept once, as they are large
    folds = tuple(replace(fold, setting=first) if fold.setting == first else fold for fold in folds)
    unfinished = [path.name for path in folders if (path / CONFIG).exists() and not Fold(path).finished]
    return RunResult(folder, folds, tuple(unfinished))


def _rank(run: RunResult) -> tuple[Any, ...]:
    """A key to sort runs by: settings of `RANKING`, model, other settings, variant."""
    models = [entry.name for entry in model_entries()]
    variants = list(load_variants())

    def place(name: str | None, names: list[str]) -> int:
        return names.index(name) if name in names else len(names)

    def comparable(keys: Iterable[str]) -> list[tuple[str, Any]]:
        return [(type(settings[k]).__name__, settings[k]) for k in keys]  # runs of all versions compare

    name = run.setting.protocol.name
    settings = run.settings | {"protocol": f"{place(name, protocol_names()):2} {name}"}
    others = comparable(k for k in settings if k not in RANKING)
    model = (place(run.model, models), run.model)
    return (*comparable(RANKING), *model, *others, place(run.variant, variants), run.folder)
