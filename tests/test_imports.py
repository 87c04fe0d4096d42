"""Imports point one way: hist_cache <- extract <- train <- sweeps."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

ORDER = ("hist_cache", "extract", "train", "sweeps")


def imported(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found & set(ORDER)


@pytest.mark.parametrize("package", ORDER)
def test_imports_point_one_way(package: str) -> None:
    allowed = set(ORDER[: ORDER.index(package) + 1])
    for file in (REPOSITORY / package).rglob("*.py"):
        if file.name != "commands.py":  # the entry points name all packages
            assert imported(file) <= allowed, file


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("hist_extract", "--dataset"),
        ("hist_train", "--dataset"),
        ("hist_sweep", "--trials"),
        ("hist_report", "--against"),
    ],
)
def test_commands_work_beside_the_users_own_train_and_extract(command: str, option: str, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("raise SystemExit('the wrong train')")
    (tmp_path / "extract").mkdir()
    (tmp_path / "extract/__init__.py").write_text("raise SystemExit('the wrong extract')")
    script = "import sys; sys.argv = ['x', '--help']\n"
    script += f"from hist_cache.commands import {command}; raise SystemExit({command}())"
    environment = {"PYTHONPATH": f"{tmp_path}:{REPOSITORY}", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert option in done.stdout


@pytest.mark.parametrize("module", ["extract.cli", "train.cli", "train.report.cli", "sweeps.cli"])
def test_help_imports_nothing_heavy(module: str) -> None:
    script = f"import sys; from {module} import main\n"
    script += "try: main(['--help'])\nexcept SystemExit: pass\n"
    script += (
        "heavy = {'torch', 'timm', 'anndata', 'scipy', 'pandas', 'matplotlib', 'h5py', 'optuna'} & set(sys.modules)\n"
    )
    script += "assert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_files_stay_about_one_thing() -> None:
    for package in ORDER:
        for file in (REPOSITORY / package).rglob("*.py"):
            assert len(file.read_text().splitlines()) <= 330, file
