"""A full disk ends a command in one line; nothing half-written has a final name, and the same command goes on.

Two ways to fill a disk: a limit on the size of files, and where this process may mount one, a file system of a few kB.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import extract.cli
import sweeps.cli
import train.cli
import train.report.cli
from tests.small import TRAIN, Run, cached, extraction, files_up_to, trained, unfinished

Disk = Callable[[int], Path]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Make a disk of some kB and return its folder."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(kilobytes: int) -> Path:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder], capture_output=True
        )
        if done.returncode:
            pytest.skip(f"this process may not mount a disk: {done.stderr.decode().strip()}")
        return folder

    if shutil.which("mount") is None:
        pytest.skip("there is no mount command")
    yield mount
    subprocess.run(["umount", folder], capture_output=True)


def error_line(text: str) -> str:
    """The one line that a command ended in."""
    assert "Traceback" not in text
    [line] = [line for line in text.splitlines() if line.startswith("error: ")]
    return line


@pytest.mark.parametrize("limit", [0, 90, 2_000, 60_000, 258_000])
def test_extraction_with_a_limit(cache: Path, run_command: Run, tmp_path: Path, limit: int) -> None:
    argv = extraction(cache.parent / "hest", tmp_path / "cache")
    with files_up_to(limit):
        code, text = run_command(extract.cli.main, *argv)
    assert code == 1, text
    line = error_line(text)
    assert f"{tmp_path / 'cache'}/tiny/timm-test_vit-" in line
    assert "File too large; make room; kept: 0 of 3 slides; go on with: hist-extract --dataset tiny" in line
    assert cached(tmp_path / "cache") == {}
    assert unfinished(tmp_path) == []
    if limit == 258_000:
        assert run_command(extract.cli.main, *argv)[0] == 0
        assert len(cached(tmp_path / "cache")) == 3


def test_tokens_with_a_limit(cache: Path, run_command: Run, tmp_path: Path) -> None:
    shutil.copytree(cache, tmp_path / "cache")
    argv = extraction(cache.parent / "hest", tmp_path / "cache", "--tokens-at", 4)
    for limit in (1_000, 300_000, 780_000):
        with files_up_to(limit):
            code, text = run_command(extract.cli.main, *argv)
        assert code == 1, text
        assert "kept: 0 of 3 slides" in error_line(text)
        assert unfinished(tmp_path) == []
    assert run_command(extract.cli.main, *argv)[0] == 0


@pytest.mark.parametrize("limit", [0, 1_000, 12_000, 290_000])
def test_training_with_a_limit(cache: Path, plain_runs: Path, run_command: Run, tmp_path: Path, limit: int) -> None:
    argv = ("--cache", cache, "--runs", tmp_path / "runs", *TRAIN)
    with files_up_to(limit):
        code, text = run_command(train.cli.main, *argv)
    assert code == 1, text
    assert re.search(r"runs/tiny/full-\w+/fold0: File too large; make room; kept: 0 of 3 folds; go on with: hist-train "
                     rf"--cache {cache} ", error_line(text))  # fmt: skip
    assert trained(tmp_path / "runs") == {}
    assert unfinished(tmp_path) == []
    if limit == 290_000:
        assert run_command(train.cli.main, *argv)[0] == 0
        assert trained(tmp_path / "runs") == trained(plain_runs)


@pytest.mark.parametrize("limit", [0, 3_000])
def test_a_report_with_a_limit(plain_runs: Path, run_command: Run, tmp_path: Path, limit: int) -> None:
    argv = (next(plain_runs.glob("tiny/full-*")), "--out", tmp_path / "report")
    with files_up_to(limit):
        code, text = run_command(train.report.cli.main, *argv)
    assert code == 1, text
    assert "File too large; make room; kept: all runs; go on with: hist-report " in error_line(text)
    assert unfinished(tmp_path) == []


@pytest.mark.parametrize(
    ("kilobytes", "says"),
    [
        (8, "23.0 kB needed for embeddings, 8.2 kB free; make room, or give a --cache on a larger disk"),
        (64, "No space left on device; make room; kept: 0 of 3 slides"),
        (400, "No space left on device; make room; kept: 1 of 3 slides"),
    ],
)
def test_extraction_to_a_full_disk(cache: Path, run_command: Run, disk: Disk, kilobytes: int, says: str) -> None:
    folder = disk(kilobytes)
    code, text = run_command(extract.cli.main, *extraction(cache.parent / "hest", folder))
    assert code == 1, text
    assert says in error_line(text)
    assert unfinished(folder) == []
    if kilobytes == 400:
        subprocess.run(["mount", "-o", "remount,size=2m", folder], check=True)
        assert run_command(extract.cli.main, *extraction(cache.parent / "hest", folder))[0] == 0
        assert cached(folder) == cached(cache)


@pytest.mark.parametrize(
    ("kilobytes", "jobs", "says"),
    [
        (16, 1, "kB needed for its weights and a checkpoint, 16.4 kB free; make room; kept: 0 of 3 folds"),
        (100, 2, "make room; kept: 0 of 3 folds"),
        (500, 1, "make room; kept: 1 of 3 folds"),
    ],
)
def test_training_to_a_full_disk(
    cache: Path, plain_runs: Path, run_command: Run, disk: Disk, kilobytes: int, jobs: int, says: str
) -> None:
    folder = disk(kilobytes)
    argv = ("--cache", cache, "--runs", folder, *TRAIN, "--jobs", jobs)
    code, text = run_command(train.cli.main, *argv)
    assert code == 1, text
    assert says in error_line(text)
    assert unfinished(folder) == []
    assert trained(folder).items() <= trained(plain_runs).items()
    if kilobytes == 500:
        subprocess.run(["mount", "-o", "remount,size=4m", folder], check=True)
        assert run_command(train.cli.main, *argv)[0] == 0
        assert trained(folder) == trained(plain_runs)


def test_a_study_on_a_full_disk(cache: Path, run_command: Run, disk: Disk) -> None:
    folder = disk(16)
    argv = ("--cache", cache, "--runs", folder, *TRAIN, "--fold", 0, "--trials", 2)
    code, text = run_command(sweeps.cli.main, *argv)
    assert code == 1, text
    assert "kept: 2 of 2 trials; go on with: hist-sweep " in error_line(text)
    subprocess.run(["mount", "-o", "remount,size=4m", folder], check=True)
    code, text = run_command(sweeps.cli.main, *argv)
    assert code == 0, text


def test_a_complete_cache_on_a_read_only_disk(cache: Path, run_command: Run, disk: Disk) -> None:
    folder = disk(2000)
    shutil.copytree(cache, folder, dirs_exist_ok=True)
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    argv = extraction(cache.parent / "hest", folder)
    code, text = run_command(extract.cli.main, *argv)
    assert code == 0, text
    assert "3 slides complete" in text
    code, text = run_command(extract.cli.main, *argv, "--neighbors", 18)
    assert code == 1
    assert "cannot be written to; give a folder that can be written to; kept: " in error_line(text)
    argv = ("--cache", cache, "--runs", folder / "runs", *TRAIN, "--jobs", 2)
    code, text = run_command(train.cli.main, *argv)
    assert code == 2
    assert "cannot be written (Read-only file system)" in error_line(text)
    assert run_command(train.cli.main, *argv, "--dry-run")[0] == 2


def test_what_is_complete_in_a_place_where_nothing_can_be_written(
    cache: Path, plain_runs: Path, run_command: Run
) -> None:
    with files_up_to(0):
        code, text = run_command(extract.cli.main, *extraction(cache.parent / "hest", cache))
        assert code == 0, text
        assert "3 slides complete" in text
        code, text = run_command(train.cli.main, "--cache", cache, "--runs", plain_runs, *TRAIN)
        assert code == 0, text
        assert "PCC@10" in text
