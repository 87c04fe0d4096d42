"""Slides whose images are no plain TIFF, from the folder to the cache."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from extract.cli import main
from hist_cache.cache import open_cache
from hist_cache.errors import SlideError
from hist_cache.slide_file import read_fingerprint
from hist_cache.slides import find_slide, image_name, is_absent
from tests.conftest import TINY_ENCODER, write_slide
from tests.extract.slides.test_channels import write_channels
from tests.extract.slides.test_formats import write_dicom
from tests.extract.slides.test_ome_zarr import RGB, write_zarr

Run = Callable[..., tuple[int, str]]
KINDS = {
    "PLAIN": "tifffile",
    "PAGES": "tifffile, channels as RGB, unnamed",
    "CHUNKS": "zarr",
    "FRAMES": "openslide",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One slide four times, its pixels stored without loss in four ways."""
    root = tmp_path_factory.mktemp("kinds")
    write_slide(root, "PLAIN", rows=4, columns=6)
    pixels = tifffile.imread(root / "wsis/PLAIN.tif")
    pixels = np.pad(pixels, [(0, -n % 100) for n in pixels.shape[:2]] + [(0, 0)])  # whole frames of DICOM
    tifffile.imwrite(root / "wsis/PLAIN.tif", pixels, photometric="rgb", tile=(64, 64))
    for slide in KINDS:
        if slide != "PLAIN":
            shutil.copy(root / "st/PLAIN.h5ad", root / f"st/{slide}.h5ad")
            shutil.copy(root / "metadata/PLAIN.json", root / f"metadata/{slide}.json")
    write_channels(root / "wsis/PAGES.ome.tif", pixels)
    write_zarr(root / "wsis/CHUNKS.ome.zarr", pixels, channels=RGB)
    write_dicom(root / "wsis/FRAMES/level.dcm", pixels, 2.0)
    return root


def options(root: Path, ids: str = ",".join(KINDS)) -> list[object]:
    return ["--ids", ids, "--data-root", root, "--encoder", TINY_ENCODER, "--random-weights", "--precision", "fp32"]


def test_the_same_pixels_give_the_same_embeddings(folder: Path, run_command: Run, tmp_path: Path) -> None:
    code, text = run_command(main, *options(folder), "--dry-run")
    assert code == 0, text
    for slide, reader in KINDS.items():
        unusual = reader not in ("tifffile", "openslide")
        assert (
            any(f"{slide}: {folder}" in line and f"read by {reader}" in line for line in text.splitlines()) == unusual
        )
    code, text = run_command(main, *options(folder))
    assert code == 0, text
    cache = open_cache(tmp_path / "cache", "custom")
    assert cache.slides == sorted(KINDS)
    plain = cache.read("PLAIN")
    assert {slide: read_fingerprint(cache.path(slide)).slide["reader"] for slide in KINDS} == KINDS
    for slide in KINDS:
        np.testing.assert_array_equal(cache.read(slide).embeddings, plain.embeddings)
    assert "0 crops" in run_command(main, *options(folder))[1]


def test_an_image_that_is_read_otherwise_than_before_is_stale(
    folder: Path, run_command: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:  # that read the first page alone, as grey
        earlier.setattr("extract.slides.tiff._picture_pages", lambda pages, largest, stated: ((largest,), True))
        earlier.setattr("extract.scheduler.READER_RULES", 0)
        assert run_command(main, *options(folder, "PAGES"))[0] == 0
    code, text = run_command(main, *options(folder, "PAGES"))
    assert code == 1
    assert 'stale: reader "tifffile" -> "tifffile, channels as RGB, unnamed"; delete it' in text


def test_a_chunk_that_changed_makes_a_slide_stale(folder: Path, run_command: Run, tmp_path: Path) -> None:
    root = tmp_path / "changed"
    shutil.copytree(folder, root)
    assert run_command(main, *options(root, "CHUNKS"))[0] == 0
    zarr.open_group(root / "wsis/CHUNKS.ome.zarr", mode="a")["0"][:, :, :, :50, :50] = 1
    code, text = run_command(main, *options(root, "CHUNKS"))
    assert code == 1
    assert "stale: image" in text


def test_a_dry_run_decodes_a_tile_in_the_middle_of_the_spots(folder: Path, run_command: Run, tmp_path: Path) -> None:
    root = tmp_path / "damaged"
    shutil.copytree(folder, root)
    for chunk in (root / "wsis/CHUNKS.ome.zarr/0").rglob("[0-9]*"):
        if chunk.is_file():
            chunk.write_bytes(b"no chunk")
    code, text = run_command(main, *options(root), "--dry-run")
    assert code == 1
    assert "1 slides failed" in text
    assert f"CHUNKS: {root}/wsis/CHUNKS.ome.zarr: tile 0,0 cannot be decoded" in text


def test_which_names_are_images_of_a_slide(folder: Path, tmp_path: Path) -> None:
    names = {slide: find_slide(folder, slide).image.name for slide in KINDS}
    assert names == {"PLAIN": "PLAIN.tif", "PAGES": "PAGES.ome.tif", "CHUNKS": "CHUNKS.ome.zarr", "FRAMES": "FRAMES"}
    assert [image_name(Path(name)) for name in names.values()] == list(KINDS)
    assert not is_absent(folder, "FRAMES")
    root = tmp_path / "other"
    shutil.copytree(folder, root)
    (root / "wsis/PLAIN.tif").unlink()
    (root / "wsis/PLAIN.tif").mkdir()
    with pytest.raises(SlideError, match="not a plain file"):
        find_slide(root, "PLAIN")
    shutil.rmtree(root / "wsis/FRAMES")
    with pytest.raises(SlideError, match="no image"):
        find_slide(root, "FRAMES")
