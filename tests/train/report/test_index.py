"""Many runs: an index with a line for each, and pages of some of them each."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hist_cache.errors import InputError
from tests.accessibility import serious_faults
from tests.commands import make_quick
from tests.train.report.fake_runs import write_run
from train.report import index
from train.report.cli import main
from train.report.figures import MAX_HEIGHT, picture
from train.report.index import page_parts, write_report
from train.report.index_tables import index_table, index_text
from train.report.paper_tables import results_tables
from train.report.reading import read_results
from train.report.results import Results
from train.report.sections import ReportRequest

Run = Callable[..., tuple[int, str]]
SKILLS = {"full": 0.7, "no_hea": 0.72, "clip": 0.5}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    root = tmp_path_factory.mktemp("runs")
    for variant, skill in SKILLS.items():
        write_run(root, (skill, skill + 0.02), change={"variant.name": variant}, predictions=True)
    return read_results([root])


@pytest.fixture(scope="module")
def index_file(results: Results, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        patch.setattr(index, "MAX_RUNS", 2)
        return write_report(results, tmp_path_factory.mktemp("report"), ReportRequest())


def test_the_files_and_their_links(index_file: Path) -> None:
    folder = index_file.parent
    assert {path.name for path in folder.iterdir()} == {
        *("report.html", "report-001.html", "report-002.html", "tables", "figures")
    }
    text = index_file.read_text()
    assert set(re.findall(r'href="(?!#)([^"]+)"', text)) == {"report-001.html", "report-002.html"}
    assert "3 runs are on 2 pages of 2 runs at most" in text
    assert "Highest PCC@50 of 3 runs: no_hea, 0.630 ± 0.014." in text
    second = (folder / "report-002.html").read_text()
    assert set(re.findall(r'href="(?!#)([^"]+)"', second)) == {"report.html", "report-001.html"}
    assert "clip" in second
    assert "no_hea" not in second
    with (folder / "tables/metrics-pooled-tiny.csv").open(newline="") as file:
        assert [row["run"] for row in csv.DictReader(file)][:3] == ["full", "no_hea", "clip"]
    with (folder / "tables/002/metrics-pooled-tiny.csv").open(newline="") as file:
        rows = [(row["run"], row["row"]) for row in csv.DictReader(file)]
    assert rows[:3] == [("full", "run"), ("clip", "run"), ("clip", "p against full")]  # full is on each page
    assert (folder / "figures/001/tiny-ablation.png").exists()


def test_in_a_browser(browser: Any, index_file: Path) -> None:
    page = browser.new_page(viewport={"width": 375, "height": 800})
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(message.text))
    page.goto(index_file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    table = page.locator("#metrics-pooled-tiny")
    table.locator("thead button").nth(1).click()
    assert table.locator("tbody th").all_inner_texts()[:3] == ["no_hea", "full", "clip"]
    assert serious_faults(page) == []
    page.emulate_media(color_scheme="dark")
    assert serious_faults(page, ["color-contrast"]) == []
    table.get_by_text("clip").click()
    page.wait_for_url("**/report-002.html")
    page.get_by_role("link", name="All runs").click()
    page.wait_for_url("**/report.html")
    page.close()
    assert not troubles


def test_what_is_printed(results: Results, run_command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "MAX_RUNS", 2)
    monkeypatch.setattr(index, "write_page", lambda results, page, *others: page.write_text(""))
    (tmp_path / "out").mkdir()
    folder = results.runs[0].folder.parent
    code, text = run_command(main, folder, "--format", "csv", "--out", "out")
    assert code == 0, text
    rows = list(csv.DictReader(io.StringIO(text.partition("\nwarning")[0])))
    assert [row["run"] for row in rows] == ["full", "no_hea", "clip", "ridge, PCA-256", "train mean"]
    assert float(rows[1]["PCC@10"]) == pytest.approx(0.73)
    code, text = run_command(main, folder, "--against", "meru", "--out", "out")
    assert code == 2
    assert "--against meru: no run has this label or method" in text


def test_pages_keep_groups_together_and_share_the_run_to_test_against(tmp_path: Path) -> None:
    for seed in range(5):
        write_run(tmp_path, (0.7,), change={"loop.seed": seed, "variant.name": "full" if seed == 3 else "clip"})
    for dataset in ("a", "b", "c"):
        write_run(tmp_path, (0.7,), change={"dataset": dataset})
    results = read_results([tmp_path])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "MAX_RUNS", 2)
        parts = page_parts(results)
        ridge = page_parts(results, "ridge")
    sets = [[f"{run.setting.dataset} {run.setting.fit.seed}" for run in part.runs] for part in parts]
    assert sorted(name for part in sets for name in part) == sorted(
        ["a 42", "b 42", "c 42", *(f"tiny {seed}" for seed in range(5))]
    )
    large = [part for part in parts if part.leaders]
    assert [len(part.runs) for part in large] == [2, 2, 1]
    assert {run.setting.fit.seed for part in large for run in part.leaders} == {3}
    assert all(sum(run.method == "full" for run in part.results.runs) == 1 for part in large)
    assert [[run.setting.dataset for run in part.runs] for part in parts if not part.leaders] == [["a", "b"], ["c"]]
    assert {part.leaders for part in ridge} == {()}


def test_seeds_of_a_setting_are_on_one_page_and_one_row_of_it(tmp_path: Path) -> None:
    for seed in (1, 2):
        for variant in ("full", "clip", "meru"):
            write_run(tmp_path, (0.7, 0.6 + seed / 100), change={"loop.seed": seed, "variant.name": variant})
    results = read_results([tmp_path])
    assert [run.setting.fit.seed for run in results.runs] == [1, 1, 1, 2, 2, 2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "MAX_RUNS", 3)
        parts = page_parts(results)
    assert [[run.label for run in part.runs] for part in parts] == [
        [f"{variant}, seed {seed}" for seed in (1, 2)] for variant in ("full", "meru", "clip")
    ]
    [table] = results_tables(parts[1].results, parts[1].against("full"))
    rows = [row.label for row in table.rows if row.kind in ("run", "p")]
    assert rows == ["full, mean of 2 seeds", "meru, mean of 2 seeds", "p against full, mean of 2 seeds"]


def test_a_baseline_can_be_the_best(tmp_path: Path) -> None:
    for variant in ("clip", "meru"):
        write_run(tmp_path, (0.3, 0.35), change={"variant.name": variant})
    table = index_table(list(read_results([tmp_path]).runs))
    assert [row.label for row in table.rows if row.cells[0].best] == ["ridge, PCA-256"]
    assert index_text(table) == "No run is above a baseline in PCC@50: ridge, PCA-256, 0.305 ± 0.007."


def test_a_slide_that_no_run_tests(results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "MAX_RUNS", 2)
    with pytest.raises(InputError, match="--slide S9: no run tests it"):
        write_report(results, tmp_path, ReportRequest(slide="S9"))
    assert not list(tmp_path.iterdir())


def test_a_figure_higher_than_webp_allows(tmp_path: Path) -> None:
    Image.effect_noise((30, 20_000), 90).save(tmp_path / "tall.png")
    shown = picture(tmp_path / "tall.png", "", "", "")
    assert (shown.height, shown.ending) == (MAX_HEIGHT, "webp")
