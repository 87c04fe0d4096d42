"""Four tiny slides, their cache and a training that takes a moment: what tests of the commands as a whole share."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import extract.cli
import train.cli
from hist_cache.cache_file import TOKEN_FILE, open_complete
from hist_cache.files import PARTIAL
from hist_cache.verify import verify_slide, verify_tokens
from tests.commands import make_quick
from tests.conftest import TINY_ENCODER, write_slide

IDS = ("TINY1", "TINY2", "TINY3")
NUMBERS = ("metrics.json", "model.safetensors", "panel.txt")  # files of a fold without times in them
TRAIN = (
    *("--split", "loso", "--width", 8, "--depth", 1, "--epochs", 2, "--batch-size", 16, "--n-genes", 20),
    *("--lr", 1e-3, "--jobs", 1),
)
Run = Callable[..., tuple[int, str]]


def slides(where: Path, **more: int) -> Path:
    """Write the slides; returns their folder."""
    for i, slide in enumerate(IDS):
        write_slide(where / "hest", slide, seed=i, metadata={"patient": f"Patient {i}"}, **more)
    return where / "hest"


def extraction(root: Path, cache: Path, *more: object) -> list[str]:
    """Arguments of hist-extract for the slides."""
    argv = ("--dataset", "tiny", "--ids", ",".join(IDS), "--data-root", root, "--cache", cache)
    return [str(a) for a in (*argv, "--encoder", TINY_ENCODER, "--random-weights", "--precision", "fp32", *more)]


def make_cache(where: Path) -> Path:
    """Write the slides and their cache; returns the cache."""
    assert extract.cli.main(extraction(slides(where), where / "cache")) == 0
    return where / "cache"


def train_once(cache: Path, runs: Path) -> None:
    """Train all folds in this process, from a fixture of a module."""
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        assert train.cli.main([str(a) for a in ("--cache", cache, "--runs", runs, *TRAIN)]) == 0


def cached(cache: Path) -> dict[str, tuple[str, str]]:
    """Digests of cache files and what they were made from, by name; all of them are right, whenever this is called."""
    found = {}
    for path in sorted(cache.glob("tiny/*/*.h5")):
        problems = verify_tokens(path) if TOKEN_FILE.fullmatch(path.name) else verify_slide(path)
        assert problems == [], path
        with open_complete(path) as file:
            found[path.name] = (str(file.digests), f"{file.fingerprint.common} {file.fingerprint.slide}")
    return found


def trained(runs: Path) -> dict[str, bytes]:
    """Files with numbers of finished folds, by their place."""
    folds = [path.parent for path in runs.glob("tiny/*/fold*/metrics.json")]
    return {str((fold / name).relative_to(runs)): (fold / name).read_bytes() for fold in folds for name in NUMBERS}


def unfinished(where: Path) -> list[Path]:
    """Files that writers have left, or are at."""
    return sorted(where.rglob(f"*{PARTIAL}"))


@contextmanager
def files_up_to(n_bytes: int) -> Iterator[None]:
    """No file of this process can become larger; a longer write fails with EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
