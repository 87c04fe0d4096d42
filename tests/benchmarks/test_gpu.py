"""`make gpu`: a part that hangs or fails costs no other, and what there is of results is always in the file."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.commands import REPOSITORY

HANG = "import subprocess, sys, time; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
FIGURES = """
import carried, hist_cache, sys; sys.path.insert(0, "benchmarks")
from pathlib import Path
from results import add_results
add_results(Path(sys.argv[1]), "fold", {"seconds": 1.5}); add_results(Path(sys.argv[1]), "fold", {"peak_gb": 2.0})
print("measured")
"""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module of `make gpu`."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    yield importlib.import_module("gpu")
    for name in ("gpu", "results"):
        sys.modules.pop(name, None)


def children() -> set[str]:
    """Command lines of all processes that wait as `HANG` does."""
    lines = (path / "cmdline" for path in Path("/proc").iterdir() if path.name.isdigit())
    found = set()
    for line in lines:
        try:
            found.add(line.read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return {text for text in found if "import time; time.sleep(60)" in text}


def test_each_part_has_a_limit_and_all_results_are_kept(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def parts(results: Path) -> Iterator[object]:
        yield gpu.Part("hangs", ["-c", HANG], 1)
        yield gpu.Part("fails", ["-c", "raise SystemExit('no such kernel')"], 20)
        assert set(json.loads((tmp_path / "gpu.json").read_text())["parts"]) == {"hangs"}
        yield gpu.Part("measures", ["-c", FIGURES, str(results)], 20)

    (tmp_path / "own/carried.py").parent.mkdir()
    (tmp_path / "own/carried.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "own"))
    monkeypatch.setattr(gpu, "parts", parts)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path)])
    assert gpu.main() == 1
    found = json.loads((tmp_path / "gpu.json").read_text())
    statuses = {name: part["status"] for name, part in found["parts"].items()}
    assert statuses == {"hangs": "stopped after 1 s", "fails": "failed with exit code 1", "measures": "done"}
    assert found["figures"] == {"fold": {"seconds": 1.5, "peak_gb": 2.0}}
    assert found["machine"]["torch"]
    assert "no such kernel" in (tmp_path / "gpu.log").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.json", "gpu.log", "own"]
    assert not children(), "what a part has started ends with it"


def test_what_is_not_reached_is_said(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path), "--minutes", "0"])
    assert gpu.main() == 1
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert {part["status"] for part in parts.values()} == {"not reached"}
    assert list(parts) == ["tests", "extract", "fold", "train", "finetune", "grid"]


def test_parts_name_files_that_are_there(gpu: ModuleType) -> None:
    first, *benchmarks = gpu.parts(Path("x"))
    files = [name for name in first.argv if name.endswith(".py")]
    assert "tests/train/models/test_alignment.py" in files
    assert "tests/test_commands_on_gpu.py" in files
    assert all((REPOSITORY / name).is_file() for name in files)
    assert all((REPOSITORY / part.argv[0]).is_file() for part in benchmarks)


def test_missing_packages_are_named(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.missing_packages() == []
    find = importlib.util.find_spec
    absent = ("torch", "openslide", "yaml")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else find(name))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "out")])
    assert gpu.main() == 2
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("missing packages: openslide-python, pyyaml, torch; install them")
    assert not (tmp_path / "out").exists()


def test_figures_are_replaced_at_once(gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = importlib.import_module("results")
    file = tmp_path / "figures.json"
    results.add_results(file, "a", {"x": 1})
    monkeypatch.setattr(os, "replace", lambda *names: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        results.add_results(file, "a", {"x": 2})
    assert json.loads(file.read_text()) == {"a": {"x": 1}}
    results.add_results(None, "a", {"x": 3})
