"""CZI written by pylibCZIrw, Zeiss's own library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import extract.slides.vendors
from extract.slides.pixel_size import read_pixel_size
from extract.slides.readers import open_image
from hist_cache.errors import SlideError
from tests.extract.slides.test_readers import whole

czi = pytest.importorskip("pylibCZIrw.czi", reason="CZI needs pylibCZIrw: pip install 'hist-cache[czi]'")

PIXELS = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
Tile = tuple[np.ndarray, tuple[int, int], dict[str, int], int]  # pixels, place, plane, scene


def write_czi(path: Path, *tiles: Tile, names: dict[int, str] | None = None) -> Path:
    with czi.create_czi(str(path), compression_options="zstd1:ExplicitLevel=1") as file:
        for pixels, place, plane, scene in tiles:
            file.write(np.ascontiguousarray(pixels[..., ::-1]), location=place, plane=plane, scene=scene)
        file.write_metadata(channel_names=names, scale_x=0.5e-6, scale_y=0.5e-6)
    return path


def test_tiles_of_two_scenes(tmp_path: Path) -> None:
    """The origin is the corner of both scenes together, wherever the stage has its own; between them it is white."""
    path = write_czi(
        tmp_path / "a.czi",
        (PIXELS, (-50, 100), {}, 0),
        (PIXELS[::-1], (270, 100), {}, 0),
        (PIXELS, (900, 400), {}, 1),
    )
    expected = np.full((540, 1270, 3), 255, dtype=np.uint8)
    expected[:240, :320] = PIXELS
    expected[:240, 320:640] = PIXELS[::-1]
    expected[300:, 950:] = PIXELS
    image = open_image("S", path)
    assert (image.reader_name, image.width, image.height) == ("pylibCZIrw", 1270, 540)
    np.testing.assert_array_equal(whole(image), expected)
    np.testing.assert_array_equal(image.overview(), expected)
    image.close()
    size = read_pixel_size("S", path)
    assert size is not None
    assert (size.um_per_px, size.source) == (pytest.approx(0.5), "CZI's Scaling")


def test_a_large_slide_is_seen_smaller(tmp_path: Path) -> None:
    y, x = np.mgrid[:900, :4500]
    pixels = np.stack([x // 20, y // 4, np.full_like(x, 90)], axis=-1).astype(np.uint8)
    image = open_image("S", write_czi(tmp_path / "a.czi", (pixels, (0, 0), {}, 0)))
    small = image.overview()
    assert small.shape == (450, 2250, 3)
    assert np.abs(small.astype(int) - pixels[::2, ::2]).max() <= 1
    np.testing.assert_array_equal(image.read_tile(3, 0), pixels[:, 3072:4096])
    image.close()


GREY = PIXELS[..., :1]
OTHERS: dict[str, tuple[list[Tile], Any, str]] = {
    "stains": ([(GREY, (0, 0), {"C": 0}, 0), (GREY, (0, 0), {"C": 1}, 0)], {0: "DAPI", 1: "FITC"},
               "its 2 channels are DAPI, FITC, not red, green and blue; store one RGB picture"),
    "grey": ([(GREY, (0, 0), {}, 0)], None, "its samples are Gray8, not Bgr24"),
    "16 bits": ([(PIXELS[..., :1].astype(np.uint16), (0, 0), {}, 0)], None, "its samples are Gray16"),
    "focal planes": ([(PIXELS, (0, 0), {"Z": 0}, 0), (PIXELS, (0, 0), {"Z": 1}, 0)], None, "2 along its axis Z"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_are_refused(tmp_path: Path, kind: str) -> None:
    tiles, names, problem = OTHERS[kind]
    with pytest.raises(SlideError) as caught:
        open_image("SLIDE7", write_czi(tmp_path / "a.czi", *tiles, names=names))
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_files_and_a_missing_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.czi"
    path.write_bytes(b"no image" * 100)
    with pytest.raises(SlideError, match="not a readable image"):
        open_image("S", path)
    monkeypatch.setattr(extract.slides.vendors, "CZI_LIBRARY", "library_that_is_not_there")
    with pytest.raises(SlideError, match=r"which is not installed; pip install 'hist-cache\[czi\]'$"):
        open_image("S", path)
    assert read_pixel_size("S", path) is None
