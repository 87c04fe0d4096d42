"""Which series a DICOM file belongs to: OpenSlide reads all files of a series in a folder as one slide."""

from __future__ import annotations

import struct
from pathlib import Path

from extract.slides.image import ImageError
from hist_cache.slides import DICOM_SUFFIX

HEAD_BYTES = 1 << 20  # the series is stated near the beginning
MARK_AT = 128  # bytes that may be anything
SERIES_INSTANCE_UID = (0x0020, 0x000E)
ITEM, ITEM_END, SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")  # 4 bytes of length
UNDEFINED = 0xFFFFFFFF  # length of what ends with a mark


def largest_file(folder: Path) -> Path | None:
    """Return the largest DICOM file of a folder, which is that of level 0; None where it has none.

    Raises:
        ImageError: There are files of several slides.
    """
    files = [file for file in folder.glob("[!.]*") if file.suffix.lower() == DICOM_SUFFIX and file.is_file()]
    series = {file: series_uid(file) for file in files}
    if len(set(series.values()) - {None}) > 1:
        raise ImageError("DICOM files of several slides", "put those of each into a folder of its own")
    files = [file for file in files if series[file]] or files  # a damaged one is opened only if it is the only one
    return min(files, key=lambda file: (-file.stat().st_size, file.name), default=None)


def series_uid(path: Path) -> str | None:
    """Return the Series Instance UID of a DICOM file; None where it states none, or is no DICOM file.

    Files must be written with explicit types in little-endian order, as OpenSlide needs them.
    """
    with path.open("rb") as file:
        data = file.read(HEAD_BYTES)
    if data[MARK_AT : MARK_AT + 4] != b"DICM":
        return None
    at = MARK_AT + 4
    try:
        while True:
            tag, length, at = _element(data, at)
            if tag == SERIES_INSTANCE_UID:
                return data[at : at + length].decode("ascii").rstrip("\0 ") or None
            if tag > SERIES_INSTANCE_UID:
                return None
            at = _after(data, at, length)
    except (struct.error, UnicodeDecodeError, RecursionError):
        return None


def _element(data: bytes, at: int) -> tuple[tuple[int, int], int, int]:
    """Return the tag of an element, the length of its value in bytes, and where the value begins."""
    group, element = struct.unpack_from("<HH", data, at)
    if group == ITEM[0]:
        return (group, element), struct.unpack_from("<I", data, at + 4)[0], at + 8
    if data[at + 4 : at + 6] in LONG:
        return (group, element), struct.unpack_from("<I", data, at + 8)[0], at + 12
    return (group, element), struct.unpack_from("<H", data, at + 6)[0], at + 8


def _after(data: bytes, at: int, length: int) -> int:
    """Return where the element after a value begins; items and sequences without a length end with a mark."""
    if length != UNDEFINED:
        return at + length
    while True:
        tag, length, at = _element(data, at)
        if tag in (ITEM_END, SEQUENCE_END):
            return at
        at = _after(data, at, length)
