"""Runs within slices beside others: in tables of their own, without published rows and without p-values across."""

from __future__ import annotations

from pathlib import Path

from tests.train.report.fake_runs import RIDGE, write_run
from train.report.checklist import patient_split
from train.report.context import result_warnings
from train.report.paper_tables import cost_table, results_tables
from train.report.reading import read_results
from train.report.results import Results
from train.report.significance import references

COLORECTUM = {"dataset": "colorectum", "n_genes": 200}
WITHIN = COLORECTUM | {"split_kind": "within"}
TESTS = [[f"S{n}@test{i}" for n in range(3)] for i in range(3)]


def both(root: Path) -> Results:
    write_run(root, [0.5, 0.6, 0.7], change=COLORECTUM)
    write_run(root, [0.4, 0.5, 0.6], change=COLORECTUM | RIDGE)
    write_run(root, [0.7, 0.8, 0.9], change=WITHIN, tests=TESTS)
    write_run(root, [0.6, 0.8, 0.8], change=WITHIN | RIDGE, tests=TESTS)
    return read_results([root])


def test_they_have_tables_of_their_own(tmp_path: Path) -> None:
    results = both(tmp_path)
    across, within = sorted(results_tables(results), key=lambda table: "within" in table.title)
    assert (across.title, within.title) == ("Metrics, colorectum", "Metrics, colorectum, within slices")
    assert {row.kind for row in across.rows} >= {"published", "method"}
    assert not {"published", "method"} & {row.kind for row in within.rows}
    assert any("splits are not published (within)" in note for note in within.notes)
    assert all("within slices" in row.label for row in within.rows if row.kind == "run")
    alone = results.subset(run for run in results.runs if run.is_within)
    assert not any("published" in row.label for row in cost_table(alone).rows)
    assert any("published" in row.label for row in cost_table(results).rows)


def test_none_is_tested_against_one_across_slices(tmp_path: Path) -> None:
    results = both(tmp_path)
    chosen = references(results)
    assert len(chosen) == 2
    for run in results.runs:
        if run.label in chosen:
            assert chosen[run.label].is_within == run.is_within
    mixed = results.subset(run for run in results.runs if run.is_within == (run.model == "hist"))
    assert references(mixed) == {}
    notes = [note for table in results_tables(mixed) for note in table.notes]
    assert any("is within slices" in note for note in notes)


def test_readers_are_told(tmp_path: Path) -> None:
    results = both(tmp_path)
    assert "colorectum, within slices: test spots are on slides that were trained on" in "\n".join(
        result_warnings(results)
    )
    for run in results.runs:
        if run.is_within:
            assert patient_split(run).state == "no"
            assert run.folds[0].pictured == ("S0", "S1", "S2")
        else:
            assert run.folds[0].pictured == ("S0",)
