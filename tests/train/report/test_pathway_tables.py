"""Pathways of finished runs, computed again from their predictions, and `hist-report --pathways`."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import pearsonr

from tests.train.report.fake_runs import GENES, write_run
from train.report.cli import main, terminal_tables
from train.report.pathway_tables import ALL_PATHWAYS, pathway_tables
from train.report.reading import read_results
from train.report.results import Results
from train.report.sections import ReportRequest

Run = Callable[..., tuple[int, str]]
SETS = {"FIRST": GENES[:5], "SECOND": [*GENES[10:13], "ELSEWHERE"], "SMALL": GENES[:2]}
TESTS = [["S0", "S1"], ["S2"]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    write_run(root, (0.8, 0.7), predictions=True, tests=TESTS)
    write_run(root, (0.3, 0.2), predictions=True, tests=TESTS, change={"variant.name": "no_hea"})
    return root


@pytest.fixture(scope="module")
def results(runs: Path) -> Results:
    return read_results([runs])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "sets.gmt"
    path.write_text("".join("\t".join([name, "", *genes]) + "\n" for name, genes in SETS.items()))
    return path


def by_hand(results: Results, run: int, genes: list[str]) -> list[float]:
    """PCC of the scores of a set in each fold."""
    found = []
    for fold in results.runs[run].folds:
        table = fold.fold.predictions
        columns = [GENES.index(gene) for gene in genes]
        scores = []
        for values in (table.X, table.layers["truth"]):
            score = np.empty(table.n_obs)
            for slide in fold.split.test:
                rows = (table.obs["slide"] == slide).to_numpy()
                own = table.layers["truth"][rows][:, columns].astype(float)
                score[rows] = ((values[rows][:, columns] - own.mean(0)) / own.std(0)).mean(1)
            scores.append(score)
        found.append(float(pearsonr(*scores).statistic))
    return found


def test_the_table_against_scipy(results: Results, file: Path) -> None:
    [table] = pathway_tables(results, file)
    assert [column.title for column in table.columns] == ["genes", "full", "no_hea"]
    rows = {row.label: row.cells for row in table.rows}
    assert set(rows) == {ALL_PATHWAYS, "FIRST", "SECOND"}
    assert table.rows[0].label == ALL_PATHWAYS
    assert {name: cells[0].text for name, cells in rows.items()} == {ALL_PATHWAYS: "–", "FIRST": "5", "SECOND": "3"}
    for i in (0, 1):
        first, second = by_hand(results, i, GENES[:5]), by_hand(results, i, GENES[10:13])
        for name, values in (("FIRST", first), ("SECOND", second)):
            assert rows[name][1 + i].value == pytest.approx(np.mean(values))
            assert rows[name][1 + i].spread == pytest.approx(np.std(values, ddof=1))
        assert rows[ALL_PATHWAYS][1 + i].value == pytest.approx(np.mean([first, second]))


@pytest.mark.slow
def test_the_report_shows_pathways(runs: Path, results: Results, file: Path, run_command: Run, tmp_path: Path) -> None:
    code, text = run_command(main, runs, "--out", tmp_path / "out", "--pathways", file)
    assert code == 0, text
    assert "PCC pathway by pathway" in text
    with (tmp_path / "out/tables/pathways-tiny.csv").open(newline="") as table:
        assert {row["pathway"] for row in csv.DictReader(table)} == {ALL_PATHWAYS, "FIRST", "SECOND"}
    assert "Pathways" in (tmp_path / "out/report.html").read_text()
    titles = [[table.title for table in terminal_tables(results, ReportRequest(pathways=p))] for p in (file, None)]
    assert ["PCC pathway by pathway" in " ".join(own) for own in titles] == [True, False]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("A\tb\tGENE1\tGENE2\n", "none of its 1 gene sets has 3 genes in a run's panel"),
        ("GENE1\nGENE2\n", "line 1: no GMT; give name, description and genes, separated by tabs"),
        (None, "no such file"),
    ],
)
def test_wrong_files_end_in_one_line(
    runs: Path, run_command: Run, tmp_path: Path, content: str | None, says: str
) -> None:
    path = tmp_path / "sets.gmt"
    if content is not None:
        path.write_text(content)
    code, text = run_command(main, runs, "--out", tmp_path / "out", "--pathways", path)
    assert code == 2, text
    assert f"--pathways {path}: {says}" in text.replace("\n", " ")
    assert not (tmp_path / "out").exists()
