from pathlib import Path

import numpy as np
import openslide
import PIL.Image
import pytest
import tifffile

from extract.slides.image import WHITE, make_thumbnail
from extract.slides.readers import open_image
from hist_cache.errors import SlideError, slide_failure
from tests.conftest import SHARED, needs_shared


def whole(image) -> np.ndarray:  # type: ignore[no-untyped-def]
    rows, columns = -(-image.height // image.tile_height), -(-image.width // image.tile_width)
    return np.concatenate([np.concatenate([image.read_tile(c, r) for c in range(columns)], 1) for r in range(rows)])


@pytest.fixture
def pixels() -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 255, (38, 50, 3), dtype=np.uint8)
    return np.kron(small, np.ones((8, 8, 1), dtype=np.uint8))[:300, :397]


@pytest.mark.parametrize("options", [
    {"tile": (64, 64), "compression": "zlib"}, {"tile": (128, 64), "compression": "lzw"}, {"tile": (64, 64)},
    {"rowsperstrip": 50, "compression": "zlib"}, {},
])  # fmt: skip
def test_lossless_tiff(tmp_path: Path, pixels: np.ndarray, options: dict) -> None:
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", **options)
    image = open_image("S", tmp_path / "a.tif")
    assert image.reader_name == "tifffile"
    np.testing.assert_array_equal(whole(image), pixels)
    assert make_thumbnail(image).shape == pixels.shape


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_plain_pictures(tmp_path: Path, pixels: np.ndarray, suffix: str) -> None:
    PIL.Image.fromarray(pixels).save(tmp_path / f"a{suffix}")
    image = open_image("S", tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(whole(image), np.asarray(PIL.Image.open(tmp_path / f"a{suffix}")))


def test_grey_and_transparent(tmp_path: Path, pixels: np.ndarray) -> None:
    tifffile.imwrite(tmp_path / "grey.tif", pixels[..., 0], tile=(64, 64), photometric="minisblack")
    np.testing.assert_array_equal(whole(open_image("S", tmp_path / "grey.tif")), pixels[..., :1].repeat(3, -1))
    clear = np.dstack([pixels, np.zeros_like(pixels[..., :1])])
    PIL.Image.fromarray(clear).save(tmp_path / "clear.png")
    assert (whole(open_image("S", tmp_path / "clear.png")) == WHITE).all()


def test_a_thumbnail_of_an_image_without_pyramid(tmp_path: Path) -> None:
    y, x = np.mgrid[0:3000, 0:2500]
    pixels = np.stack([x // 10, y // 12, np.full_like(x, 128)], axis=-1).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(256, 256), compression="zlib", photometric="rgb")
    small = make_thumbnail(open_image("S", tmp_path / "a.tif"))
    expected = np.asarray(PIL.Image.fromarray(pixels).resize((853, 1024), PIL.Image.Resampling.BOX))
    assert small.shape == expected.shape
    assert np.abs(small.astype(int) - expected).mean() < 2


@pytest.mark.parametrize("spoil", [lambda b: b[: len(b) // 2], lambda b: b[:50], lambda b: b"no image" * 100])
@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_damaged_files_get_one_line(tmp_path: Path, pixels: np.ndarray, spoil, suffix: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / f"a{suffix}"
    if suffix == ".tif":
        tifffile.imwrite(path, pixels, tile=(64, 64), compression="zlib", photometric="rgb")
    else:
        PIL.Image.fromarray(pixels).save(path)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(SlideError, match=r"SLIDE7: .*copy or download it again"):
        whole(open_image("SLIDE7", path))


@pytest.mark.parametrize(
    ("suffix", "kind", "says"),
    [
        (".jpg", "PNG", "not a JPEG; name it by its format"),
        (".png", "TIFF", "not a PNG; name it by its format"),
        (".tif", "JPEG", "not a TIFF file"),
    ],
)
def test_pictures_under_the_name_of_another_format(
    tmp_path: Path, pixels: np.ndarray, suffix: str, kind: str, says: str
) -> None:
    path = tmp_path / f"a{suffix}"
    PIL.Image.fromarray(pixels).save(path, format=kind)
    with pytest.raises(SlideError, match=f"SLIDE7: {path}: {says}"):
        open_image("SLIDE7", path)


def test_a_picture_that_may_not_be_read(tmp_path: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, photometric="rgb")

    def refuse(file: Path) -> None:
        raise PermissionError(13, "Permission denied", str(file))  # tests run as root, who may read anything

    monkeypatch.setattr("extract.slides.tiff.check_directories", refuse)
    with pytest.raises(SlideError, match=r"a\.tif: not a readable image \(permission denied\); let yourself read it$"):
        open_image("SLIDE7", path)


def test_a_file_that_may_not_be_read_is_named_wherever_it_was_met() -> None:
    failure = slide_failure("SLIDE7", "SLIDE7.h5", PermissionError(13, "Permission denied", "wsis/SLIDE7.tif"))
    assert str(failure) == "SLIDE7: wsis/SLIDE7.tif: permission denied; let yourself read it"


def test_a_damaged_tile_is_named(tmp_path: Path, pixels: np.ndarray) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, tile=(64, 64), compression="jpeg", photometric="rgb")
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].dataoffsets[8]
    data = bytearray(path.read_bytes())
    data[offset : offset + 20] = b"\0" * 20
    path.write_bytes(data)
    with pytest.raises(SlideError, match="tile 1,1 cannot be decoded"):
        whole(open_image("S", path))


@needs_shared
def test_real_tiles_agree_with_openslide() -> None:
    path = SHARED / "hest/wsis/SPA138.tif"
    image = open_image("SPA138", path)
    slide = openslide.OpenSlide(str(path))
    assert (image.width, image.height) == slide.dimensions
    for column, row in ((15, 20), (image.width // 256, 20), (10, image.height // 256)):
        ours = image.read_tile(column, row)
        theirs = np.asarray(slide.read_region((column * 256, row * 256), 0, ours.shape[1::-1]).convert("RGB"))
        assert np.abs(ours.astype(int) - theirs).max() <= 2  # chroma upsampling may round otherwise
    small = make_thumbnail(image)
    assert max(small.shape) == 1024
