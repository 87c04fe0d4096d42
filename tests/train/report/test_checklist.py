"""What reviewers ask for: each answer on runs that have it, that do not, and that do not say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.train.report.fake_runs import RIDGE, numbers, write_run
from train.report.checklist import answers, checklist_table
from train.report.reading import read_results
from train.report.results import Results

VALUES = (0.7, 0.72, 0.74)
TRAINED = {"T1": "a", "T2": "b", "V1": "c"}
ASKED = [
    "split by patient", "external cohort", "gene panel from train slides", "no test slide used for selection",
    "PCC pooled and per slide", "tuned ridge with the same inputs", "3 seeds at least", "relative measures",
    "pathway scores", "p-values corrected for their number",
]  # fmt: skip


def write_known(root: Path, patients: Mapping[str, str] | None = None, change: Mapping[str, Any] | None = None) -> Path:
    """A run that tests S0, S1 and S2, with the patients of its slides."""
    return write_run(root, VALUES, change={"patients": dict(patients or {}), **(change or {})})


def add_metrics(folder: Path, controls: Mapping[str, Any], **entries: Any) -> None:
    for file in folder.glob("fold*/metrics.json"):
        metrics = json.loads(file.read_text())
        metrics["controls"] |= controls
        file.write_text(json.dumps(metrics | entries))


def answer(results: Results, asked: str, label: str = "full", has_pathways: bool = False) -> tuple[str, str]:
    run = next(run for run in results.runs if run.label == label)
    found = answers(run, results, None, has_pathways)[asked]
    return found.state, found.evidence


def test_patients(tmp_path: Path) -> None:
    asked = "split by patient"
    write_known(tmp_path / "apart", TRAINED | {"S0": "d", "S1": "e", "S2": "d"})
    assert answer(read_results([tmp_path / "apart"]), asked) == (
        "yes",
        "no patient of a test slide is in train or validation, in all 3 folds",
    )
    write_known(tmp_path / "val", TRAINED | {"S0": "d", "S1": "c", "S2": "d"})  # the patient of a validation slide
    assert answer(read_results([tmp_path / "val"]), asked) == (
        "no",
        "both in test and in train or validation: tiny c in fold 1",
    )
    write_known(tmp_path / "unknown", TRAINED | {"S0": "d", "S2": "d"})
    assert answer(read_results([tmp_path / "unknown"]), asked) == ("unknown", "the patients of S1 are not listed")
    write_known(tmp_path / "both", TRAINED | {"S0": "a", "S2": "d"})  # that one is shared is sure
    assert answer(read_results([tmp_path / "both"]), asked)[0] == "no"


def test_patients_of_two_datasets_with_the_same_name_are_two(tmp_path: Path) -> None:
    write_known(tmp_path, TRAINED | {"S0": "a", "S1": "a", "S2": "b"}, {"test_dataset": "elsewhere"})
    results = read_results([tmp_path])
    assert answer(results, "split by patient")[0] == "yes"
    assert answer(results, "external cohort") == ("yes", "trained on tiny, tested on elsewhere")


def test_panels(tmp_path: Path) -> None:
    asked = "gene panel from train slides"
    write_known(tmp_path)
    assert answer(read_results([tmp_path]), asked)[0] == "no"
    train = {"protocol.panel_from": "train", "panel": ""}
    write_known(tmp_path / "train", change=train)
    assert answer(read_results([tmp_path / "train"]), asked)[0] == "yes"
    write_known(tmp_path / "file", change=train | {"genes": "mine.txt"})
    assert answer(read_results([tmp_path / "file"]), asked)[0] == "unknown"


def test_what_folds_have_measured(tmp_path: Path) -> None:
    folder = write_known(tmp_path)
    results = read_results([tmp_path])
    for asked in ("tuned ridge with the same inputs", "relative measures", "pathway scores"):
        assert answer(results, asked)[0] == "no"
    assert answer(results, "pathway scores", has_pathways=True)[0] == "yes"
    add_metrics(folder, {"ridge_tuned": numbers(0.6)}, ranks={"spearman@10": 0.5})
    results = read_results([tmp_path])
    for asked in ("tuned ridge with the same inputs", "relative measures"):
        assert answer(results, asked)[0] == "yes"
    assert answer(results, "PCC pooled and per slide") == (
        "yes",
        "over all test spots of a fold, and for each of 3 test slides by itself",
    )
    write_known(tmp_path, change=RIDGE)
    assert answer(read_results([tmp_path]), "tuned ridge with the same inputs", "ridge")[0] == "yes"


def test_seeds_are_those_of_the_same_setting(tmp_path: Path) -> None:
    asked = "3 seeds at least"
    for seed in (1, 2):
        write_known(tmp_path, change={"loop.seed": seed})
    write_known(tmp_path, change={"loop.seed": 3, "model.alpha": 0.3})
    first = "full, alpha 0.2, seed 1"
    assert answer(read_results([tmp_path]), asked, first) == ("no", "2 seeds among the runs shown: 1, 2")
    write_known(tmp_path, change={"loop.seed": 3})
    results = read_results([tmp_path])
    assert answer(results, asked, first) == ("yes", "3 seeds among the runs shown: 1, 2, 3")
    assert answer(results, asked, "full, alpha 0.3, seed 3") == ("no", "1 seed among the runs shown: 3")


def test_selection_and_what_is_tested(tmp_path: Path) -> None:
    asked = "no test slide used for selection"
    for name, change in (("best", {}), ("last", {"protocol.tested": "last"}), ("ridge", RIDGE)):
        write_known(tmp_path / name, change=change)
    state, evidence = answer(read_results([tmp_path / "best"]), asked)
    assert (state, evidence.split(" are ")[0]) == ("yes", "the epoch and all penalties")
    assert answer(read_results([tmp_path / "last"]), asked)[1].startswith("the last epoch is tested, penalties")
    assert answer(read_results([tmp_path / "ridge"]), asked, "ridge")[1].startswith("penalties are chosen on")


def test_tests_need_another_run_and_two_folds(tmp_path: Path) -> None:
    asked = "p-values corrected for their number"
    write_known(tmp_path)
    assert answer(read_results([tmp_path]), asked)[0] == "no"
    other = write_run(tmp_path, (0.6, 0.65, 0.7), change={"variant.name": "clip"})
    results = read_results([tmp_path])
    assert [answer(results, asked, label)[0] for label in ("full", "clip")] == ["yes", "yes"]
    for i in (1, 2):
        (other / f"fold{i}/metrics.json").unlink()
    assert answer(read_results([tmp_path]), asked, "clip")[0] == "no"


@pytest.mark.parametrize("has_pathways", [True, False])
def test_the_table_joins_runs_with_the_same_answer(tmp_path: Path, has_pathways: bool) -> None:
    write_known(tmp_path)
    write_run(tmp_path, (0.6, 0.65, 0.7), change={"variant.name": "clip", "test_dataset": "elsewhere"})
    results = read_results([tmp_path])
    table = checklist_table(results, None, has_pathways)
    assert list(dict.fromkeys(row.label for row in table.rows)) == ASKED
    cohort = [[cell.text for cell in row.cells[:2]] for row in table.rows if row.label == "external cohort"]
    assert sorted(cohort) == [["no", results.runs[0].label], ["yes", results.runs[1].label]]
    pathways = [[cell.text for cell in row.cells[:2]] for row in table.rows if row.label == "pathway scores"]
    assert pathways == [["yes" if has_pathways else "no", "all runs"]]


def test_seeds_with_the_same_answer_are_named_once(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        write_known(tmp_path, change={"loop.seed": seed})
    write_known(tmp_path, change={"variant.name": "clip"})
    table = checklist_table(read_results([tmp_path]))
    asked = [[cell.text for cell in row.cells[:2]] for row in table.rows if row.label == "3 seeds at least"]
    assert asked == [["yes", "full, 3 seeds"], ["no", "clip, seed 42"]]
