from __future__ import annotations

import os
import pickle
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

import hist_cache.header_index
from hist_cache.cache import Cache
from hist_cache.errors import DamagedCacheError
from hist_cache.header_index import INDEX_FILE, HeaderIndex
from hist_cache.slide_file import CacheHeader, read_header


@pytest.fixture
def folder(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of a few slides, for which an index is written all the same."""
    monkeypatch.setattr(hist_cache.header_index, "MIN_NEW", 1)
    source = next(p.parent for p in sorted(cache.rglob("*.h5")))
    return Path(shutil.copytree(source, tmp_path / "tiny" / source.name))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are opened from now on."""
    names: list[str] = []

    def read(path: Path) -> CacheHeader:
        names.append(path.name)
        return read_header(path)

    monkeypatch.setattr(hist_cache.header_index, "read_header", read)
    return names


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.h5"))


def test_the_second_command_opens_no_file(folder: Path, opened: list[str]) -> None:
    files = files_of(folder)
    assert len(files) > 1
    first = Cache(folder).fingerprint()
    assert opened == [f.name for f in files]
    opened.clear()
    assert Cache(folder).fingerprint() == first
    index = HeaderIndex(folder)
    for file in files:
        assert index.header(file) == read_header(file)  # all of it, provenance too
    assert opened == []


def test_what_has_changed_is_read_again(folder: Path, opened: list[str]) -> None:
    Cache(folder).fingerprint()
    changed, *others = files_of(folder)
    os.utime(changed, ns=(1, 1))
    opened.clear()
    Cache(folder).fingerprint()
    assert opened == [changed.name]
    changed.write_bytes(changed.read_bytes()[:-100])
    with pytest.raises(DamagedCacheError):
        Cache(folder).fingerprint()
    changed.unlink()
    Cache(folder).fingerprint()
    with sqlite3.connect(folder / INDEX_FILE) as database:
        names = {name for (name,) in database.execute("SELECT name FROM files")}
    assert {f.name for f in others} <= names


def truncate(index: Path) -> None:
    index.write_bytes(index.read_bytes()[:3000])


def fill_with_text(index: Path) -> None:
    index.write_text("an index\n" * 1000)


def make_another_version(index: Path) -> None:
    with sqlite3.connect(index) as database:
        database.execute("PRAGMA user_version = 2")


def put_in_wrong_rows(index: Path) -> None:
    with sqlite3.connect(index) as database:
        database.execute("UPDATE files SET own = '[]', shared = 7")


@pytest.mark.parametrize("damage", [truncate, fill_with_text, make_another_version, put_in_wrong_rows])
def test_an_index_that_cannot_be_used_is_made_again(
    folder: Path, opened: list[str], damage: Callable[[Path], None]
) -> None:
    first = Cache(folder).fingerprint()
    damage(folder / INDEX_FILE)
    opened.clear()
    assert Cache(folder).fingerprint() == first
    assert opened == [f.name for f in files_of(folder)]
    opened.clear()
    assert Cache(folder).fingerprint() == first
    assert opened == []


def test_no_index_of_few_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hist_cache.header_index, "MIN_NEW", 1000)
    Cache(folder).fingerprint()
    assert not (folder / INDEX_FILE).exists()


def test_a_folder_that_cannot_be_written_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise hist_cache.header_index.WriteError(path, "Permission denied", "make it writable")

    monkeypatch.setattr(hist_cache.header_index, "atomic_write", refuse)
    Cache(folder).fingerprint()
    assert not (folder / INDEX_FILE).exists()


def test_a_cache_goes_to_other_processes_without_what_was_read(folder: Path) -> None:
    cache = Cache(folder)
    before = len(pickle.dumps(cache))
    cache.fingerprint()
    assert len(pickle.dumps(cache)) == before
    assert pickle.loads(pickle.dumps(cache)) == cache
