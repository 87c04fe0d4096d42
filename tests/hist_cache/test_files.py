"""Complete files or none: written under a name of the writer's own, then renamed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest

from hist_cache.disk_room import check_room
from hist_cache.errors import WriteError
from hist_cache.files import HOST, atomic_file, atomic_write, partial_files_of, write_json, write_text
from tests.conftest import REPOSITORY
from tests.small import files_up_to


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
    number_taken_again = tmp_path / f"a[1].txt.{HOST}-{os.getpid()}-76543210.partial"
    for leftover in (elsewhere, living, of_version_0_1, number_taken_again):
        leftover.write_text("half")
    long_ago = time.time() - 3 * 24 * 3600
    os.utime(number_taken_again, (long_ago, long_ago))
    write_text(file, "whole")
    assert sorted(tmp_path.iterdir()) == sorted([file, elsewhere, living])


def test_json_has_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": [1, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("limit", [0, 1, 100, 800, 2_048, 5_000, 40_000, 80_000, 160_000])
def test_hdf5_survives_a_full_disk_at_any_byte(tmp_path: Path, limit: int) -> None:
    """The first error is raised once the file is closed; HDF5 itself never sees it, nor does what it reads back."""

    def write() -> None:
        with files_up_to(limit), atomic_file(tmp_path / "a.h5") as raw, h5py.File(raw, "w") as file:
            for i in range(20):
                file.create_dataset(f"chunks{i}", data=np.arange(2000) * i, chunks=(50,), compression="gzip")
                file.create_dataset(f"whole{i}", data=np.arange(500) * i)
            file.flush()
            with suppress(OSError):
                file["chunks3"][:]

    with pytest.raises(WriteError, match=f"^{tmp_path}: File too large; make room$"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_room_is_checked_beforehand(tmp_path: Path) -> None:
    check_room(tmp_path / "not/yet/there", 1, "nothing much")
    with pytest.raises(WriteError, match=r"there: 1000000.0 TB needed for everything, .* free; make room"):
        check_room(tmp_path / "there", 10**18, "everything")


def test_a_folder_that_cannot_be_written_to_is_refused_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(WriteError, match=r"/file: no folder; give a folder that can be written to"):
            check_room(folder, 1, "nothing much")
    monkeypatch.setattr("hist_cache.disk_room.os.access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(WriteError, match=f"{tmp_path}: cannot be written to; give a folder"):
        check_room(tmp_path / "not/yet/there", 1, "nothing much")
    check_room(tmp_path, 0, "nothing: all is complete")


def test_where_nothing_can_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="file/a: Not a directory; give a folder that can be written to"):
        write_text(tmp_path / "file/a/b.txt", "text")
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "c.txt"):
        (tmp_path / "another/file").read_text()


def test_nothing_writes_but_the_writers_of_complete_files() -> None:
    """What a full disk does is decided in one place; here is what writes past it, and why.

    What `atomic_file` has opened may be written to.
    """
    allowed = {"sweeps/journal.py": "appends, and cuts off a torn last line"}
    writers = (
        r"\.write_(text|bytes)\(",
        r"""open\([^)]*["'][wax]b?\+?["']""",
        r"np\.save(?!z?\(opened)",
        r"\.write_h5ad\(",
    )
    calls = re.compile("|".join(writers))
    for package in ("hist_cache", "extract", "train", "sweeps"):
        for file in sorted((REPOSITORY / package).rglob("*.py")):
            text = file.read_text()
            for found in calls.finditer(text):
                before = text[: found.start()].rpartition("\n")[2] + found[0]
                name = str(file.relative_to(REPOSITORY))
                assert name in allowed or re.search(r"\b(aside|partial_path)\.", before), f"{name}: {before}"
