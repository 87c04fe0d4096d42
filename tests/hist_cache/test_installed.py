"""The wheel: all files are in it, it runs where it is installed, and what another distribution overwrites is named."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hist_cache.commands import CLAIMED
from hist_cache.errors import HistError
from hist_cache.installed import check_installed, check_origin
from tests.commands import REPOSITORY

OURS = ("hist_cache", *CLAIMED)
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
HELP = "import sys; from hist_cache.commands import hist_train; sys.argv = ['x', '--help']; sys.exit(hist_train())"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of what git has of the packages."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in OURS:
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source / name)
    done = subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (file,) = out.glob("*.whl")
    return file


@pytest.fixture
def site(wheel: Path, tmp_path: Path) -> Path:
    """A folder of installed packages with this one in it: a wheel of pure Python is installed by unpacking it."""
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    return tmp_path / "site"


def install_another(site: Path, name: str, **files: str) -> None:
    """Install a distribution as pip does: over what is there, with a RECORD."""
    lines = []
    for file, text in files.items():
        path = site / f"{file.replace('__', '/', 1).replace('INIT', '__init__')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
        lines.append(f"{path.relative_to(site)},sha256={digest},{len(text)}\n")
    (site / f"{name}.dist-info").mkdir()
    (site / f"{name}.dist-info/RECORD").write_text("".join(lines))


def run_help(site: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """`hist-train --help` of what is installed there, beside a train.py of the user's that comes first on the path."""
    folder.mkdir(exist_ok=True)
    (folder / "train.py").write_text("raise SystemExit('the wrong train')")
    path = os.pathsep.join([".", str(site)])
    return subprocess.run(
        [sys.executable, "-c", HELP], cwd=folder, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )


def test_the_wheel_has_every_file_of_the_packages(wheel: Path) -> None:
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [path for name in OURS for path in (REPOSITORY / name).rglob("*") if path.is_file()]
    assert inside == {str(path.relative_to(REPOSITORY)) for path in files if "__pycache__" not in path.parts}
    assert {Path(name).suffix for name in inside} >= {".py", ".toml", ".json", ".jinja", ".css", ".js", ".typed"}


def test_it_runs_where_it_is_installed_beside_packages_of_others(site: Path, tmp_path: Path) -> None:
    install_another(site, "elsewhere-2.0", trainer__INIT="", train__notours="x = 1")  # a file that is not ours
    done = run_help(site, tmp_path / "user")
    assert done.returncode == 0, done.stderr
    assert "--ablation" in done.stdout


def test_what_another_distribution_has_overwritten_is_named(site: Path, tmp_path: Path) -> None:
    install_another(site, "trainkit-1.2", train__INIT="raise SystemExit('the wrong train')", train__data="x = 1")
    done = run_help(site, tmp_path / "user")
    assert done.returncode == 1
    assert done.stderr.strip() == (
        f"error: {site}/train/__init__.py: overwritten by the distribution trainkit 1.2, which has the same name; "
        "install hist-cache in an environment of its own"
    )


def test_what_was_uninstalled_with_another_distribution_is_named(site: Path, tmp_path: Path) -> None:
    (site / "train/data.py").unlink()
    with pytest.raises(HistError, match=r"train/data\.py: missing, perhaps uninstalled .* --force-reinstall"):
        check_installed(site, OURS)


def test_files_that_the_user_changed_himself_are_his_business(site: Path) -> None:
    with (site / "train/data.py").open("a") as file:
        file.write("# mine\n")
    check_installed(site, OURS)
    check_installed(REPOSITORY, OURS)  # which nobody installed: there is no RECORD


def test_a_module_of_the_users_that_is_imported_already_is_named(tmp_path: Path) -> None:
    check_origin(REPOSITORY, "train", str(REPOSITORY / "train/__init__.py"))
    for file in (str(tmp_path / "train.py"), None):
        with pytest.raises(HistError, match=r"the module 'train' was imported from .*start Python anew"):
            check_origin(REPOSITORY, "train", file)
    (tmp_path / "train.py").write_text("")
    script = "import train, hist_cache.commands as c\ntry: c.claimed('train.cli')\nexcept Exception as e: print(e)\n"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([".", str(REPOSITORY)])},
    )  # fmt: skip
    assert done.stdout.startswith(f"the module 'train' was imported from {tmp_path}/train.py"), done.stderr
