"""Which reader opens a slide's image.

Tiled TIFF is read by tifffile and imagecodecs, vendors' formats and DICOM by OpenSlide, CZI by pylibCZIrw, OME-Zarr by
zarr, and plain pictures by Pillow. The pixels differ a little between readers, so the name of the reader is part of a
cache's fingerprint.
"""

from __future__ import annotations

import io
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from extract.slides.codestreams import check_jpeg
from extract.slides.colors import CONVERT, on_white
from extract.slides.dicom_series import largest_file
from extract.slides.image import (
    NOT_READABLE,
    Image,
    ImageError,
    Reader,
    UnreadKindError,
    check_memory,
    check_size,
)
from extract.slides.ome_zarr import OmeZarrImage
from extract.slides.tiff import TiffImage
from extract.slides.vendors import CZI_SUFFIX, open_czi, open_vendor
from hist_cache.errors import slide_error
from hist_cache.slides import ZARR_SUFFIXES

TIFF_SUFFIXES = (".tif", ".tiff", ".svs")
PLAIN_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}
USUAL_READERS = ("tifffile", "openslide", "pillow")  # of 8-bit RGB or grey, which is read as it is
PLAIN_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")  # those that Pillow converts to RGB without loss
ORIENTATION = 274  # Exif
_pillow = threading.Lock()  # held while Pillow's limit of pixels is lifted


def open_image(slide: str, path: Path) -> Image:
    """Open a slide's image with the reader for its suffix.

    Args:
        slide: ID of the slide, for messages.
        path: The image file.

    Raises:
        SlideError: The file is damaged, truncated or of a kind that is not read.
    """
    try:
        reader = _folder_reader(path) if path.is_dir() else _reader(path)
        try:
            check_size(reader.width, reader.height)
        except ImageError:
            reader.close()
            raise
        return Image(slide, path, reader)
    except Exception as error:  # each library has errors of its own; openslide.OpenSlideError is no OSError
        raise slide_error(slide, path, error, NOT_READABLE) from error


def _folder_reader(path: Path) -> Reader:
    if path.suffix.lower() in ZARR_SUFFIXES:
        return OmeZarrImage(path)
    if (file := largest_file(path)) and (image := open_vendor(file)):
        return image
    raise ImageError("not a file, and no folder of DICOM files", "put the slide's own file there")


def _reader(path: Path) -> Reader:
    if not path.is_file():  # opening a named pipe would wait for ever
        raise ImageError("not a file")
    suffix = path.suffix.lower()
    if suffix == CZI_SUFFIX:
        return open_czi(path)
    if suffix in PLAIN_FORMATS:
        return PlainImage(path, PLAIN_FORMATS[suffix])
    if suffix not in TIFF_SUFFIXES and (image := open_vendor(path)):
        return image
    try:
        return TiffImage(path)
    except UnreadKindError:
        if image := open_vendor(path):
            return image
        raise


class PlainImage:
    """A JPEG or PNG, which can only be decoded as a whole, so that it takes memory for all its pixels.

    Args:
        path: The file.
        kind: `JPEG` or `PNG`; Pillow tries no other decoder.
    """

    name = "pillow"

    def __init__(self, path: Path, kind: str) -> None:
        import PIL.Image

        check_memory(path.stat().st_size, "its bytes")
        data = path.read_bytes()
        # Pillow refuses pictures above 179 Mpx as possible attacks, but slides are that large.
        with _pillow, warnings.catch_warnings(action="ignore"):
            limit, PIL.Image.MAX_IMAGE_PIXELS = PIL.Image.MAX_IMAGE_PIXELS, None
            try:
                picture = _open_picture(data, kind)
                self._check(picture, data)
                transparent = "A" in picture.getbands() or "transparency" in picture.info
                if transparent and "A" not in picture.getbands():
                    self.name = "pillow, transparent colour"
                self._pixels = _flatten(np.asarray(picture.convert("RGBA" if transparent else "RGB")))
            finally:
                PIL.Image.MAX_IMAGE_PIXELS = limit
        self.height, self.width = self._pixels.shape[:2]
        self.tile_width, self.tile_height = self.width, self.height

    def _check(self, picture: Any, data: bytes) -> None:
        """Check that a picture is of a kind that is read, before it is decoded."""
        check_size(*picture.size)
        check_memory(8 * picture.width * picture.height, f"{picture.width:,} x {picture.height:,} px in one piece")
        # Byte 24 of a PNG is its bits; Pillow would cut grey of 16 bits off at 255.
        if picture.mode not in PLAIN_MODES or (picture.format == "PNG" and data[24] > 8):
            raise UnreadKindError(f"a {picture.format} of more than 8 bits, or of colours that are not read", CONVERT)
        if picture.format == "JPEG":
            check_jpeg(data)
        if (turned := picture.getexif().get(ORIENTATION, 1)) not in (0, 1):
            raise ImageError(f"its rows and columns are turned (orientation {turned})", "store it upright")

    def read_tile(self, column: int, row: int) -> np.ndarray:
        """Return the only tile, which is the whole picture: (h, w, 3) uint8."""
        return self._pixels

    def overview(self) -> np.ndarray:
        """Return the whole picture: (h, w, 3) uint8."""
        return self._pixels

    def close(self) -> None:
        """Do nothing, because the file is closed already."""


def _open_picture(data: bytes, kind: str) -> Any:
    import PIL.Image

    try:
        return PIL.Image.open(io.BytesIO(data), formats=[kind])
    except PIL.UnidentifiedImageError:  # its text names an object in memory
        raise ImageError(f"not a {kind}", "name it by its format, or copy or download it again") from None


def _flatten(pixels: np.ndarray) -> np.ndarray:
    """Show RGBA (h, w, 4) uint8 on white; RGB stays as it is."""
    return pixels if pixels.shape[-1] == 3 else on_white(pixels[..., :3], pixels[..., 3:], associated=False)
