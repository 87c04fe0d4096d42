"""Runs on disk: which folders are folds, and what is said where there is none."""

from pathlib import Path

import pytest

from hist_cache.errors import InputError
from hist_cache.runs import CHECKPOINT, METRICS, load_run


def write_fold(run: Path, name: str, file: str = METRICS) -> None:
    (run / name).mkdir(parents=True)
    (run / name / file).write_text("{}")


def test_folds_are_the_finished_ones_by_number(tmp_path: Path) -> None:
    for name in ("fold10", "fold2", "fold0"):
        write_fold(tmp_path, name)
    write_fold(tmp_path, "fold1", CHECKPOINT)
    assert [fold.folder.name for fold in load_run(tmp_path).folds] == ["fold0", "fold2", "fold10"]


def test_folders_that_are_not_a_numbered_fold_are_ignored(tmp_path: Path) -> None:
    for name in ("fold0_old", "fold", "folds", "fold-1", "fold1.bak", "fold0"):
        write_fold(tmp_path, name)
    assert [fold.folder.name for fold in load_run(tmp_path).folds] == ["fold0"]


def test_a_folder_without_a_finished_fold(tmp_path: Path) -> None:
    write_fold(tmp_path, "fold0", CHECKPOINT)
    write_fold(tmp_path, "fold0_old")
    with pytest.raises(InputError, match=r"no finished run here \(looked for fold\*/metrics.json\)"):
        load_run(tmp_path)


def test_unreadable_json_is_one_line(tmp_path: Path) -> None:
    write_fold(tmp_path, "fold0")
    fold = load_run(tmp_path).folds[0]
    assert fold.metrics == {}
    assert not fold.stopped
    (fold.folder / METRICS).write_text("{")
    with pytest.raises(InputError, match=r"metrics\.json: not readable"):
        _ = fold.metrics
