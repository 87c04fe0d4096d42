"""What a JPEG, JPEG 2000 or WebP stream says of itself, looked at before a decoder takes memory and time for it."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from extract.slides.colors import JPEG, JPEG_2000, WEBP
from extract.slides.image import ImageError

SLACK_PX = 1 << 20  # a stream may be larger than its tile: rows of a last strip, sizes rounded up
MAX_SCANS = 64  # decoders go through the whole picture for each scan; progressive JPEG has about ten
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
SEQUENTIAL = (0xC0, 0xC1)  # frames whose first scan is the only one, if it has all colours
SCAN = 0xDA
END = b"\xff\xd9"
END_WITHIN = 64  # bytes; usually it is the last marker, with some padding
ALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length


@dataclass(frozen=True)
class JpegFrame:
    """What the header of a JPEG says."""

    width: int
    height: int
    one_scan: bool
    """Whether decoders stop after the first scan, because it has all that there is."""


def check_codestream(data: bytes, compression: int, width: int, height: int) -> None:
    """Check that a compressed tile is not larger than the file's header says, and is complete.

    Args:
        data: The tile as it is in the file.
        compression: The TIFF's compression tag.
        width: Width of a tile, px.
        height: Height of a tile, px.

    Raises:
        ImageError: It is larger, its size cannot be read, it has no end, or decoding it would hardly end.
    """
    if compression in JPEG:
        frame = check_jpeg(data)
        stated = frame.width, frame.height
    elif compression in JPEG_2000:
        stated = jpeg_2000_size(data)
    elif compression == WEBP:
        stated = webp_size(data)
    else:
        return
    if stated[0] * stated[1] > width * height + SLACK_PX:
        raise ImageError(f"{stated[0]:,} x {stated[1]:,} px in a tile of {width:,} x {height:,} px")


def check_jpeg(data: bytes) -> JpegFrame:
    """Check that a JPEG has a header and an end, and no more scans than it needs.

    Returns:
        What its header says.

    Raises:
        ImageError: It is otherwise.
    """
    frame = jpeg_frame(data)
    if not frame.one_scan and (scans := data.count(bytes((0xFF, SCAN)))) > MAX_SCANS:
        raise ImageError(f"a JPEG of {scans:,} scans")
    if END not in data[-END_WITHIN:] and END not in data:
        raise ImageError("a JPEG that is cut short")  # decoders would fill the rest with grey
    return frame


def jpeg_frame(data: bytes) -> JpegFrame:
    """Return what the header of a JPEG says.

    Raises:
        ImageError: It has anything but segments before its first scan, or no frame.
    """
    at, frame, sequential = 0, None, False
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        if marker in ALONE:
            at += 2
            continue
        if marker in FRAMES:
            frame = struct.unpack_from(">HHB", data, at + 5)
            sequential = marker in SEQUENTIAL
        elif marker == SCAN and frame is not None:
            height, width, colors = frame
            return JpegFrame(width, height, one_scan=sequential and data[at + 4] == colors)
        elif marker == SCAN:
            break
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    raise ImageError("a JPEG without a header")


def jpeg_2000_size(data: bytes) -> tuple[int, int]:
    """Return width and height of a JPEG 2000 stream, bare or in the boxes of a JP2 file.

    Raises:
        ImageError: It has none.
    """
    at = 0
    if data[4:8] == b"jP  ":
        while data[at + 4 : at + 8] != b"jp2c":
            length = int.from_bytes(data[at : at + 4], "big")
            if length < 8 or at + length >= len(data):
                raise ImageError("a JPEG 2000 without a stream")
            at += length
        at += 8
    if data[at : at + 4] != b"\xff\x4f\xff\x51" or at + 24 > len(data):
        raise ImageError("a JPEG 2000 without a header")
    right, bottom, left, top = struct.unpack_from(">4I", data, at + 8)
    return max(0, right - left), max(0, bottom - top)


def webp_size(data: bytes) -> tuple[int, int]:
    """Return width and height of a WebP file.

    Raises:
        ImageError: It has none.
    """
    kind = data[12:16] if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) >= 30 else b""
    if kind == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<2H", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise ImageError("a WebP without a header")
