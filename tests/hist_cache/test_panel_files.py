"""Panels kept beside a cache: the same as chosen anew, and never believed where anything about them is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix

import train.workspace
from hist_cache.cache import Cache
from hist_cache.cached_slide import CachedSlide
from hist_cache.fingerprint import Fingerprint
from hist_cache.panel_files import keep_panel
from hist_cache.slide_file import write_slide
from tests.hist_cache.test_cache import COMMON, folder, make
from train.workspace import Workspace

SLIDES = ("A", "B", "C")


def slide_of(seed: int, name: str) -> CachedSlide:
    slide = make(n=12, genes=30, width=8, seed=seed)
    slide.counts = csr_matrix(np.random.default_rng(seed).poisson(np.geomspace(0.5, 50, 30), (12, 30)))
    slide.attributes = {"slide": name, "um_per_px": 0.5, "spot_um": 55.0, "thumbnail_downsample": 2.0}
    return slide


def write(where: Path, name: str, slide: CachedSlide) -> None:
    write_slide(where / f"{name}.h5", slide, Fingerprint(COMMON, {"image": name.lower() * 64}, {}))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    where = folder(tmp_path / "cache")
    for seed, name in enumerate(SLIDES):
        write(where, name, slide_of(seed, name))
    return Cache(where)


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kind of each panel that is chosen instead of read."""
    kinds: list[str] = []
    choose = train.workspace.choose_panel

    def choose_and_note(kind: str, *others: Any) -> list[str]:
        kinds.append(kind)
        return choose(kind, *others)

    monkeypatch.setattr(train.workspace, "choose_panel", choose_and_note)
    return kinds


def panel_of(cache: Cache, kind: str = "hmhvg", n: int = 5, slides: tuple[str, ...] = SLIDES) -> list[str]:
    """What a command of its own reads or chooses, and keeps."""
    workspace = Workspace(cache, [6])
    panel = workspace.panel(kind, n, slides)
    workspace.keep_panels()
    return panel


def test_a_panel_is_chosen_once(cache: Cache, chosen: list[str]) -> None:
    first = panel_of(cache)
    assert panel_of(cache) == first
    assert chosen == ["hmhvg"]
    others = [panel_of(cache, "hvg"), panel_of(cache, n=4), panel_of(cache, slides=("A", "B"))]
    assert chosen == ["hmhvg", "hvg", "hmhvg", "hmhvg"]
    assert [panel_of(cache, "hvg"), panel_of(cache, n=4), panel_of(cache, slides=("B", "A"))] == others
    assert len(chosen) == 4
    assert len(list(cache.folder.glob("panels/*.json"))) == 4
    assert cache.slides == list(SLIDES)


def test_a_command_that_only_looks_keeps_nothing(cache: Cache) -> None:
    Workspace(cache, [6]).panel("hmhvg", 5, SLIDES)
    assert not (cache.folder / "panels").exists()


def test_other_counts_have_another_panel(cache: Cache, chosen: list[str]) -> None:
    panel_of(cache)
    slide = slide_of(2, "C")
    counts = slide.counts.toarray()
    counts[:, 4] = 500 * np.arange(12)
    slide.counts = csr_matrix(counts)
    write(cache.folder, "C", slide)
    assert slide.genes[4] in panel_of(cache)
    assert len(chosen) == 2


def other_gene(content: dict[str, Any]) -> None:
    content["panel"][0] = next(f"G{i}" for i in range(30) if f"G{i}" not in content["panel"])


SPOILS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "another gene": other_gene,
    "another order": lambda content: content["panel"].reverse(),
    "a gene less": lambda content: content["panel"].pop(),
    "of other counts": lambda content: content["chosen_from"]["counts"].pop(),
    "no texts": lambda content: content.update(panel=[1, None, [], {}, 2.5]),
    "no source": lambda content: content.pop("chosen_from"),
    "no digest": lambda content: content.pop("sha256"),
}


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
def test_a_damaged_file_is_not_believed(
    cache: Cache, chosen: list[str], spoil: Callable[[dict[str, Any]], Any]
) -> None:
    panel = panel_of(cache)
    [file] = cache.folder.glob("panels/*.json")
    sound = file.read_bytes()
    content = json.loads(sound)
    spoil(content)
    file.write_text(json.dumps(content))
    assert panel_of(cache) == panel
    assert len(chosen) == 2
    assert file.read_bytes() == sound, "written anew"


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"\xff", b"[" * 100_000, b'{"panel": ["GENE1"]}'])
def test_what_is_no_panel_file(cache: Cache, chosen: list[str], content: bytes) -> None:
    panel = panel_of(cache)
    [file] = cache.folder.glob("panels/*.json")
    file.write_bytes(content)
    assert panel_of(cache) == panel
    assert len(chosen) == 2


def test_a_digest_of_genes_that_no_slide_has_is_not_enough(cache: Cache, chosen: list[str]) -> None:
    panel = panel_of(cache)
    [file] = cache.folder.glob("panels/*.json")
    keep_panel(cache.folder, json.loads(file.read_text())["chosen_from"], ["NONE", *panel[1:]])
    assert panel_of(cache) == panel
    assert len(chosen) == 2


def test_where_nothing_can_be_written(cache: Cache, chosen: list[str]) -> None:
    (cache.folder / "panels").touch()  # as a folder that is read-only, which is nothing to root
    panel = panel_of(cache)
    assert panel_of(cache) == panel
    assert len(chosen) == 2
    (cache.folder / "panels").unlink()
    panel_of(cache)
    shutil.rmtree(cache.folder / "panels")
    assert panel_of(cache) == panel


def test_a_panel_from_a_file_is_not_kept(cache: Cache, tmp_path: Path) -> None:
    genes = slide_of(0, "A").genes
    (tmp_path / "genes.txt").write_text("\n".join(genes[:3]))
    assert panel_of(cache, str(tmp_path / "genes.txt")) == genes[:3]
    assert not (cache.folder / "panels").exists()
