"""hist-extract over a folder in which nearly every image is bad: a line for each of these, and the others are done."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile

from extract.cli import main
from hist_cache.cache import open_cache
from tests.conftest import TINY_ENCODER, write_slide
from tests.extract.slides.test_tiff import APERIO, chain, loop

Run = Callable[..., tuple[int, str]]
Change = Callable[[Path, Path], object]


def stored(**options: object) -> Change:
    """The image again, stored in another way."""

    def change(image: Path, metadata: Path) -> None:
        pixels = tifffile.imread(image)
        convert = options.get("as_", lambda p: p)
        tifffile.imwrite(image, convert(pixels), **{k: v for k, v in options.items() if k != "as_"})  # type: ignore[operator,arg-type]

    return change


def replaced(make: Callable[[Path], object]) -> Change:
    def change(image: Path, metadata: Path) -> None:
        image.unlink()
        make(image)

    return change


def said(**values: float) -> Change:
    """Another size in the metadata."""
    return lambda image, metadata: metadata.write_text(json.dumps(json.loads(metadata.read_text()) | values))


def more_tiles(image: Path, metadata: Path) -> None:
    with tifffile.TiffFile(image, mode="r+") as file:
        file.pages[0].tags[256].overwrite(60_000)
        file.pages[0].tags[257].overwrite(60_000)


BAD: dict[str, tuple[Change, str]] = {
    "FLOAT": (stored(as_=lambda p: p.astype(np.float32), photometric="rgb"), "its samples are float32 of 32 bits"),
    "LAB": (stored(photometric="cielab"), "its colours are CIE Lab"),
    "CHANNELS": (stored(as_=lambda p: p.transpose(2, 0, 1), photometric="minisblack"), "3 pictures of full size"),
    "TILES": (more_tiles, "tiles and lists"),
    "LOOP": (replaced(loop(2)), "its directories form a loop"),
    "LONGLOOP": (replaced(loop(500)), "its directories form a loop"),
    "CHAIN": (replaced(chain), "more than 1,000 pages"),
    "PIPE": (replaced(os.mkfifo), "file"),
    "EMPTY": (replaced(Path.touch), "not a TIFF file"),
    "TEXT": (replaced(lambda path: path.write_text("no image")), "not a TIFF file"),
    "TINYPX": (said(pixel_size_um_estimated=0.001), "0.001 um"),
    "LARGEPX": (said(pixel_size_um_estimated=25), "25 um"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "hest"
    files = [root / "wsis/GOOD.tif", root / "metadata/GOOD.json", write_slide(root, "GOOD")]
    for slide, (change, _) in BAD.items():
        for file in files:
            shutil.copy(file, file.with_stem(slide))
        change(root / "wsis" / f"{slide}.tif", root / "metadata" / f"{slide}.json")
    return root


def test_bad_images_fail_alone_and_the_dry_run_says_the_same(folder: Path, run_command: Run, tmp_path: Path) -> None:
    options = ["--ids", ",".join([*BAD, "GOOD"]), "--data-root", folder, "--encoder", TINY_ENCODER, "--random-weights"]
    for more in (["--dry-run"], []):
        code, text = run_command(main, *options, "--precision", "fp32", *more)
        assert code == 1
        assert f"{len(BAD)} slides failed" in text
        assert "Traceback" not in text
        for slide, (_, problem) in BAD.items():
            lines = [line for line in text.splitlines() if f" {slide}: {folder}" in line]
            assert lines, slide
            assert all(problem in line for line in lines), lines
    assert open_cache(tmp_path / "cache", "custom").slides == ["GOOD"]


def test_a_tile_that_cannot_be_decoded_fails_its_slide_alone(hest_root: Path, run_command: Run, tmp_path: Path) -> None:
    image = hest_root / "wsis/TINY1.tif"
    with tifffile.TiffFile(image) as file:
        at, count = file.pages[0].dataoffsets[8], file.pages[0].databytecounts[8]
    data = bytearray(image.read_bytes())
    data[at : at + count] = bytes(count)
    image.write_bytes(data)
    options = ["--ids", "TINY1,TINY2", "--data-root", hest_root, "--encoder", TINY_ENCODER, "--random-weights"]
    code, text = run_command(main, *options)
    assert code == 1
    assert "Traceback" not in text
    assert f"TINY1: {image}: cannot be decoded (a JPEG without a header)" in text
    assert open_cache(tmp_path / "cache", "custom").slides == ["TINY2"]
    code, text = run_command(main, *options, "--debug")
    assert "Traceback" in text


def test_a_file_on_which_openslide_ends_its_process(hest_root: Path, run_command: Run, tmp_path: Path) -> None:
    image, slide = hest_root / "wsis/TINY1.tif", hest_root / "wsis/TINY1.scn"
    stored_so = {"tile": (64, 64), "compression": "jpeg2000", "photometric": "rgb", "bigtiff": True, "metadata": None}
    tifffile.imwrite(slide, tifffile.imread(image), description=APERIO, **stored_so)  # type: ignore[arg-type]
    image.unlink()
    with tifffile.TiffFile(slide, mode="r+") as file:
        file.pages[0].tags[259].overwrite(33005)
        tag = file.pages[0].tags[325]
        tag.overwrite([2**44] * tag.count, dtype="Q")
    options = ["--ids", "TINY1,TINY2", "--data-root", hest_root, "--encoder", TINY_ENCODER, "--random-weights"]
    code, text = run_command(main, *options)
    assert code == 1
    assert f"TINY1: {slide}: cannot be decoded (OpenSlide ends with SIG" in text
    assert "Traceback" not in text
    assert open_cache(tmp_path / "cache", "custom").slides == ["TINY2"]


@pytest.mark.parametrize(
    ("more", "sizes", "side"),
    [
        (["--any-scale"], {"pixel_size_um_estimated": 1e-9}, "px wide at 1e-09 um per pixel"),
        (["--any-scale"], {"inter_spot_dist": 1e15, "spot_diameter": 1e14}, "px wide at 2 um per pixel"),
    ],
)
def test_crops_larger_than_memory_are_refused(
    hest_root: Path, run_command: Run, more: list[object], sizes: dict[str, float], side: str
) -> None:
    said(**sizes)(hest_root / "wsis/TINY1.tif", hest_root / "metadata/TINY1.json")
    options = ["--ids", "TINY1", "--data-root", hest_root, "--encoder", TINY_ENCODER, "--random-weights"]
    for dry in ([], ["--dry-run"]):
        code, text = run_command(main, *options, *more, *dry)
        assert code == 1
        assert "Traceback" not in text
        assert side in text
        assert "of memory" in text
