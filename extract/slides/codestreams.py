"""What a JPEG or JPEG 2000 stream says of itself, looked at before a decoder takes memory for it."""

from __future__ import annotations

import struct

from extract.slides.colors import JPEG, JPEG_2000
from extract.slides.image import ImageError

SLACK_PX = 1 << 20  # a stream may be larger than its tile: rows of a last strip, sizes rounded up
MAX_SCANS = 64  # decoders go through the whole picture for each scan; progressive JPEG has about ten
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
SCAN = 0xDA
END = b"\xff\xd9"
END_WITHIN = 64  # bytes; usually it is the last marker, with some padding
ALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length


def check_codestream(data: bytes, compression: int, width: int, height: int) -> None:
    """Check that a compressed tile is not larger than the file's header says.

    Args:
        data: The tile as it is in the file.
        compression: The TIFF's compression tag.
        width: Width of a tile, px.
        height: Height of a tile, px.

    Raises:
        ImageError: It is larger, its size cannot be read, or it has no end.
    """
    if compression in JPEG:
        check_scans(data)
        if END not in data[-END_WITHIN:] and END not in data:
            raise ImageError("a JPEG that is cut short")  # decoders would fill the rest with grey
        stated = jpeg_size(data)
    elif compression in JPEG_2000:
        stated = jpeg_2000_size(data)
    else:
        return
    if stated is None:
        raise ImageError("no size in its header")
    if stated[0] * stated[1] > width * height + SLACK_PX:
        raise ImageError(f"{stated[0]:,} x {stated[1]:,} px in a tile of {width:,} x {height:,} px")


def check_scans(data: bytes) -> None:
    """Check that a JPEG does not have so many scans that decoding it never ends.

    Raises:
        ImageError: It has.
    """
    if (scans := data.count(bytes((0xFF, SCAN)))) > MAX_SCANS:
        raise ImageError(f"a JPEG of {scans:,} scans")


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height of a JPEG, None where its header has neither or anything but segments."""
    at = 0
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
        elif marker in ALONE:
            at += 2
        elif marker in FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        elif marker == SCAN:
            return None
        else:
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return None


def jpeg_2000_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height of a JPEG 2000 stream, bare or in the boxes of a JP2 file; None where it has none."""
    at = 0
    if data[4:8] == b"jP  ":
        while data[at + 4 : at + 8] != b"jp2c":
            length = int.from_bytes(data[at : at + 4], "big")
            if length < 8 or at + length >= len(data):
                return None
            at += length
        at += 8
    if data[at : at + 4] != b"\xff\x4f\xff\x51" or at + 24 > len(data):
        return None
    right, bottom, left, top = struct.unpack_from(">4I", data, at + 8)
    return max(0, right - left), max(0, bottom - top)
