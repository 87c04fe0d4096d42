"""hist-train on caches that cannot be trusted: the command, and the one line that it ends in."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

import sweeps.cli
from hist_cache.cache import Cache, open_cache
from hist_cache.cached_slide import CachedSlide
from hist_cache.errors import DamagedCacheError
from hist_cache.fingerprint import Fingerprint
from hist_cache.panels import choose_panel
from hist_cache.slide_file import read_fingerprint, read_slide, write_slide
from tests.hist_cache.test_cache import COMMON, folder, make, rewrite
from train.assembly import assemble
from train.cli import main
from train.experiments.runner import check_data
from train.workspace import DataKey, Workspace

TENSORS = ("spot", "niche", "expression", "niche_expression", "slide", "row", "complete", "total", "position")

Run = Callable[..., tuple[int, str]]
SLIDES = ("A", "B", "C", "D")
COMMAND = ("--cache", "cache", "--dataset", "demo", "--n-genes", 5, "--dry-run")


def slide_of(seed: int, width: int = 8, sizes: tuple[int, ...] = (6,)) -> CachedSlide:
    slide = make(n=12, genes=9, width=width, sizes=sizes, seed=seed)
    slide.counts = csr_matrix(np.random.default_rng(seed).integers(0, 50, (12, 9)))
    return slide


def write(path: Path, slide: CachedSlide, image: str) -> None:
    slide.attributes = {"slide": path.stem, "um_per_px": 0.5, "spot_um": 55.0, "thumbnail_downsample": 2.0}
    write_slide(path, slide, Fingerprint(COMMON, {"image": image * 64}, {}))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """A cache of four slides in ./cache: slide -> file."""
    paths = {name: folder(tmp_path / "cache") / f"{name}.h5" for name in SLIDES}
    for seed, (name, path) in enumerate(paths.items()):
        write(path, slide_of(seed), name.lower())
    return paths


def flip(path: Path, name: str) -> None:
    """Change a bit of an array, where the file holds it."""
    with h5py.File(path) as file:
        at = file[name].id.get_offset() + 5
    content = bytearray(path.read_bytes())
    content[at] ^= 8
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-400])


def set_attribute(path: Path, name: str, value: object) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs[name] = value


def nothing_stated(path: Path) -> None:
    rewrite(path, fingerprint=json.dumps({"identity": {**COMMON, "pretrained": 1, "slide": {}}, "provenance": {}}))


def one_fact_less(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file.attrs["spot_um"]
    rewrite(path)


SPOILS: dict[str, tuple[Callable[[dict[str, Path]], object], str]] = {
    "a bit of the embeddings": (lambda f: flip(f["B"], "embeddings"), "embeddings has other values than when it was w"),
    "a bit of the neighbours": (lambda f: flip(f["B"], "neighbors/6"), "neighbors/6 has other values than when it"),
    "cut off": (lambda f: cut(f["B"]), "not a readable cache file"),
    "empty": (lambda f: f["B"].write_bytes(b""), "not a readable cache file"),
    "another patient": (lambda f: set_attribute(f["B"], "patient", "P9"), "its attributes or digests have other val"),
    "another pixel size": (lambda f: set_attribute(f["B"], "um_per_px", 0.25), "its attributes or digests have other"),
    "a copy": (lambda f: f["B"].write_bytes(f["A"].read_bytes()), "is a file of slide A, copied or renamed"),
    "other widths": (
        lambda f: write(f["B"], slide_of(1, 6), "b"),
        "embeddings of 6 numbers, where other slides have 8",
    ),
    "a folder": (lambda f: (f["B"].unlink(), f["B"].mkdir()), "not a file; remove it"),
    "a pipe": (lambda f: (f["B"].unlink(), os.mkfifo(f["B"])), "not a file; remove it"),
    "fingerprint of another kind": (lambda f: rewrite(f["B"], fingerprint="[1, null]"), "damaged (TypeError"),
    "fingerprint without facts": (lambda f: nothing_stated(f["B"]), "its fingerprint does not state pretrained"),
    "a slide that is a list": (
        lambda f: rewrite(f["B"], fingerprint=json.dumps({"identity": {**COMMON, "slide": [1]}, "provenance": {}})),
        "damaged (TypeError: the fingerprint's slide and provenance must be objects)",
    ),
    "a fact that is missing": (lambda f: one_fact_less(f["B"]), "does not state spot_um"),
    "digests of another kind": (lambda f: set_attribute(f["B"], "digests", "7"), "damaged (TypeError"),
    "no digests": (lambda f: set_attribute(f["B"], "digests", "{}"), "its end is missing"),
    "NaN": (lambda f: rewrite(f["B"], {"embeddings": np.full((12, 8), np.nan, np.float16)}), "12 of 12 spots have NaN"),
    "a neighbour too far": (
        lambda f: rewrite(f["B"], {"neighbors/6": np.full((12, 6), 12, np.int32)}),
        "neighbors/6 go from row 12 to 12, with 12 spots",
    ),
    "an index that is not there": (
        lambda f: rewrite(f["B"], {"counts/indices": np.full(read_slide(f["B"]).counts.nnz, 9, np.int32)}),
        "counts/indices go from 9 to 9, with 9 genes",
    ),
}


@pytest.mark.parametrize("case", SPOILS)
def test_a_cache_that_cannot_be_trusted(files: dict[str, Path], run_command: Run, case: str) -> None:
    spoil, line = SPOILS[case]
    spoil(files)
    code, text = run_command(main, *COMMAND)
    errors = [row for row in text.splitlines() if row.startswith("error: ")]
    assert code in (1, 2)
    assert len(errors) == 1
    assert f"{files['B'].name}: " in errors[0]
    assert line in errors[0]
    assert "Traceback" not in text


@pytest.mark.parametrize("command", [main, sweeps.cli.main], ids=["hist-train", "hist-sweep"])
def test_damaged_embeddings_end_a_command_before_it_trains(
    files: dict[str, Path], run_command: Run, command: Callable[..., int]
) -> None:
    flip(files["C"], "embeddings")
    more = ("--trials", 2) if command is sweeps.cli.main else ("--model", "hist,ridge", "--jobs", 2)
    code, text = run_command(command, *COMMAND[:-1], "--runs", "runs", *more)
    errors = [row for row in text.splitlines() if row.startswith("error: ")]
    assert code == 1
    assert len(errors) == 1
    assert "C.h5: embeddings has other values than when it was written" in errors[0]
    assert not list(Path().glob("runs/**/fold*/*"))
    assert not list(Path().glob("runs/**/study*"))


def test_damage_that_the_first_fold_would_not_meet_ends_a_command_too(files: dict[str, Path], run_command: Run) -> None:
    for seed, (name, path) in enumerate(files.items()):
        write(path, slide_of(seed, sizes=(6, 18)), name.lower())
    flip(files["C"], "niche/18")
    argv = (*COMMAND[:-1], "--runs", "runs", "--model", "ridge", "--neighbors", "6,18", "--jobs", 1)
    code, text = run_command(main, *argv)
    assert code == 1
    [error] = [row for row in text.splitlines() if row.startswith("error: ")]
    assert "C.h5: niche/18 has other values than when it was written" in error
    assert not list(Path().glob("runs/**/fold*/*"))


def test_all_is_read_before_tokens_are_made(files: dict[str, Path]) -> None:
    flip(files["C"], "embeddings")
    workspace = Workspace(Cache(files["A"].parent), [6])
    plain, tuned = (
        [SimpleNamespace(data=SimpleNamespace(neighbors=6), setting=SimpleNamespace(finetuning=finetuning))]
        for finetuning in (None, "tokens")
    )
    check_data(plain, workspace)  # type: ignore[arg-type]  # the first fold's tensors are all
    for _ in range(2):
        with pytest.raises(DamagedCacheError, match=r"C\.h5: embeddings has other values"):
            check_data(tuned, workspace)  # type: ignore[arg-type]


def arrays_of(slide: CachedSlide) -> list[np.ndarray]:
    values = [*vars(slide).values(), *slide.niches.values(), *slide.neighbors.values()]
    of_counts = [slide.counts.data, slide.counts.indices, slide.counts.indptr]
    return [value for value in values if isinstance(value, np.ndarray)] + of_counts


def test_embeddings_and_counts_are_read_again_for_each_panel_and_not_kept(files: dict[str, Path]) -> None:
    cache, cpu = Cache(files["A"].parent), torch.device("cpu")
    workspace = Workspace(cache, [6])
    wholes = {name: cache.read(name) for name in SLIDES}

    def bytes_kept() -> int:
        return sum(array.nbytes for slide in workspace.all_slides.values() for array in arrays_of(slide))

    small = sum(
        slide.coords.nbytes + slide.array.nbytes + slide.thumbnail.nbytes + slide.neighbors[6].nbytes
        for slide in wholes.values()
    )
    no_rows = len(SLIDES) * workspace.all_slides["A"].counts.indptr.nbytes  # one number
    assert bytes_kept() == small + no_rows
    assert workspace.slides["A"].genes is workspace.slides["D"].genes
    for kind, transform in (("hvg", "log2"), ("hmhvg", "ln_cp10k"), ("hvg", "ln_cp10k")):
        panel = workspace.panel(kind, 5, SLIDES)
        tables = {name: ((lambda own=slide: own.counts), slide.genes) for name, slide in wholes.items()}
        assert panel == choose_panel(kind, 5, tables)
        data = workspace.data(DataKey(6, tuple(panel), transform, drop_edges=False), cpu)
        expected = assemble(wholes, 6, panel, cpu, transform)
        for name in TENSORS:
            assert torch.equal(getattr(data, name), getattr(expected, name)), name
        assert bytes_kept() == small + no_rows


def split_of(where: Path, train: list[str], val: list[str], test: list[str]) -> Path:
    file = where / "splits.json"
    file.write_text(json.dumps([{"train": train, "val": val, "test": test}]))
    return file


def same_counts(a: CachedSlide, b: CachedSlide) -> CachedSlide:
    return replace(b, counts=a.counts)


def same_embeddings(a: CachedSlide, b: CachedSlide) -> CachedSlide:
    return replace(b, embeddings=a.embeddings)


def same_places(a: CachedSlide, b: CachedSlide) -> CachedSlide:
    return replace(b, coords=np.concatenate([b.coords[:-1], a.coords[:1]]))


@pytest.mark.parametrize(
    ("image", "alike"),
    [("d", same_counts), ("d", same_embeddings), ("a", same_places)],
    ids=["counts", "embeddings", "places"],
)
def test_one_slide_under_two_names_is_in_one_part(
    files: dict[str, Path], run_command: Run, tmp_path: Path, image: str, alike: Callable[..., CachedSlide]
) -> None:
    write(files["D"], alike(read_slide(files["A"]), read_slide(files["D"])), image)
    for split in (["A", "B"], ["C"], ["D"]), (["B", "D"], ["A"], ["C"]):
        code, text = run_command(main, *COMMAND, "--split", split_of(tmp_path, *split))
        assert code == 2
        assert "A in " in text
        assert "and D in " in text
        assert "are the same slide under two names; delete the cache file of one, or give a file of splits" in text
    for split in (["A", "D"], ["B"], ["C"]), (["A"], ["B"], ["C"]):
        code, text = run_command(main, *COMMAND, "--split", split_of(tmp_path, *split))
        assert code == 0, text
    code, text = run_command(main, *COMMAND)  # leaves one slide out in turn
    assert code == 2
    assert "are the same slide under two names" in text


def test_slides_that_share_an_image_but_no_place_are_two(files: dict[str, Path], run_command: Run) -> None:
    write(files["D"], read_slide(files["D"]), "a")
    code, text = run_command(main, *COMMAND)
    assert code == 0, text


def test_the_test_datasets_slides_are_none_of_the_train_slides(
    files: dict[str, Path], run_command: Run, tmp_path: Path
) -> None:
    other = folder(tmp_path / "cache", dataset="other") / "T.h5"
    write(other, slide_of(7), "t")
    argv = (*COMMAND, "--test-dataset", "other")
    assert run_command(main, *argv)[0] == 0
    write(other, replace(slide_of(7), counts=read_slide(files["A"]).counts), "t")
    code, text = run_command(main, *argv, "--fold", 2)
    assert code == 2
    assert "A in train and T in test are the same slide under two names" in text
    write(other, slide_of(7, width=4), "t")
    code, text = run_command(main, *argv)
    assert code == 1
    assert "T.h5: embeddings of 4 numbers, where other slides have 8" in text


def test_digests_are_those_of_the_file(files: dict[str, Path]) -> None:
    slide = read_slide(files["A"])
    assert slide.image == "a" * 64
    write_slide(files["A"], slide, read_fingerprint(files["A"]))
    assert read_slide(files["A"]).digests == slide.digests


@pytest.mark.parametrize(
    "last", ["null", "[1]", "7", '"demo"', '{"dataset": 5}', '{"dataset": "../demo"}', "[" * 9999, "{"]
)
def test_what_was_extracted_last_may_be_anything(files: dict[str, Path], run_command: Run, last: str) -> None:
    Path("cache/last.json").write_text(last)
    code, text = run_command(main, "--cache", "cache", "--dry-run")
    assert code == 2
    assert "nothing extracted here yet" in text or "dataset name '../demo': use letters" in text


@pytest.mark.parametrize("option", ["--dataset", "--test-dataset"])
@pytest.mark.parametrize("name", ["../demo", "/etc", ".", "..", "a/b", "a\0b", "x" * 200, "\udcff"])
def test_a_dataset_never_leaves_the_cache(files: dict[str, Path], run_command: Run, option: str, name: str) -> None:
    code, text = run_command(main, *COMMAND, option, name)
    assert code == 2
    assert text.splitlines()[-1].startswith(("error: dataset name ", f"error: {option} "))


def test_a_cache_may_be_the_current_folder(
    files: dict[str, Path], run_command: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files["A"].parent)
    assert [open_cache(path).dataset for path in (".", "../../demo/" + files["A"].parent.name)] == ["demo", "demo"]
    code, text = run_command(main, *COMMAND, "--cache", ".", "--runs", "runs")
    assert code == 0, text
