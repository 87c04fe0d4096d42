"""hist-extract as a whole, on tiny slides: resume, kill, sharing, stale caches."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pytest

import extract.embeddings
from extract.cli import main
from hist_cache.cache import Cache, open_cache
from hist_cache.slide_file import read_slide
from hist_cache.slides import slides_on_disk
from hist_cache.verify import verify_slide
from tests.commands import Command
from tests.conftest import SHARED, TINY_ENCODER, needs_shared, write_slide

Run = Callable[..., tuple[int, str]]
Start = Callable[..., Command]
IDS = "TINY1,TINY2"


def options(root: Path, *more: object) -> list[object]:
    return [
        "--ids",
        IDS,
        "--data-root",
        root,
        "--encoder",
        TINY_ENCODER,
        "--random-weights",
        "--precision",
        "fp32",
        *more,
    ]


def cache_of(where: Path) -> Cache:
    return open_cache(where / "cache", "custom")


def test_extract_then_again_then_more_niches(hest_root: Path, run_command: Run, tmp_path: Path) -> None:
    code, text = run_command(main, *options(hest_root))
    assert code == 0, text
    assert "random weights" in text
    cache = cache_of(tmp_path)
    assert cache.slides == ["TINY1", "TINY2"]
    first = cache.read("TINY1")
    table = anndata.read_h5ad(hest_root / "st/TINY1.h5ad")
    assert first.barcodes == list(table.obs_names)
    np.testing.assert_array_equal(first.counts.toarray(), table.X.toarray())
    assert first.embeddings.shape == (30, 64)
    assert first.attributes["lattice"] == "hex"
    assert not cache.fingerprint().common["pretrained"]

    before = cache.path("TINY1").stat().st_mtime_ns
    code, text = run_command(main, *options(hest_root))
    assert code == 0
    assert "2 slides complete" in text
    assert "0 crops" in text
    assert cache.path("TINY1").stat().st_mtime_ns == before

    code, text = run_command(main, *options(hest_root, "--neighbors", "6,18"))
    assert code == 0
    assert "60 crops" in text  # the new niches alone
    more = cache.read("TINY1")
    np.testing.assert_array_equal(more.embeddings, first.embeddings)
    np.testing.assert_array_equal(more.niches[6], first.niches[6])
    assert more.neighbors[18].shape == (30, 18)
    assert verify_slide(cache.path("TINY1")) == []


def test_dry_run_status_and_verify(hest_root: Path, run_command: Run, tmp_path: Path) -> None:
    code, text = run_command(main, *options(hest_root, "--dry-run"))
    assert code == 0
    assert "120 crops" in text
    assert "would take about" in text
    assert not (tmp_path / "cache").exists()
    image = hest_root / "wsis/TINY1.tif"
    code, text = run_command(main, *options(hest_root, "--dry-run", "--cache", image))
    assert code == 1
    assert f"error: {image}: no folder; give a folder that can be written to" in text
    assert run_command(main, "--ids", IDS, "--status")[1].strip().endswith("no cache")
    run_command(main, *options(hest_root))
    path = cache_of(tmp_path).path("TINY2")
    code, text = run_command(main, "--ids", "TINY1,TINY2,TINY3", "--verify")
    assert code == 0
    assert "1 missing: TINY3" in text
    path.write_bytes(path.read_bytes()[:-100])
    code, text = run_command(main, "--ids", IDS, "--verify")
    assert code == 1
    assert "TINY2" in text
    assert "delete the file and extract again" in text


def test_one_bad_slide_does_not_stop_the_others(hest_root: Path, run_command: Run, tmp_path: Path) -> None:
    image = hest_root / "wsis/TINY1.tif"
    image.write_bytes(image.read_bytes()[:-5000])
    code, text = run_command(main, *options(hest_root))
    assert code == 1
    assert "1 slides failed" in text
    assert f"TINY1: {image}: truncated" in text
    assert cache_of(tmp_path).slides == ["TINY2"]


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("hist_cache.sources.find_slide", RecursionError("deep")),
        ("hist_cache.sources.read_spots", MemoryError()),
        ("extract.embeddings.plan_crops", RuntimeError("CUDA\nerror")),
    ],
)
def test_whatever_is_raised_for_one_slide_the_others_go_on(
    hest_root: Path, run_command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception
) -> None:
    module, name = where.rsplit(".", 1)
    works = getattr(sys.modules[module], name)
    calls = []

    def fails_at_first(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 1:
            raise error
        return works(*arguments)

    monkeypatch.setattr(where, fails_at_first)
    for more in ((), ("--debug",)):
        calls.clear()
        code, text = run_command(main, *options(hest_root, "--cache", tmp_path / f"cache{len(more)}", *more))
        assert code == 1
        assert "1 slides failed" in text
        assert f": {type(error).__name__}" in next(line for line in text.splitlines() if "warning:   TINY1: " in line)
        assert ("Traceback" in text) == bool(more)
        assert open_cache(tmp_path / f"cache{len(more)}", "custom").slides == ["TINY2"]


def test_a_slide_that_cannot_be_written_fails_alone(
    hest_root: Path, run_command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, *others: object) -> None:
        if path.stem == "TINY1":
            raise ValueError("no such type")
        write_slide_file(path, *others)

    write_slide_file = extract.embeddings.write_slide
    monkeypatch.setattr("extract.embeddings.write_slide", write)
    code, text = run_command(main, *options(hest_root))
    assert code == 1
    assert "TINY1.h5: ValueError: no such type; --debug shows where it happened" in text
    assert cache_of(tmp_path).slides == ["TINY2"]


@pytest.mark.parametrize(
    ("metadata_of_1", "says"),
    [
        ({"inter_spot_dist": 2, "spot_diameter": 2}, "inter_spot_dist is 2 um"),
        ({"inter_spot_dist": 400}, "spots lie 100"),
    ],
)
def test_a_dry_run_refuses_what_the_run_refuses_unless_any_scale_is_accepted(
    hest_root: Path, run_command: Run, metadata_of_1: dict[str, float], says: str
) -> None:
    metadata(hest_root, **metadata_of_1)
    for more in (["--dry-run"], []):
        code, text = run_command(main, *options(hest_root, *more))
        assert code == 1
        assert says in text
        assert "give --any-scale if it is right" in text
    code, text = run_command(main, *options(hest_root, "--any-scale"))
    assert code == 0, text
    assert "2 slides in" in text


def test_advice_for_slides_that_are_not_there(hest_root: Path, run_command: Run) -> None:
    for ids, says in (("MINE,OTHER", "MINE, OTHER); is --data-root right?"), ("SPA138", "fetch them with --download")):
        code, text = run_command(main, *options(hest_root, "--ids", ids))
        assert code == 2
        assert text.strip().endswith(says)


def test_wrong_weights_of_an_encoder_that_is_not_published(hest_root: Path, run_command: Run) -> None:
    for weights in ("nowhere", "."):
        code, text = run_command(
            main, "--ids", IDS, "--data-root", hest_root, "--encoder", "demo", "--weights", weights
        )
        assert code == 2
        assert "a file with its weights" in text


def test_spots_outside_the_image(hest_root: Path, run_command: Run, tmp_path: Path) -> None:
    path = hest_root / "st/TINY1.h5ad"
    table = anndata.read_h5ad(path)
    inside = table.obsm["spatial"].copy()
    table.obsm["spatial"] = inside + np.array([0, 130])
    table.write_h5ad(path)
    code, text = run_command(main, *options(hest_root))
    assert code == 0
    assert "of 30 spots lie outside the image; white there" in text
    table.obsm["spatial"] = inside + np.array([0, 1e5])
    table.write_h5ad(hest_root / "st/TINY2.h5ad")
    code, text = run_command(main, *options(hest_root, "--cache", tmp_path / "other"))
    assert code == 1
    assert "30 of 30 spots lie outside the image" in text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda root: write_slide(root, "TINY1", seed=9), "stale: image "),
        (lambda root: metadata(root, pixel_size_um_estimated=2.1), "stale: um_per_px 2.0 -> 2.1"),
        (lambda root: metadata(root, spot_diameter=60), "stale: spot_um 55.0 -> 60.0"),
    ],
)
def test_a_changed_slide_is_refused_and_the_change_spelled_out(
    hest_root: Path, run_command: Run, tmp_path: Path, change: Callable[[Path], object], says: str
) -> None:
    run_command(main, *options(hest_root))
    before = cache_of(tmp_path).path("TINY1").read_bytes()
    change(hest_root)
    code, text = run_command(main, *options(hest_root))
    assert code == 1
    assert says in text
    assert "delete it to extract again" in text
    assert cache_of(tmp_path).path("TINY1").read_bytes() == before


def metadata(root: Path, **values: float) -> None:
    file = root / "metadata/TINY1.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_touching_a_file_changes_nothing(hest_root: Path, run_command: Run) -> None:
    run_command(main, *options(hest_root))
    os.utime(hest_root / "wsis/TINY1.tif")
    assert "2 slides complete" in run_command(main, *options(hest_root))[1]


def test_another_crop_size_is_another_cache_and_said(hest_root: Path, run_command: Run, tmp_path: Path) -> None:
    run_command(main, *options(hest_root))
    code, text = run_command(main, *options(hest_root, "--min-spot-um", 112))
    assert code == 0
    assert 'spot_crop_um "spot diameter" -> "spot diameter, at least 112"' in text
    assert len(list((tmp_path / "cache/custom").iterdir())) == 2


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--neighbors", "7"], "--neighbors 7: give any of 6, 18, 36"),
        (["--data-root", "nowhere"], "nowhere: no such folder"),
        (["--encoder", "unni"], "unni"),
        (["--ids", "NONE1"], "none of the slides"),
        (["--precision", "fp8"], "precision"),
    ],
)
def test_wrong_input_exits_with_2_and_one_line(hest_root: Path, run_command: Run, more: list[str], says: str) -> None:
    code, text = run_command(main, *options(hest_root, *more))
    assert code == 2
    assert says in text
    assert "Traceback" not in text


def test_no_dataset_at_all(run_command: Run) -> None:
    code, text = run_command(main)
    assert code == 2
    assert "give --dataset NAME or --ids" in text


def test_a_cache_file_is_hest_bench_compatible(hest_root: Path, run_command: Run, tmp_path: Path) -> None:
    import h5py

    run_command(main, *options(hest_root))
    with h5py.File(cache_of(tmp_path).path("TINY1")) as file:
        assert {"embeddings", "barcodes", "coords"} <= set(file)
        assert len(file["embeddings"]) == len(file["barcodes"]) == len(file["coords"])


def test_status_names_what_a_killed_run_left_and_the_next_run_removes_it(
    hest_root: Path, tmp_path: Path, run_command: Run, start_command: Start
) -> None:
    script = (
        "import os, h5py, signal\n"
        "h5py.File.flush = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from extract.cli import main; raise SystemExit(main())"
    )
    where = tmp_path / "cache"
    process = start_command(script, *options(hest_root, "--cache", where))
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert list(where.glob("custom/*/*.h5")) == []
    assert len(list(where.glob("custom/*/*.partial"))) == 1
    assert "left by a killed run" in run_command(main, "--ids", IDS, "--cache", where, "--status")[1]
    code, text = run_command(main, *options(hest_root, "--cache", where))
    assert code == 0, text
    assert list(where.glob("custom/*/*.partial")) == []
    assert open_cache(where, "custom").slides == ["TINY1", "TINY2"]


@needs_shared
def test_real_tissue(run_command: Run, tmp_path: Path) -> None:
    code, text = run_command(
        main,
        "--dataset",
        "her2st",
        "--ids",
        "SPA138",
        "--data-root",
        SHARED / "hest",
        "--encoder",
        TINY_ENCODER,
        "--random-weights",
    )
    assert code == 0, text
    slide = read_slide(next((tmp_path / "cache/her2st").glob("*/SPA138.h5")))
    assert slide.attributes["lattice"] == "square"
    assert slide.neighbors[6].shape == (181, 8)
    assert slide.attributes["side_um/6"] == 500.0
    assert "SPA138" in slides_on_disk(SHARED / "hest")
