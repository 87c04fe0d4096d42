"""SIGTERM, by which a scheduler takes a machine back: a slide that is at work ends at once, nothing is left of it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from extract.cli import main
from tests.commands import Command
from tests.conftest import HIST_EXTRACT
from tests.extract.test_scheduler import cache_of, options
from tests.small import unfinished

# Stands still in the middle of a slide's tokens, whose file is being written then.
STANDING = """
import time
from extract.pipeline import Pipeline
def stand(self, image, coords, crops, put, show):
    print("at it", flush=True)
    time.sleep(100)
Pipeline.stream = stand
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "how"), [(signal.SIGTERM, "stopped by SIGTERM"), (signal.SIGINT, "interrupted")])
def test_a_stopped_extraction(
    hest_root: Path,
    tmp_path: Path,
    run_command: Callable[..., tuple[int, str]],
    start_command: Callable[..., Command],
    number: signal.Signals,
    how: str,
) -> None:
    argv = options(hest_root, "--cache", tmp_path / "cache")
    assert run_command(main, *argv)[0] == 0
    command = start_command(STANDING + HIST_EXTRACT, *argv, "--tokens-at", 4)
    while "at it" not in (line := command.stdout.readline()):
        assert line, "it ended"
    cache = cache_of(tmp_path)
    assert [path.name.split(".h5.")[0] for path in unfinished(cache.folder)] == ["TINY1.tokens4"]
    assert len(list(cache.folder.glob(".locks/*.lock"))) > 0
    command.send_signal(number)
    text, _ = command.communicate()
    assert command.returncode == 128 + number
    assert text.splitlines()[-1] == (
        f"error: {how}; 2 of 2 slides are left; what was finished is kept, the same command goes on from there"
    )
    assert unfinished(cache.folder) == list(cache.folder.glob(".locks/*")) == []
    assert cache.slides == ["TINY1", "TINY2"]


IN_WORKERS = f"""
import extract.workers
extract.workers.SLIDE_STOP_S = 1.0
{STANDING}
if __name__ == "__main__":
    from extract.cli import main
    raise SystemExit(main())
"""


@pytest.mark.slow
def test_stopped_workers(
    hest_root: Path,
    tmp_path: Path,
    run_command: Callable[..., tuple[int, str]],
    start_command: Callable[..., Command],
) -> None:
    """They stand still, so that they are killed; what they have left is removed."""
    argv = options(hest_root, "--cache", tmp_path / "cache")
    assert run_command(main, *argv)[0] == 0
    script = tmp_path / "script.py"
    script.write_text(IN_WORKERS)
    command = start_command(IN_WORKERS, *argv, "--tokens-at", 4, "--jobs", 2, file=script)
    folder = cache_of(tmp_path).folder
    while len(unfinished(folder)) < 2:
        time.sleep(0.1)
        assert command.poll() is None, "it ended"
    command.send_signal(signal.SIGTERM)
    text, _ = command.communicate()
    assert command.returncode == 143, text
    last = text.splitlines()[-1]
    assert last.startswith("error: stopped by SIGTERM; 2 of 2 slides are left; what was finished is kept"), text
    assert unfinished(folder) == list(folder.glob(".locks/*")) == []
