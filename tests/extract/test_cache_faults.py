"""hist-extract beside cache files that are damaged, copied, read-only, or written by two commands at once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from extract.cli import main
from hist_cache.cache import Cache
from hist_cache.errors import WriteError
from hist_cache.slide_file import read_slide
from hist_cache.token_files import token_path
from hist_cache.verify import verify_slide, verify_tokens
from tests.extract.test_scheduler import IDS, cache_of, options

Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def made(tiny_slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the tiny slides with tokens at block 4, which tests copy."""
    cache = tmp_path_factory.mktemp("made") / "cache"
    assert main([str(a) for a in options(tiny_slides, "--tokens-at", 4, "--cache", cache)]) == 0
    return cache


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Cache:
    shutil.copytree(made, tmp_path / "cache")
    return cache_of(tmp_path)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda b: b[: len(b) // 2], "not a readable cache file"),
        (lambda b: b"", "not a readable cache file"),
        (lambda b: b[:-300], "its end is missing|not a readable cache file"),
        (lambda b: b.replace(b"TINY2", b"TINY3", 1), "has other bytes than when it was written"),
    ],
)
def test_a_damaged_file_is_computed_again(
    hest_root: Path, copied: Cache, run_command: Run, damage: Callable[[bytes], bytes], says: str
) -> None:
    argv = options(hest_root, "--tokens-at", 4)
    path = copied.path("TINY2")
    tokens = token_path(path.parent, "TINY2", 4)
    before = read_slide(path).digests
    for file in (path, tokens):
        file.write_bytes(damage(file.read_bytes()))
    code, text = run_command(main, *argv)
    assert code == 0, text
    for file in (path, tokens):
        lines = [line for line in text.splitlines() if f"{file.name}: " in line]
        assert len(lines) == 1, "said once"
        assert lines[0].endswith("; it is computed again")
        assert any(one in lines[0] for one in says.split("|"))
    assert "1 slides complete, 1 to extract" in text
    assert verify_slide(path) == verify_tokens(tokens) == []
    assert read_slide(path).digests == before


def test_a_copy_fails_alone(hest_root: Path, run_command: Run, tmp_path: Path) -> None:
    run_command(main, *options(hest_root))
    cache = cache_of(tmp_path)
    cache.path("TINY2").write_bytes(cache.path("TINY1").read_bytes())
    code, text = run_command(main, *options(hest_root, "--neighbors", "6,18"))
    assert code == 1
    assert "TINY2.h5: is a file of slide TINY1, copied or renamed; delete it" in text
    assert list(cache.read("TINY1").niches) == [6, 18]
    code, text = run_command(main, "--ids", IDS, "--verify")
    assert code == 1
    assert "is a file of slide TINY1" in text


def test_a_complete_cache_that_is_read_only_is_complete(
    hest_root: Path, copied: Cache, run_command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache/last.json").unlink()

    def refuse(path: Path, value: object) -> None:
        raise WriteError(path.parent, "Read-only file system", "give another")

    monkeypatch.setattr("hist_cache.cache.write_json", refuse)
    code, text = run_command(main, *options(hest_root))
    assert code == 0, text
    assert "2 slides complete, 0 to extract" in text
    assert "cache: Read-only file system, so hist-train needs --dataset custom to find this cache" in text


@pytest.mark.parametrize("name", ["../EVIL", "/etc/passwd", "a/b", "..", "A.tokens3", "A" * 200, "A\0", "\udc80"])
@pytest.mark.parametrize("more", [(), ("--status",), ("--dry-run",), ("--download",)])
def test_a_slide_never_leaves_its_folder(
    run_command: Run, tmp_path: Path, hest_root: Path, name: str, more: tuple[str, ...]
) -> None:
    before = set(tmp_path.parent.rglob("*"))
    for argv in (("--ids", f"TINY1,{name}"), ("--ids", "TINY1", "--dataset", name.replace(".tokens", "/"))):
        code, text = run_command(main, *argv, "--data-root", hest_root, "--encoder", "demo", *more)
        assert code == 2
        assert text.splitlines()[-1].startswith(("error: slide ", "error: dataset name ", f"error: {argv[-2]} "))
        assert set(tmp_path.parent.rglob("*")) == before
