"""Complete files or none: written under a name of the writer's own, then renamed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hist_cache.files import HOST, atomic_write, partial_files_of, write_json, write_text
from tests.conftest import REPOSITORY


def test_a_file_is_there_when_it_is_complete(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "a.txt"
    with atomic_write(file) as aside:
        aside.write_text("one")
        assert not file.exists()
        assert aside.name.startswith(f"a.txt.{HOST}-{os.getpid()}-")
        assert partial_files_of(file) == [aside]
    assert file.read_text() == "one"
    with pytest.raises(ZeroDivisionError), atomic_write(file) as aside:
        aside.write_text(f"half{1 / 0}")
    assert file.read_text() == "one"
    assert [p.name for p in file.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("first", [0, 1])
def test_two_writers_at_once_never_write_into_each_others_file(tmp_path: Path, first: int) -> None:
    file = tmp_path / "a.txt"
    writers = [atomic_write(file), atomic_write(file)]
    for i, writer in enumerate(writers):
        writer.__enter__().write_text(f"all of {i}")
    for i in (first, 1 - first):
        writers[i].__exit__(None, None, None)
        assert file.read_text() == f"all of {i}", "the last one stays"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_what_a_dead_writer_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from hist_cache.files import atomic_write\n"
        "with atomic_write(Path(sys.argv[1])) as aside:\n    aside.write_text('half'); os._exit(9)\n"
    )
    file = tmp_path / "a[1].txt"  # a name that a pattern would take for something else
    argv = [sys.executable, "-c", script, str(file)]
    assert subprocess.run(argv, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}).returncode == 9
    assert len(partial_files_of(file)) == 1
    elsewhere = tmp_path / "a[1].txt.another-host-1-0123abcd.partial"
    living = tmp_path / f"a[1].txt.{HOST}-{os.getpid()}-0123abcd.partial"
    of_version_0_1 = tmp_path / "a[1].txt.partial"
    for leftover in (elsewhere, living, of_version_0_1):
        leftover.write_text("half")
    write_text(file, "whole")
    assert sorted(tmp_path.iterdir()) == sorted([file, elsewhere, living])


def test_json_has_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": [1, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
