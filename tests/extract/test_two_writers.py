"""Two writers of one slide's file, whom no lock holds apart, one stopped or killed at each point of its writing.

A point is just before a file is opened, renamed, removed or synced, or bytes are written to it.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

import hist_cache.files
from extract.cli import main
from extract.embeddings import write_all
from hist_cache.cached_slide import CachedSlide
from hist_cache.slide_file import read_fingerprint, read_slide
from hist_cache.verify import verify_slide
from tests.commands import Command
from tests.extract.test_scheduler import options
from tests.small import unfinished

Start = Callable[..., Command]
# In a process of one thread, which can be forked: a fork for each point is quicker than a command.
LOOP = """
import sys
from pathlib import Path
from tests.extract.test_two_writers import two_writers
source, folder, first, every = sys.argv[1:]
print(two_writers(Path(source), Path(folder), first == "first", int(every)))
"""


@pytest.fixture(scope="module")
def source(tiny_slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a slide with niches of three sizes."""
    cache = tmp_path_factory.mktemp("source") / "cache"
    argv = options(tiny_slides, "--ids", "TINY1", "--neighbors", "6,18,36", "--cache", cache)
    assert main([str(a) for a in argv]) == 0
    [path] = cache.glob("custom/*/TINY1.h5")
    return path


@pytest.mark.slow
def test_some_points(source: Path, tmp_path: Path, start_command: Start) -> None:
    loop(start_command, source, tmp_path, "none", every=29)


@pytest.mark.long
@pytest.mark.parametrize("first", ["none", "first"])
def test_every_point(source: Path, tmp_path: Path, start_command: Start, first: str) -> None:
    loop(start_command, source, tmp_path, first, every=1)


def loop(start: Start, source: Path, folder: Path, first: str, every: int) -> None:
    command = start(LOOP, source, folder, first, every)
    text, _ = command.communicate(timeout=900)
    assert command.returncode == 0, text
    assert int(text) > 40, "there are as many points"


def two_writers(source: Path, folder: Path, first: bool, every: int) -> int:
    """Stop and kill one writer, of niches 6 and 18, at its points; another writes 6 and 36 meanwhile.

    Args:
        source: A file with all niches.
        folder: To write to.
        first: Whether there is a file with niches 6 already.
        every: How far the points are apart.

    Returns:
        How many points there are.
    """
    whole, n = read_slide(source), 1
    while True:
        for number in (signal.SIGSTOP, signal.SIGKILL):
            path = folder / f"{n}-{number.name}" / source.parent.name / source.name
            path.parent.mkdir(parents=True)
            if first:
                write(source, path, [6])
            pid = os.fork()
            if pid == 0:
                write_and_stop(source, path, n, number)
            status = os.waitpid(pid, os.WUNTRACED)[1]
            if os.WIFEXITED(status):  # there are fewer points
                assert os.WEXITSTATUS(status) == 0
                sound(path, whole, {6, 18})
                return n
            check_beside_it(source, path, whole, pid, number)
        n += every


def check_beside_it(source: Path, path: Path, whole: CachedSlide, pid: int, number: int) -> None:
    """Write the file while the first writer is stopped or dead, let that go on, and write it again."""
    if path.exists():
        sound(path, whole, {6})
    write(source, path, [6, 36])
    sound(path, whole, {6, 36})
    least = {6, 36}
    if number == signal.SIGSTOP:
        os.kill(pid, signal.SIGCONT)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "it ends well"
        least = {6, 18}
    before = sound(path, whole, least)
    write(source, path, [6, 18])
    assert sound(path, whole, {6, 18}) >= before, "what the file had is kept"
    assert unfinished(path.parent) == [], "what a dead writer left is removed"


def write(source: Path, path: Path, sizes: list[int]) -> None:
    write_all(path, read_slide(source, sizes), read_fingerprint(source))


def write_and_stop(source: Path, path: Path, n: int, number: int) -> None:
    """Be the first writer, which sends itself a signal at its n-th point."""
    passed = 0

    def point() -> None:
        nonlocal passed
        passed += 1
        if passed == n:
            os.kill(os.getpid(), number)

    def at(works: Callable[..., object]) -> Callable[..., object]:
        def pass_and_work(*arguments: object) -> object:
            point()
            return works(*arguments)

        return pass_and_work

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("open", "os.rename", "os.remove") and str(path.parent) in str(arguments[0]):
            point()

    try:
        vars(hist_cache.files.os)["fsync"] = at(os.fsync)
        hist_cache.files.LateErrorFile.write = at(hist_cache.files.LateErrorFile.write)
        sys.addaudithook(hear)
        write(source, path, [6, 18])
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def sound(path: Path, whole: CachedSlide, least: set[int]) -> set[int]:
    """The sizes in a file that is complete, with every array as it must be."""
    assert verify_slide(path) == []
    now = read_slide(path)
    assert {k: v for k, v in now.digests.items() if k != "attributes"}.items() <= whole.digests.items()
    assert set(now.niches) >= least
    return set(now.niches)
