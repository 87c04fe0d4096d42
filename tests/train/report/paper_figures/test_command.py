"""hist-report --figures: the command, its files, and options that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.train.report.fake_runs import write_run
from train.report.cli import main

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write_run(tmp_path / "runs", (0.7, 0.72, 0.74), predictions=True)
    write_run(tmp_path / "runs", (0.6, 0.65, 0.6), change={"variant.name": "no_hea"}, predictions=True, seed=10)
    return tmp_path / "runs"


@pytest.mark.slow
def test_figures_tables_and_the_page_are_written_together(runs: Path, run_command: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, text = run_command(main, runs, "--out", out, "--figures", "pdf,svg", "--genes-to-plot", "GENE3,GENE5")
    assert code == 0, text
    assert f"{out}/figures: 12 figures for a paper (svg, pdf), and their captions" in text
    drawn = {path.stem for path in (out / "figures").glob("*mm.pdf")}
    stems = {"maps-183mm", "map-gene3-89mm", "map-gene5-89mm", "scatter-89mm", "comparison-183mm", "genes-89mm"}
    assert drawn == {f"tiny-{stem}" for stem in stems}
    assert "fold 0, 20 spots" in (out / "figures/tiny-captions.md").read_text().replace("\\", "")
    tables = {path.name for path in (out / "tables").iterdir()}
    assert {f"tests-tiny.{ending}" for ending in ("csv", "tex", "md")} <= tables
    assert len(tables) % 3 == 0
    assert 'id="tests-tiny"' in (out / "report.html").read_text()


@pytest.mark.usefixtures("quick")
def test_markdown_alone_on_standard_output(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(runs), "--out", str(tmp_path / "out"), "--format", "markdown", "--table", "4"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("### Difference to the reference\n\n| run | PCC@10 ↑ |")
    assert "report.html" in printed.err
    assert not list((tmp_path / "out/figures").glob("*mm.*"))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--figures", "jpg"], "--figures jpg: no format of figures; give any of svg, pdf, png, with commas"),
        (["--dpi", "600"], "--dpi 600: is of the figures for a paper; give --figures svg,pdf,png too"),
        (["--figures", "svg", "--dpi", "10"], "--dpi 10: must be"),
    ],
)
def test_wrong_options(runs: Path, run_command: Run, more: list[str], says: str) -> None:
    code, text = run_command(main, runs, *more)
    assert code == 2, text
    assert says in text
