"""The documentation: the site builds, needs no network, names options that exist, and its examples run."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import extract.cli
import train.cli
from hist_cache import commands
from tests.conftest import REPOSITORY, SHARED, needs_shared
from tests.small import Run

DOCS = REPOSITORY / "docs"
PAGES = [*sorted(DOCS.rglob("*.md")), *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md"))]
SCRIPTS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["scripts"]
RESOURCE = re.compile(r"<(?:script|img|link)\b[^>]*?(?:src|href)=[\"']?(https?:[^\"' >]+)")


def rows_of(page: str, first: str) -> list[list[str]]:
    """Cells of the table in a page whose head begins with `first`."""
    lines = iter((DOCS / page).read_text().splitlines())
    assert any(line.startswith(f"| {first} |") for line in lines)
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="no mkdocs here (pip install 'hist-cache[docs]')")
    argv = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        assert RESOURCE.findall(re.sub(r'<link rel="canonical"[^>]*>', "", page.read_text())) == [], page
    lorentz = (tmp_path / "api/lorentz/index.html").read_text()
    assert "pairwise_dist" in lorentz
    assert "0 where the points coincide" in lorentz, "texts of docstrings, not names alone"
    assert "notebooks/demo-0.png" in {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.png")}


@pytest.fixture(scope="module")
def flags() -> dict[str, set[str]]:
    """Command -> the flags in its help."""
    found = {}
    for script, target in SCRIPTS.items():
        text = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(text):
            patch.setattr(sys, "argv", [script, "--help"])
            with pytest.raises(SystemExit):
                getattr(commands, target.split(":")[1])()
        found[script] = set(re.findall(r"--[\w-]+", text.getvalue()))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_options_in_the_text_exist(page: Path, flags: dict[str, set[str]]) -> None:
    text = page.read_text().replace("\\\n", " ")
    for script, arguments in re.findall(
        r"\b(hist-(?:extract|train|sweep|report|predict|export|import))\b([^\n`|]*)", text
    ):
        arguments = re.split(r"[#;(]|&&| then | and | or |\bhist-", arguments)[0]
        assert set(re.findall(r"(?<!\w)--[\w-]+", arguments)) <= flags[script], f"{page.name}: {script}{arguments}"


def test_tables_are_those_of_the_program() -> None:
    encoders = tomllib.loads((REPOSITORY / "extract/encoders/registry.toml").read_text())
    shown = {row[0].strip("`"): row[1:] for row in rows_of("encoders.md", "`--encoder`")}
    known = {name: row for name, row in encoders.items() if name != "default" and "unsupported" not in row}
    assert shown.keys() - {"timm:NAME"} == known.keys()
    for name, row in known.items():
        if name != "demo":
            assert shown[name] == [f"{row['width']:,}", row["licence"], "ask" if row["gated"] else "open"]

    tables = tomllib.loads((REPOSITORY / "train/experiments/tables.toml").read_text())
    listed = {row[0]: row[1:] for row in rows_of("experiments.md", "table")}
    assert listed.keys() - {"2"} == tables.keys()
    for number, row in tables.items():
        options = {k: v for k, v in row.items() if k not in ("title", "datasets", "cost")}
        words = [f"--{k.replace('_', '-')}" + ("" if v is True else f" {v}") for k, v in options.items()]
        assert listed[number][1:] == [", ".join(row["datasets"]), f"`{' '.join(words)}`" if words else ""]

    protocols = tomllib.loads((REPOSITORY / "train/experiments/protocols.toml").read_text())
    assert {row[0].split()[0].strip("`") for row in rows_of("protocols.md", "protocol")} == protocols.keys()
    datasets = tomllib.loads((REPOSITORY / "hist_cache/datasets.toml").read_text())
    assert {row[0].strip("`") for row in rows_of("data.md", "preset")} == datasets.keys() - {"default"}


@pytest.mark.slow
def test_a_model_in_one_file_is_trained_by_workers_too(
    cache: Path, tmp_path: Path, start_command: Callable[..., Any]
) -> None:
    code = re.findall(r"```python\n(.*?)```", (DOCS / "own-model.md").read_text(), re.DOTALL)[0]
    file = tmp_path / "my_model.py"
    file.write_text(code)
    where = ("--cache", cache, "--runs", tmp_path / "runs", "--model", "mine,ridge", "--hidden-units", 8)
    options = ("--split", "loso", "--epochs", 2, "--batch-size", 16, "--n-genes", 20, "--jobs", 2)
    command = start_command(code, *where, *options, file=file)
    text, _ = command.communicate()
    assert command.returncode == 0, text
    assert len(list((tmp_path / "runs/tiny").glob("mine-*/fold*/model.safetensors"))) == 3


def execute(notebook: str, folder: Path, dataset: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a notebook in a folder with `cache` and `runs`."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    read = nbformat.read(DOCS / "notebooks" / notebook, 4)
    cells = [cell for cell in read.cells if cell.source.startswith("dataset = ")]
    cells[0].source = f'dataset = "{dataset}"'
    nbclient.NotebookClient(read, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    return read


@pytest.mark.slow
def test_the_notebook_of_the_demo_runs(
    cache: Path, plain_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").symlink_to(cache)
    (tmp_path / "runs").symlink_to(plain_runs)
    read = execute("demo.ipynb", tmp_path, "tiny", monkeypatch)
    assert "['TINY1', 'TINY2', 'TINY3']" in str(read.cells)


@pytest.mark.slow
@needs_shared
def test_the_notebook_of_real_slides_runs(tmp_path: Path, run_command: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    where = ("--dataset", "her2st", "--cache", tmp_path / "cache")
    source = ("--ids", "SPA138,SPA139,SPA140", "--data-root", SHARED / "hest", "--encoder", "timm:test_vit")
    code, text = run_command(extract.cli.main, *where, *source, "--random-weights", "--precision", "fp32")
    assert code == 0, text
    options = ("--split", "loso", "--folds", 2, "--width", 16, "--depth", 1, "--epochs", 3, "--n-genes", 60)
    code, text = run_command(train.cli.main, *where, "--runs", tmp_path / "runs", *options)
    assert code == 0, text
    execute("her2st.ipynb", tmp_path, "her2st", monkeypatch)
