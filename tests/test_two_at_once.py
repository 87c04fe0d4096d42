"""Two commands on one folder at the same time, where locks work and where (a network's file system) they do not."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import extract.cli
import train.cli
import train.report.cli
from tests.commands import Command
from tests.conftest import HIST_EXTRACT, HIST_TRAIN
from tests.small import TRAIN, Run, cached, extraction, trained, unfinished

Start = Callable[..., Command]
HIST_SWEEP = "from sweeps.cli import main; raise SystemExit(main())"
NO_LOCKS = """import fcntl, hist_cache.leases
fcntl.flock = lambda descriptor, operation: None  # what filelock calls too
hist_cache.leases.Leases._lives = lambda self, file: False
"""
FAILING_FLOCK = """import errno, fcntl, itertools
answers = itertools.cycle((errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, 524))
def flock(descriptor, operation):
    raise OSError(next(answers), "no locks here")
fcntl.flock = flock
"""

either_way = pytest.mark.parametrize("locks", ["", NO_LOCKS], ids=["locks", "no locks"])


@pytest.fixture(scope="module")
def runs(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one training alone gives, in a process of its own as the others."""
    folder = tmp_path_factory.mktemp("runs")
    command = Command(HIST_TRAIN, [str(a) for a in ("--cache", cache, "--runs", folder, *TRAIN)])
    text = command.communicate()[0]
    command.end()
    assert command.returncode == 0, text
    return folder


def two(start: Start, script: str, argv: Sequence[Any]) -> list[tuple[int | None, str]]:
    """Run a command twice at once: (exit code, what it printed) of both, neither of which ends in a traceback."""
    both = [start(script, *argv) for _ in range(2)]
    texts = [command.communicate()[0] for command in both]
    for text in texts:
        assert "Traceback" not in text, text
    return [(command.returncode, text) for command, text in zip(both, texts, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("locks", ["", NO_LOCKS, FAILING_FLOCK], ids=["locks", "no locks", "flock fails"])
def test_two_extractions(cache: Path, tmp_path: Path, start_command: Start, locks: str) -> None:
    argv = extraction(cache.parent / "hest", tmp_path / "cache")
    ended = two(start_command, locks + HIST_EXTRACT, argv)
    assert [code for code, _ in ended] == [0, 0], ended
    assert cached(tmp_path / "cache") == cached(cache)
    assert unfinished(tmp_path) == []
    assert list((tmp_path / "cache").rglob("*.lock")) == []
    crops = sum(int(n) for _, text in ended for n in re.findall(r"^(\d+) crops in ", text, re.MULTILINE))
    assert locks == NO_LOCKS or crops == 180, "leases need no flock: no slide is extracted twice"


@pytest.mark.slow
@either_way
def test_two_trainings(
    cache: Path, runs: Path, tmp_path: Path, start_command: Start, run_command: Run, locks: str
) -> None:
    argv = ("--cache", cache, "--runs", tmp_path / "runs", *TRAIN)
    for code, text in two(start_command, locks + HIST_TRAIN, argv):
        refused = [line for line in text.splitlines() if line.startswith("error: ")]
        assert code == int(bool(refused)), text
        assert all("another command is training this fold" in line for line in refused), text
    code, text = run_command(train.cli.main, *argv)
    assert code == 0, text
    assert trained(tmp_path / "runs") == trained(runs)
    assert unfinished(tmp_path) == []
    assert list((tmp_path / "runs").rglob("*.lock")) == []


@pytest.mark.slow
@either_way
def test_two_searches(cache: Path, tmp_path: Path, start_command: Start, locks: str) -> None:
    argv = ("--cache", cache, "--runs", tmp_path / "runs", *TRAIN, "--fold", 0, "--trials", 2)
    for code, text in two(start_command, locks + HIST_SWEEP, argv):
        assert code == 0 or (locks and "error: " in text), text
    again = start_command(HIST_SWEEP, *argv)
    text, _ = again.communicate()
    assert again.returncode == 0, text
    assert len(list(tmp_path.glob("runs/tiny/sweep-*/report.html"))) == 1
    assert unfinished(tmp_path) == []


@pytest.mark.slow
def test_looking_while_it_is_written(
    cache: Path, runs: Path, tmp_path: Path, start_command: Start, run_command: Run
) -> None:
    writers = [
        start_command(HIST_EXTRACT, *extraction(cache.parent / "hest", tmp_path / "cache", "--tokens-at", 4)),
        start_command(HIST_TRAIN, "--cache", cache, "--runs", tmp_path / "runs", *TRAIN),
    ]
    looks = 0
    while any(writer.poll() is None for writer in writers):
        for look in ("--status", "--verify"):
            code, text = run_command(extract.cli.main, *extraction(tmp_path, tmp_path / "cache", look))
            assert code == 0 or text.strip().endswith("no cache"), text
        code, text = run_command(train.report.cli.main, tmp_path / "runs", "--format", "csv", "--out", tmp_path / "out")
        assert code == 0 or (code == 2 and "no finished run" in text), text
        assert "Traceback" not in text
        looks += 1
    assert looks > 1
    for writer in writers:
        text, _ = writer.communicate()
        assert writer.returncode == 0, text
    assert cached(cache).items() <= cached(tmp_path / "cache").items()
    assert trained(tmp_path / "runs") == trained(runs)
