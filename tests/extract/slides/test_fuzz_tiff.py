"""Whatever the bytes of a TIFF are, it ends in pixels or in a SlideError, and soon."""

from __future__ import annotations

import io
import signal
import struct
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from extract.slides.readers import open_image
from hist_cache.errors import SlideError
from tests.fuzzing import fuzz

PATIENCE_S = 20
MAX_TILES = 20  # of an image that claims many
SMALL = np.kron(np.random.default_rng(0).integers(0, 256, (7, 9, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
FILES: list[dict[str, Any]] = [
    {"photometric": "rgb", "tile": (32, 32), "compression": compression}
    for compression in (None, "jpeg", "zlib", "lzw", "zstd", "jpeg2000", "webp", "packbits", "lzma")
] + [
    {"photometric": "rgb", "rowsperstrip": 16},
    {"photometric": "rgb", "rowsperstrip": 16, "compression": "jpeg"},
    {"photometric": "rgb", "tile": (32, 32), "compression": "zlib", "predictor": True, "bigtiff": True},
    {"photometric": "rgb", "tile": (32, 32), "byteorder": ">"},
    {"photometric": "ycbcr", "tile": (32, 32), "compression": "jpeg"},
]
CODES = [254, 256, 257, 258, 259, 262, 266, 274, 277, 278, 273, 279, 284, 317, 320, 322, 323, 324, 325, 330, 332, 338]
CODES += [339, 347, 530, 531, 32997, 32998, 34675, 42113]
NUMBERS = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 8, 16, 32, 64, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1])


@cache
def sound_file(which: int) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, SMALL, **FILES[which])
    return stream.getvalue()


# A change of an entry of the first directory: which one, which field (code, type, count, value), what it becomes.
TAG_CHANGES = st.one_of(
    st.tuples(st.integers(0, 30), st.just(0), st.sampled_from(CODES)),
    st.tuples(st.integers(0, 30), st.just(1), st.integers(0, 20)),
    st.tuples(st.integers(0, 30), st.integers(2, 3), NUMBERS | st.integers(0, 2**32 - 1)),
)
BYTE_CHANGES = st.tuples(st.integers(0, 20_000), st.integers(0, 255))


def damaged_file(which: int, tags: list[tuple[int, int, int]], others: list[tuple[int, int]], cut: int | None) -> bytes:
    data = bytearray(sound_file(which))
    order, big = "<" if data[:2] == b"II" else ">", 43 in data[2:4]
    entry, head = (order + "HHQQ", 8) if big else (order + "HHII", 2)
    start = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
    entries = struct.unpack_from(order + ("Q" if big else "H"), data, start)[0]
    for number, field, value in tags:
        at = start + head + number % entries * struct.calcsize(entry)
        fields = list(struct.unpack_from(entry, data, at))
        fields[field] = value
        struct.pack_into(entry, data, at, *fields)
    for at, value in others:
        data[at % len(data)] = value
    return bytes(data if cut is None else data[: cut % len(data)])


@pytest.mark.fuzz
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@fuzz(3000)
@given(
    which=st.integers(0, len(FILES) - 1),
    tags=st.lists(TAG_CHANGES, max_size=3),
    others=st.lists(BYTE_CHANGES, max_size=4),
    cut=st.none() | st.none() | st.integers(0, 20_000),
)
def test_any_tiff_is_pixels_or_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    which: int,
    tags: list[tuple[int, int, int]],
    others: list[tuple[int, int]],
    cut: int | None,
) -> None:
    path = tmp_path / "a.tif"
    monkeypatch.setattr("extract.slides.readers.open_vendor", lambda path: None)  # a process for each would take long
    path.write_bytes(damaged_file(which, tags, others, cut))
    signal.alarm(PATIENCE_S)  # ends the process: a decoder that hangs does not return to Python
    try:
        message = read(path)
    finally:
        signal.alarm(0)
    assert message.startswith(f"SLIDE7: {path}: ") or not message
    assert "\n" not in message


def read(path: Path) -> str:
    """Read tiles and an overview; returns the slide's error."""
    try:
        with closing(open_image("SLIDE7", path)) as image:
            columns, rows = -(-image.width // image.tile_width), -(-image.height // image.tile_height)
            for i in range(min(columns * rows, MAX_TILES)):
                assert image.read_tile(i % columns, i // columns).dtype == np.uint8
            assert image.overview().shape[2] == 3
    except SlideError as error:
        return str(error)
    return ""
