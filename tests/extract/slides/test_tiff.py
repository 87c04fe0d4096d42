"""Damaged and hostile files end in one line, at once and without taking memory."""

from __future__ import annotations

import io
import os
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import tifffile

import extract.slides.image
import extract.slides.vendors
from extract.slides.codestreams import jpeg_2000_size, jpeg_frame, webp_size
from extract.slides.image import ImageError, check_size
from extract.slides.readers import open_image
from hist_cache.errors import SlideError

PIXELS = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
HUGE = 10**8


def write(path: Path, **options: Any) -> None:
    tifffile.imwrite(path, PIXELS, **({"photometric": "rgb", "tile": (32, 32), "metadata": None} | options))


def tags(changes: dict[int, Any], **options: Any) -> Callable[[Path], None]:
    """Write a sound file, then let some tags say something else."""

    def spoil(path: Path) -> None:
        write(path, **options)
        with tifffile.TiffFile(path, mode="r+") as file:
            for code, value in changes.items():
                file.pages[0].tags[code].overwrite(value)

    return spoil


def trillions_of_samples(path: Path) -> None:
    write(path, bigtiff=True)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags[277].overwrite(10**13, dtype=16)


def loop(pages: int, code: int = 256) -> Callable[[Path], None]:
    """Let the directory after the last one be the first.

    Each has one tag, by default a width. With that of LSM, tifffile itself goes through all of them.
    """

    def spoil(path: Path) -> None:
        directory = struct.pack("<HHHII", 1, code, 3, 1, 64)
        at = [8 + i * (len(directory) + 4) for i in range(pages)]
        following = [*at[1:], at[0]]
        path.write_bytes(
            b"II*\0" + struct.pack("<I", 8) + b"".join(directory + struct.pack("<I", o) for o in following)
        )

    return spoil


def chain(path: Path) -> None:
    """More directories than any slide has."""
    directory = struct.pack("<HHHII", 1, 256, 3, 1, 64)
    size = len(directory) + 4
    following = [8 + (i + 1) * size for i in range(50_000)]
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + b"".join(directory + struct.pack("<I", o) for o in following))


def in_tiles(change: Callable[[bytearray], None], compression: str) -> Callable[[Path], None]:
    """Change the compressed stream of the first tile."""

    def spoil(path: Path) -> None:
        write(path, compression=compression)
        with tifffile.TiffFile(path) as file:
            at, count = file.pages[0].dataoffsets[0], file.pages[0].databytecounts[0]
        data = bytearray(path.read_bytes())
        stream = data[at : at + count]
        change(stream)
        data[at : at + count] = stream
        path.write_bytes(data)

    return spoil


def large_jpeg(stream: bytearray) -> None:
    at = stream.index(b"\xff\xc0")
    stream[at + 5 : at + 9] = struct.pack(">HH", 65000, 65000)


def large_jpeg_2000(stream: bytearray) -> None:
    at = stream.index(b"\xff\x4f\xff\x51")
    stream[at + 8 : at + 16] = struct.pack(">II", HUGE, HUGE)


def large_webp(stream: bytearray) -> None:
    assert stream[12:16] == b"VP8L"
    stream[21:25] = (0x3FFF | 0x3FFF << 14).to_bytes(4, "little")


def no_frame(stream: bytearray) -> None:
    stream[2:-2] = bytes(len(stream) - 4)


def zeros_at_the_end(stream: bytearray) -> None:
    """As a download that stopped leaves it, where the file had its full size from the start."""
    half = len(stream) // 2
    stream[half:] = bytes(len(stream) - half)


def cut_short(path: Path) -> None:
    write(path)
    path.write_bytes(path.read_bytes()[:-500])


def enlarged(kind: str) -> Callable[[Path], None]:
    """Let a file be 10 TB, which takes no space where files may be sparse."""

    def spoil(path: Path) -> None:
        if kind == "tiff":
            write(path)
        else:
            PIL.Image.fromarray(PIXELS).save(path, kind)
        os.truncate(path, 10**13)

    return spoil


def many_scans(stream: bytearray) -> None:
    """A frame of three colours whose first scan has one; scan follows on scan."""
    at = stream.index(b"\xff\xda")
    stream[at + 4] = 1
    stream[-402:-2] = b"\xff\xda" * 200


def png_of(width: int, height: int) -> Callable[[Path], None]:
    import zlib

    def spoil(path: Path) -> None:
        PIL.Image.fromarray(PIXELS).save(path, "png")
        data = bytearray(path.read_bytes())
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        path.write_bytes(data)

    return spoil


def scans_of(path: Path) -> None:
    PIL.Image.fromarray(PIXELS).save(path, "jpeg", progressive=True)
    data = path.read_bytes()
    path.write_bytes(data[:-2] + b"\xff\xda" * 5000 + data[-2:])


DAMAGED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a loop of two directories": (".tif", loop(2), "its directories form a loop"),
    "a loop of 300 directories": (".tif", loop(300), "its directories form a loop"),
    "a loop of 300 directories of a microscope": (".tif", loop(300, 34412), "its directories form a loop"),
    "a directory that is its own next": (".tif", loop(1), "its directories form a loop"),
    "50,000 directories": (".tif", chain, "more than 1,000 pages"),
    "a named pipe": (".tif", os.mkfifo, "not a file"),
    "a folder": (".tif", os.mkdir, "not a file"),
    "a device": (".tif", lambda path: path.symlink_to("/dev/zero"), "not a file"),
    "more tiles than there are": (".tif", tags({256: 12800, 257: 9600}), "states 120,000 tiles and lists 12"),
    "more strips than there are": (".tif", tags({257: 9600}, tile=None, rowsperstrip=32), "300 tiles and lists 3"),
    "billions of tiles": (".tif", tags({256: HUGE, 257: 100}), "states 12,500,000 tiles"),
    "a huge image": (".tif", tags({256: HUGE, 257: HUGE}), "its header states 100,000,000 x 100,000,000 px"),
    "no width": (".tif", tags({256: 0}), "its header states 0 x 96 px"),
    "huge tiles": (".tif", tags({322: HUGE, 323: HUGE}), "tiles of 100,000,000 x 100,000,000 px"),
    "a huge strip": (".tif", tags({257: 2**31, 278: 2**31, 256: 10}, tile=None), "of memory"),
    "no tile height": (".tif", tags({323: 0}), "tiles of 32 x 0 px"),
    "millions of samples": (".tif", tags({277: 60000}), ""),
    "trillions of samples": (".tif", trillions_of_samples, "it has 10,000,000,000,000 samples in a pixel"),
    "tiles beyond the end": (".tif", cut_short, "truncated"),
    "a TIFF of 10 TB": (".tif", enlarged("tiff"), "a file of 10.0 TB is far larger than its 128 x 96 px"),
    "a PNG of 10 TB": (".png", enlarged("png"), "its bytes need 10.0 TB of memory"),
    "a JPEG larger than its tile": (".tif", in_tiles(large_jpeg, "jpeg"), "65,000 x 65,000 px in a tile of 32 x 32"),
    "a JPEG 2000 larger than its tile": (".tif", in_tiles(large_jpeg_2000, "jpeg2000"), "px in a tile of 32 x 32"),
    "a WebP larger than its tile": (".tif", in_tiles(large_webp, "webp"), "16,384 x 16,384 px in a tile of 32 x 32"),
    "a JPEG of many scans": (".tif", in_tiles(many_scans, "jpeg"), "scans"),
    "a JPEG that stops": (".tif", in_tiles(zeros_at_the_end, "jpeg"), "a JPEG that is cut short"),
    "a JPEG without frame": (".tif", in_tiles(no_frame, "jpeg"), "a JPEG without a header"),
    "a huge PNG": (".png", png_of(2**31 - 1, 2**31 - 1), "its header states 2,147,483,647 x 2,147,483,647 px"),
    "a large PNG": (".png", png_of(180_000, 180_000), "of memory"),
    "a picture of many scans": (".jpg", scans_of, "a JPEG of 5,0"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_files_end_at_once_in_one_line(tmp_path: Path, kind: str) -> None:
    suffix, spoil, problem = DAMAGED[kind]
    path = tmp_path / f"a{suffix}"
    spoil(path)
    started = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(SlideError) as caught:
            open_image("SLIDE7", path).overview()
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(caught.value).startswith(f"SLIDE7: {path}: ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
    assert most < 100e6, "memory was taken before it was refused"
    assert time.monotonic() - started < 20


def test_what_does_not_fit_into_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    PIL.Image.fromarray(PIXELS).save(tmp_path / "a.png")
    open_image("S", tmp_path / "a.png")
    monkeypatch.setattr(extract.slides.image, "free_memory", lambda: 100_000.0)
    with pytest.raises(SlideError, match=r"128 x 96 px in one piece need 98\.3 kB of memory, 100\.0 kB are free"):
        open_image("S", tmp_path / "a.png")


def test_a_single_strip_needs_memory_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many tiles as the image has are decoded at once, and no more."""
    write(tmp_path / "strip.tif", tile=None)
    write(tmp_path / "strips.tif", tile=None, rowsperstrip=24)
    monkeypatch.setattr(extract.slides.image, "free_memory", lambda: 2.1 * PIXELS.nbytes)
    for name in ("strip.tif", "strips.tif"):
        np.testing.assert_array_equal(open_image("S", tmp_path / name).overview(), PIXELS)
    monkeypatch.setattr(extract.slides.image, "free_memory", lambda: 1.9 * PIXELS.nbytes)
    for name in ("strip.tif", "strips.tif"):
        with pytest.raises(SlideError, match=r"tiles of 128 x \d+ px need 36\.9 kB of memory"):
            open_image("S", tmp_path / name)


def test_the_largest_scans_are_no_damaged_headers() -> None:
    check_size(375_000, 125_000)  # a whole slide at 0.2 um a pixel
    check_size(750_000, 500_000)
    with pytest.raises(ImageError, match="its header states"):
        check_size(1_000_000, 1_000_000)


def test_an_orientation_that_is_not_said(tmp_path: Path) -> None:
    write(tmp_path / "a.tif", extratags=[(274, 3, 1, 0, True)])
    np.testing.assert_array_equal(open_image("S", tmp_path / "a.tif").overview(), PIXELS)


def test_a_label_or_a_damaged_level_does_not_matter(tmp_path: Path) -> None:
    large = np.kron(PIXELS, np.ones((20, 20, 1), dtype=np.uint8))
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for level in (large, large[::2, ::2].astype(np.float32), np.zeros((40, 40, 3), np.uint8)):
            file.write(level, photometric="rgb", tile=(256, 256), compression="zlib")
    image = open_image("S", tmp_path / "a.tif")
    assert (image.width, image.height) == (2560, 1920)
    np.testing.assert_array_equal(image.overview(), large)


def test_sizes_of_streams() -> None:
    import imagecodecs

    frame = jpeg_frame(imagecodecs.jpeg_encode(PIXELS))
    assert (frame.width, frame.height, frame.one_scan) == (128, 96, True)
    stream = io.BytesIO()
    PIL.Image.fromarray(PIXELS).save(stream, "jpeg", progressive=True)
    frame = jpeg_frame(stream.getvalue())
    assert (frame.width, frame.height, frame.one_scan) == (128, 96, False)
    assert jpeg_2000_size(imagecodecs.jpeg2k_encode(PIXELS)) == (128, 96)
    assert jpeg_2000_size(imagecodecs.jpeg2k_encode(PIXELS, codecformat="jp2")) == (128, 96)
    for pixels in (PIXELS, np.dstack([PIXELS, PIXELS[..., :1]])):
        assert webp_size(imagecodecs.webp_encode(pixels, lossless=True)) == (128, 96)
        assert webp_size(imagecodecs.webp_encode(pixels, lossless=False)) == (128, 96)
    riff = b"RIFF\0\0\0\0WEBPVP8 " + bytes(40)
    for data in (b"", b"\xff", b"\xff\xd8" * 40, b"\xff\xd8\xff\xc0\0\0", b"\0\0\0\x01jP  " + bytes(40), riff):
        for size in (jpeg_frame, jpeg_2000_size, webp_size):
            with pytest.raises(ImageError, match="without"):
                size(data)


APERIO = "Aperio Image Library v11\n128x96 [0,0 128x96] (32x32) J2K/YUV16 Q=30|AppMag = 20|MPP = 0.5"


def aperio(path: Path, **options: Any) -> None:
    """A slide in Aperio's YCbCr, which only OpenSlide reads."""
    tags({259: 33003}, compression="jpeg2000", description=APERIO, **options)(path)


def test_a_vendors_kind_is_left_to_openslide(tmp_path: Path) -> None:
    aperio(tmp_path / "a.svs")
    image = open_image("S", tmp_path / "a.svs")
    assert image.reader_name == "openslide"
    y, cb, cr = (PIXELS[..., i].astype(np.float64) - (0, 128, 128)[i] for i in range(3))
    expected = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1).clip(0, 255)
    assert np.abs(image.read_tile(0, 0) - expected).max() <= 2
    assert image.overview().shape == (96, 128, 3)


@pytest.mark.parametrize(
    ("suffix", "problem"),
    [
        (".svs", r"truncated \([\d,]+ of 17,\d+,\d+,\d+,\d+ bytes\)"),
        (".scn", "OpenSlide ends with SIG(ABRT|TRAP)"),
    ],
)
def test_a_file_on_which_openslide_ends_its_process_fails_alone(tmp_path: Path, suffix: str, problem: str) -> None:
    """OpenSlide takes memory for as many bytes as a tile claims to have, and aborts where there are not as many."""
    path = tmp_path / f"a{suffix}"
    aperio(path, bigtiff=True)
    with tifffile.TiffFile(path, mode="r+") as file:
        tag = file.pages[0].tags[325]
        tag.overwrite([2**44] * tag.count, dtype="Q")
    with pytest.raises(SlideError, match=problem):
        open_image("S", path).read_tile(0, 0)


def test_openslide_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import time\ndef main(path):\n    return lambda request: time.sleep(60)\n"
    (tmp_path / "program.py").write_text(program)
    monkeypatch.setattr(extract.slides.vendors, "OPENSLIDE_PROGRAM", tmp_path / "program.py")
    monkeypatch.setattr(extract.slides.vendors, "PATIENCE_S", 0.2)
    aperio(tmp_path / "a.svs")
    with pytest.raises(SlideError, match=r"OpenSlide does not answer within 0\.2 s"):
        open_image("S", tmp_path / "a.svs")
