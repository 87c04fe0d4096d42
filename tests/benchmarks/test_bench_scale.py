"""What many slides cost before the first crop: files that are opened, counted on links to one slide."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import h5py
import pytest

from extract.claims import Claims
from extract.plan import ExtractionPlan, Request, plan_extraction
from hist_cache.header_index import INDEX_FILE, HeaderIndex
from hist_cache.sources import HestFolder
from tests.commands import REPOSITORY

_opened: list[str] | None = None  # while it is a list


def _hear(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _opened is not None:
        _opened.append(str(arguments[0]))


@contextmanager
def opens(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The files that are opened, by Python or by HDF5, which Python does not hear of."""
    global _opened
    open_hdf5 = h5py.File.__init__

    def count(self: h5py.File, name: object, *others: object, **more: object) -> None:
        names.append(str(name))
        open_hdf5(self, name, *others, **more)

    names: list[str] = []
    monkeypatch.setattr(h5py.File, "__init__", count)
    _opened = names
    try:
        yield names
    finally:
        _opened = None


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    sys.addaudithook(_hear)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPOSITORY / "benchmarks")
        return importlib.import_module("bench_scale")


def check_opens(bench: ModuleType, made: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    """Plan slides, read what hist-train reads of all, and meet slides that another command has completed."""
    names, cache = bench.linked_slides(folder, made.parents[3] / "hest", "TINY1", made, n)
    with opens(monkeypatch) as opened:
        assert min(bench.plan_many(folder, names, cache)) > 0
        index = HeaderIndex(cache)
        common = index.header(cache / f"{names[0]}.h5").fingerprint.common
        request = Request(HestFolder(folder / "hest"), (6,), 0.0, common)
        tasks = [replace(task, state="new", missing=(6,)) for task in plan_extraction(request, names, cache).tasks]
        with Claims(ExtractionPlan(index, tasks), request) as claims:
            assert claims.take(wait=True) is None
            assert (claims.finished, claims.failed) == (n, [])
    assert [name for name in opened if INDEX_FILE not in name] == []
    assert len(opened) < 10, "an index is opened once a command"


@pytest.fixture(scope="module")
def made(cache: Path) -> Path:
    return next(iter(sorted(cache.glob("tiny/*/TINY1.h5"))))


def test_many_slides(bench: ModuleType, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_opens(bench, made, tmp_path, monkeypatch, 500)


@pytest.mark.long
def test_ten_thousand_slides(bench: ModuleType, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_opens(bench, made, tmp_path, monkeypatch, 10_000)
