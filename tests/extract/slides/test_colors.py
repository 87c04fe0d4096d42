"""Every kind of image that is read, against a formula in float64 and Pillow; every other is refused in one line."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import tifffile

from extract.slides.image import Image
from extract.slides.readers import open_image
from hist_cache.errors import SlideError

RANDOM = np.random.default_rng(0)
RGB = np.kron(RANDOM.integers(0, 256, (12, 15, 3), dtype=np.uint8), np.ones((8, 8, 1), dtype=np.uint8))[:90, :117]
GREY, ALPHA = RGB[..., 0], RGB[::-1, ::-1, :1].copy()
RGBA = np.concatenate([RGB, ALPHA], axis=-1)
RGB16 = RANDOM.integers(0, 65536, RGB.shape, dtype=np.uint16)
PALETTE = RANDOM.integers(0, 65536, (3, 256), dtype=np.uint16)
OPACITY = ALPHA / 255.0
ON_WHITE = RGB * OPACITY + 255 * (1 - OPACITY)
GREY_ON_WHITE = GREY[..., None] * OPACITY + 255 * (1 - OPACITY)
PREMULTIPLIED = np.concatenate([np.round(RGB * OPACITY).astype(np.uint8), ALPHA], axis=-1)


def whole(image: Image) -> np.ndarray:
    rows, columns = -(-image.height // image.tile_height), -(-image.width // image.tile_width)
    tiles = [np.concatenate([image.read_tile(c, r) for c in range(columns)], 1) for r in range(rows)]
    return np.concatenate(tiles).astype(np.float64)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(np.atleast_3d(values).astype(np.float64), 3, axis=-1)


# Pixels as they are stored, how, and the colours that they mean: 0..255, not rounded.
KINDS: dict[str, tuple[np.ndarray, dict[str, Any], np.ndarray]] = {
    "rgb": (RGB, {"photometric": "rgb"}, RGB),
    "grey": (GREY, {"photometric": "minisblack"}, grey(GREY)),
    "white is zero": (GREY, {"photometric": "miniswhite"}, grey(255.0 - GREY)),
    "rgb of 16 bits": (RGB16, {"photometric": "rgb"}, RGB16 / 257),
    "rgb of 16 bits, big endian": (RGB16, {"photometric": "rgb", "byteorder": ">"}, RGB16 / 257),
    "white is zero, 16 bits": (RGB16[..., 0], {"photometric": "miniswhite"}, grey(255 - RGB16[..., 0] / 257)),
    "unspecified fourth": (RGBA, {"photometric": "rgb", "extrasamples": [0]}, RGB),
    "two unspecified": (np.dstack([RGBA, ALPHA]), {"photometric": "rgb", "extrasamples": [0, 0]}, RGB),
    "alpha": (RGBA, {"photometric": "rgb", "extrasamples": [2]}, ON_WHITE),
    "associated alpha": (PREMULTIPLIED, {"photometric": "rgb", "extrasamples": [1]}, ON_WHITE),
    "grey and alpha": (
        RGBA[..., [0, 3]],
        {"photometric": "minisblack", "planarconfig": "contig", "extrasamples": [2]},
        grey(GREY_ON_WHITE),
    ),
    "palette": (GREY, {"photometric": "palette", "colormap": PALETTE}, PALETTE.T[GREY] // 256),
    "palette of 8 bits": (GREY, {"photometric": "palette", "colormap": PALETTE // 256}, PALETTE.T[GREY] // 256),
    "cmyk": (RGBA, {"photometric": "separated"}, (255.0 - RGB) * (255.0 - ALPHA) / 255),
    "planes": (RGB.transpose(2, 0, 1), {"photometric": "rgb", "planarconfig": "separate"}, RGB),
    "planes with alpha": (
        RGBA.transpose(2, 0, 1),
        {"photometric": "rgb", "planarconfig": "separate", "extrasamples": [2]},
        ON_WHITE,
    ),
}
LAYOUTS: list[dict[str, Any]] = [
    {"tile": (32, 48), "compression": "zlib", "predictor": True},
    {"rowsperstrip": 13},
    {"tile": (48, 32), "compression": "lzw", "bigtiff": True},
    {"tile": (64, 32), "compression": "packbits"},
    {"rowsperstrip": 40, "compression": "lzma", "predictor": True},
]


@pytest.mark.parametrize("kind", KINDS)
def test_accepted_kinds_are_what_the_formula_says(tmp_path: Path, kind: str) -> None:
    pixels, options, expected = KINDS[kind]
    for i, layout in enumerate(LAYOUTS):
        tifffile.imwrite(tmp_path / f"{i}.tif", pixels, **options, **layout)
        image = open_image("S", tmp_path / f"{i}.tif")
        assert image.reader_name.startswith("tifffile")
        assert np.abs(whole(image) - expected).max() <= (1 if "16 bits" in kind or "alpha" in kind else 0.5)
        np.testing.assert_array_equal(image.overview(), whole(image))


@pytest.mark.parametrize("kind", ["rgb", "grey", "white is zero", "unspecified fourth", "palette", "cmyk", "planes"])
def test_pillow_sees_the_same_colours(tmp_path: Path, kind: str) -> None:
    pixels, options, _ = KINDS[kind]
    tifffile.imwrite(tmp_path / "a.tif", pixels, rowsperstrip=13, **options)
    with PIL.Image.open(tmp_path / "a.tif") as picture:
        theirs = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(whole(open_image("S", tmp_path / "a.tif")), theirs)


@pytest.mark.parametrize(
    ("suffix", "modes"),
    [("png", "1 L LA P RGB RGBA"), ("jpg", "1 L RGB CMYK"), ("tif", "L LA P RGB RGBA CMYK")],
)
def test_pictures_that_pillow_wrote(tmp_path: Path, suffix: str, modes: str) -> None:
    """Read back by Pillow and laid on white by a formula."""
    for mode in modes.split():
        PIL.Image.fromarray(RGBA).convert(mode).save(tmp_path / f"{mode}.{suffix}")
        with PIL.Image.open(tmp_path / f"{mode}.{suffix}") as stored:
            theirs = np.asarray(stored.convert("RGBA"), dtype=np.float64)
        expected = theirs[..., :3] * theirs[..., 3:] / 255 + 255 - theirs[..., 3:]
        assert np.abs(whole(open_image("S", tmp_path / f"{mode}.{suffix}")) - expected).max() <= 0.5, mode


@pytest.mark.parametrize("transparency", [17, bytes(range(256))])
def test_transparent_colours_of_a_palette_are_white(tmp_path: Path, transparency: object) -> None:
    picture = PIL.Image.fromarray(GREY).convert("P")
    picture.save(tmp_path / "a.png", transparency=transparency)
    opacity = np.arange(256) if isinstance(transparency, bytes) else np.where(np.arange(256) == transparency, 0, 255)
    expected = (GREY * opacity[GREY] + 255 * (255 - opacity[GREY])) / 255
    assert np.abs(whole(open_image("S", tmp_path / "a.png")) - grey(expected)).max() <= 0.5


@pytest.mark.parametrize("options", [{"photometric": "ycbcr"}, {"photometric": "rgb"}, {"subsampling": (2, 2)}])
def test_jpeg_agrees_with_pillow(tmp_path: Path, options: dict[str, Any]) -> None:
    smooth = np.asarray(PIL.Image.fromarray(RGB).resize((160, 160), PIL.Image.Resampling.BICUBIC))
    tifffile.imwrite(
        tmp_path / "a.tif", smooth, tile=(64, 64), compression="jpeg", **({"photometric": "ycbcr"} | options)
    )
    with PIL.Image.open(tmp_path / "a.tif") as picture:
        theirs = np.asarray(picture.convert("RGB")).astype(np.float64)
    assert np.abs(whole(open_image("S", tmp_path / "a.tif")) - theirs).mean() < 2


def test_grey_jpeg_whose_white_is_zero(tmp_path: Path) -> None:
    smooth = np.asarray(PIL.Image.fromarray(GREY).resize((160, 160), PIL.Image.Resampling.BICUBIC))
    tifffile.imwrite(tmp_path / "a.tif", smooth, tile=(64, 64), compression="jpeg", photometric="miniswhite")
    assert np.abs(whole(open_image("S", tmp_path / "a.tif")) - grey(255.0 - smooth)).mean() < 2


def test_bits_that_begin_with_the_lowest(tmp_path: Path) -> None:
    bits = np.unpackbits(RGB[..., None], axis=-1)
    tifffile.imwrite(tmp_path / "a.tif", np.packbits(bits, axis=-1, bitorder="little")[..., 0], photometric="rgb")
    unit, order = struct.pack("<HHII", 296, 3, 1, 1), struct.pack("<HHII", 266, 3, 1, 2)
    (tmp_path / "a.tif").write_bytes((tmp_path / "a.tif").read_bytes().replace(unit, order))
    np.testing.assert_array_equal(whole(open_image("S", tmp_path / "a.tif")), RGB)


def test_jpeg_2000_is_lossless(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RGB, tile=(64, 64), compression="jpeg2000", photometric="rgb")
    np.testing.assert_array_equal(whole(open_image("S", tmp_path / "a.tif")), RGB)


@pytest.mark.parametrize(("pixels", "expected"), [(RGB, RGB), (RGBA, ON_WHITE)])
@pytest.mark.parametrize("lossless", [True, False])
def test_webp_agrees_with_pillow(tmp_path: Path, pixels: np.ndarray, expected: np.ndarray, lossless: bool) -> None:
    options: dict[str, Any] = {"compression": "webp", "compressionargs": {"lossless": lossless}, "photometric": "rgb"}
    tifffile.imwrite(tmp_path / "a.tif", pixels, tile=(64, 64), **options)
    image = open_image("S", tmp_path / "a.tif")
    assert image.reader_name.startswith("tifffile")
    if lossless:
        assert np.abs(whole(image) - expected).max() <= 1
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        at, count = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
    with PIL.Image.open(io.BytesIO((tmp_path / "a.tif").read_bytes()[at : at + count])) as picture:
        theirs = np.asarray(picture.convert("RGBA"), dtype=np.float64)
    opacity = theirs[..., 3:] / 255
    assert np.abs(image.read_tile(0, 0) - (theirs[..., :3] * opacity + 255 * (1 - opacity))).max() <= 1


def tiff(pixels: np.ndarray, **options: Any) -> Callable[[Path], None]:
    return lambda path: tifffile.imwrite(path, pixels, **options)


def retagged(code: int, value: int, pixels: np.ndarray = RGB, **options: Any) -> Callable[[Path], None]:
    """A sound file in which one tag says something else afterwards."""

    def write(path: Path) -> None:
        tifffile.imwrite(path, pixels, **({"photometric": "rgb"} | options))
        with tifffile.TiffFile(path, mode="r+") as file:
            file.pages[0].tags[code].overwrite(value)

    return write


def picture(mode: str, suffix: str, **options: Any) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        PIL.Image.fromarray(RGBA).convert("RGB").convert(mode).save(path, suffix, **options)

    return write


def turned(path: Path) -> None:
    exif = PIL.Image.Exif()
    exif[274] = 6
    picture("RGB", "jpeg", exif=exif)(path)


def bytes_of(write: Callable[[io.BytesIO], object]) -> Callable[[Path], object]:
    def to(path: Path) -> None:
        stream = io.BytesIO()
        write(stream)
        path.write_bytes(stream.getvalue())

    return to


OME = '<OME><Image><Pixels DimensionOrder="XYCZT" SizeC="3" SizeT="1" SizeX="117" SizeY="90" SizeZ="1"/></Image></OME>'
SAME = "pictures of full size"
REFUSED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "float": (".tif", tiff(GREY.astype(np.float32)), "samples are float32 of 32 bits"),
    "half": (".tif", tiff(GREY.astype(np.float16)), "samples are float16 of 16 bits"),
    "double": (".tif", tiff(GREY.astype(np.float64)), "samples are float64 of 64 bits"),
    "complex": (".tif", tiff(GREY.astype(np.complex64)), "samples are complex64"),
    "signed": (".tif", tiff(GREY.astype(np.int16)), "samples are int16 of 16 bits"),
    "32 bits": (".tif", tiff(GREY.astype(np.uint32)), "samples are uint32 of 32 bits"),
    "4 bits": (".tif", retagged(258, 4, GREY, photometric="minisblack"), "4 bits, not 8 or 16"),
    "12 bits": (".tif", retagged(258, 12, RGB16[..., 0], photometric="minisblack"), "12 bits, not 8 or 16"),
    "1 bit": (".tif", tiff(GREY > 99), "1 bits, not 8 or 16"),
    "Lab": (".tif", tiff(RGB, photometric="cielab"), "its colours are CIE Lab"),
    "YCbCr": (".tif", retagged(262, 6), "its colours are YCbCr"),
    "YCbCr by zlib": (".tif", retagged(262, 6, compression="zlib"), "its colours are YCbCr"),
    "mask": (".tif", retagged(262, 4, GREY, photometric="minisblack"), "its colours are a mask"),
    "unknown": (".tif", retagged(262, 4711), "its colours are of unknown kind 4711"),
    "other inks": (".tif", tiff(RGBA, photometric="separated", extratags=[(332, 3, 1, 2, True)]), "colours are inks"),
    "five inks": (".tif", tiff(np.dstack([RGBA, ALPHA]), photometric="separated"), "its colours are inks"),
    "channels": (".tif", tiff(RGB, photometric="minisblack", planarconfig="contig"), "3 channels and no RGB"),
    "two channels": (".tif", tiff(RGB[..., :2], photometric="minisblack", planarconfig="contig"), "2 channels"),
    "late alpha": (".tif", tiff(np.dstack([RGBA, ALPHA]), photometric="rgb", extrasamples=[0, 2]), "its alpha is not"),
    "grey called RGB": (".tif", retagged(262, 2, GREY, photometric="minisblack"), "1 of 3 colours"),
    "palette of 16 bits": (
        ".tif",
        tiff(RGB16[..., 0], photometric="palette", colormap=np.zeros((3, 65536), np.uint16)),
        "palette has not 256",
    ),
    "one channel a file": (".tif", tiff(GREY, description=OME, metadata=None), f"3 {SAME}"),
    "focal planes": (".tif", tiff(np.stack([RGB, RGB]), photometric="rgb"), f"2 {SAME}"),
    "ImageJ": (".tif", tiff(RGB.transpose(2, 0, 1), imagej=True, metadata={"axes": "CYX"}), f"3 {SAME}"),
    "ImageJ, one page": (".tif", tiff(GREY, description="ImageJ=1.53\nimages=3\n", metadata=None), f"3 {SAME}"),
    "volume": (".tif", tiff(np.zeros((16, 64, 64), np.uint8), volumetric=True, tile=(16, 16, 16)), "a volume"),
    "turned": (".tif", tiff(RGB, photometric="rgb", extratags=[(274, 3, 1, 6, True)]), "orientation 6"),
    "JPEG XL": (".tif", retagged(259, 50002), "compressed by JPEG XL"),
    "WebP of grey": (".tif", retagged(259, 50001, GREY, photometric="minisblack"), "a WebP of 1 samples"),
    "JPEG of inks": (".tif", tiff(RGBA, photometric="separated", compression="jpeg"), "a JPEG of 4 samples"),
    "JPEG planes": (
        ".tif", tiff(RGB.transpose(2, 0, 1), photometric="rgb", planarconfig="separate", compression="jpeg"),
        "compressed one by one"),
    "JPEG 2000 in YCbCr": (".tif", retagged(259, 33003, compression="jpeg2000", tile=(64, 64)), "JPEG 2000 in YCbCr"),
    "png, grey of 16 bits": (".png", bytes_of(lambda f: PIL.Image.fromarray(RGB16[..., 0]).save(f, "png")), "8 bits"),
    "jpeg, turned": (".jpg", turned, "orientation 6"),
    "tiff as png": (".png", tiff(RGB, photometric="rgb"), "not a PNG; name it by its format"),
    "gif as jpg": (".jpg", picture("P", "gif"), "not a JPEG; name it by its format"),
    "ome without tiff": (".tif", lambda path: path.write_text(OME), "not a TIFF file"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", REFUSED)
def test_all_other_kinds_are_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    suffix, write, problem = REFUSED[kind]
    path = tmp_path / f"a{suffix}"
    write(path)
    with pytest.raises(SlideError) as caught:
        open_image("SLIDE7", path)
    message = str(caught.value)
    assert message.startswith(f"SLIDE7: {path}: ")
    assert problem in message
    assert "; " in message.removeprefix(f"SLIDE7: {path}: "), "what to do"
    assert "\n" not in message


def test_png_of_16_bits_is_refused(tmp_path: Path) -> None:
    import imagecodecs

    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(RGB16))
    with pytest.raises(SlideError, match="more than 8 bits"):
        open_image("S", tmp_path / "a.png")
