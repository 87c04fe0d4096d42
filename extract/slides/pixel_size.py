"""How large a pixel of a slide's level 0 is, in um, by what the slide's own files say."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any

from extract.slides.directories import check_directories
from extract.slides.image import ImageError
from extract.slides.ome_zarr import stated_scale
from extract.slides.readers import PLAIN_FORMATS, TIFF_SUFFIXES
from extract.slides.vendors import CZI_SUFFIX, Server, czi_server
from hist_cache.errors import SlideError
from hist_cache.metadata import USUAL, estimated_pixel_size, read_metadata
from hist_cache.slides import image_name

PLAUSIBLE_UM = USUAL["pixel_size_um_estimated"]  # the 72 to 600 dots an inch that programs make up are 353 to 42 um
MAX_ASYMMETRY = 0.02  # relative difference between pixel sizes along x and y
UM_PER_UNIT = {"nm": 1e-3, "um": 1.0, "µm": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "mm": 1e3, "cm": 1e4,
               "m": 1e6, "nanometer": 1e-3, "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6,
               "in": 25_400.0, "inch": 25_400.0}  # fmt: skip
UM_PER_RESOLUTION_UNIT = {2: 25_400.0, 3: 1e4}  # of TIFF: inch, cm
SET_IT = "give --um-per-px"


@dataclass(frozen=True)
class PixelSize:
    """The pixel size of level 0, and where it was found.

    Attributes:
        um_per_px: Micrometres per level-0 px.
        source: What states it, as a text: `OpenSlide's mpp-x`.
    """

    um_per_px: float
    source: str


@dataclass(frozen=True)
class _Stated:
    """Pixel sizes along x and y as something states them, um; both may be anything."""

    x: float
    y: float
    source: str


def read_pixel_size(slide: str, path: Path) -> PixelSize | None:
    """Read the pixel size of a slide; None where its files state none, so that the user must say it (`--um-per-px`).

    What states a plausible one first counts: HEST's metadata (with which models were trained) where the file lies in
    the `wsis` folder of a HEST folder; the description in a TIFF (Aperio's, OME-XML, ImageJ's), or what OME-Zarr
    and CZI state; OpenSlide; the resolution tags of a TIFF.

    Args:
        slide: ID of the slide, for messages.
        path: The image file.

    Raises:
        SlideError: Pixels are not square, or HEST's metadata cannot be read.
    """
    if (um_per_px := _from_hest(path)) is not None:
        return PixelSize(um_per_px, "HEST's metadata")
    for stated in _statements(path):
        low, high = PLAUSIBLE_UM
        if not (low <= stated.x <= high and low <= stated.y <= high):
            continue
        if abs(stated.x / stated.y - 1) > MAX_ASYMMETRY:
            problem = f"its pixels are not square: {stated.x:.4g} x {stated.y:.4g} um by {stated.source}"
            raise SlideError(slide, path, problem, f"{SET_IT} if that is wrong")
        return PixelSize((stated.x + stated.y) / 2, stated.source)
    return None


def _from_hest(path: Path) -> float | None:
    """Return what the metadata say of a file in a HEST folder; None where it lies elsewhere or they say nothing."""
    path = path.resolve()  # of a link, where the slide itself lies
    root = path.parent.parent
    name = image_name(path)
    if path.parent.name != "wsis" or not (root / "metadata" / f"{name}.json").exists():
        return None
    file, metadata = read_metadata(root, name)
    return estimated_pixel_size(name, file, metadata)


def _statements(path: Path) -> Iterator[_Stated]:
    """Yield what a file states, the most explicit first."""
    suffix = path.suffix.lower()
    if suffix in PLAIN_FORMATS:  # their dots per inch are of a printer or a screen
        return
    if path.is_dir():
        yield from _from_zarr(path)
        return
    description, resolution = _from_tiff(path) if suffix in TIFF_SUFFIXES else ([], [])
    yield from description
    with suppress(ImageError):  # whether the file can be read is another question
        yield from _from_server(path)
    yield from resolution


def _from_zarr(path: Path) -> list[_Stated]:
    try:
        scale = stated_scale(path)
    except Exception:  # zarr raises errors of any kind; `open_image` tells the user of a damaged folder
        return []
    x, y = ((_number(str(size)), _um_per(unit)) for size, unit in (scale["x"], scale["y"]))
    if not (x[0] and x[1] and y[0] and y[1]):
        return []
    return [_Stated(x[0] * x[1], y[0] * y[1], "OME-Zarr's coordinateTransformations")]


def _from_server(path: Path) -> list[_Stated]:
    is_czi = path.suffix.lower() == CZI_SUFFIX
    server = czi_server(path) if is_czi else Server(path)
    server.close()
    x, y = (_number(text) for text in server.um_per_px)
    source = "CZI's Scaling" if is_czi else "OpenSlide's mpp-x and mpp-y"
    return [] if x is None and y is None else [_Stated(x or y or 0, y or x or 0, source)]


def _from_tiff(path: Path) -> tuple[list[_Stated], list[_Stated]]:
    """Return what description and resolution of a TIFF's largest page state; nothing for a file that cannot be read."""
    import tifffile

    try:
        check_directories(path)
        with tifffile.TiffFile(path) as file:
            pages: list[Any] = list(file.pages)
            page = max(pages, key=lambda page: index(page.imagewidth) * index(page.imagelength))
            text = next((str(p.description) for p in (page, pages[0]) if p.description), "")
            size = index(page.imagewidth), index(page.imagelength)
            resolution = [_dots(page.tags.valueof(282)), _dots(page.tags.valueof(283))]
            unit = page.tags.valueof(296, 2)
    except Exception:  # tifffile raises errors of any kind; `open_image` tells the user of a damaged file
        return [], []
    described = [*_aperio(text), *_ome(text, size)]
    if text.startswith("ImageJ=") and (named := re.search(r"^unit=(.+)$", text, re.MULTILINE)):
        described += _inverse(
            resolution, _um_per(named[1].encode().decode("unicode_escape", "ignore")), "ImageJ's unit"
        )
    return described, _inverse(resolution, UM_PER_RESOLUTION_UNIT.get(unit), "the TIFF's resolution")


def _aperio(description: str) -> list[_Stated]:
    """Return what a description of Aperio states: `Aperio ... |MPP = 0.4990|...`."""
    found = re.search(r"\|\s*MPP\s*=\s*([0-9.eE+-]{1,30})", description) if description.startswith("Aperio") else None
    um = _number(found[1]) if found else None
    return [] if um is None else [_Stated(um, um, "Aperio's MPP")]


def _ome(description: str, size: tuple[int, int]) -> list[_Stated]:
    """Return what OME-XML states of the image of this size; without a `PhysicalSizeXUnit` it is in um."""
    stated = []
    for attributes in re.findall(r"<(?:\w+:)?Pixels\s([^<>]*)>", description):
        values = dict(re.findall(r'\b(\w+)\s*=\s*["\']([^"\']{1,40})["\']', attributes))
        if (values.get("SizeX"), values.get("SizeY")) != tuple(map(str, size)):
            continue
        sizes = [_ome_length(values, f"PhysicalSize{axis}") for axis in "XY"]
        if sizes[0] is not None and sizes[1] is not None:
            stated.append(_Stated(sizes[0], sizes[1], "OME-XML's PhysicalSizeX"))
    return stated


def _ome_length(values: dict[str, str], name: str) -> float | None:
    number, unit = _number(values.get(name)), _um_per(html.unescape(values.get(f"{name}Unit", "um")))
    return None if number is None or unit is None else number * unit


def _um_per(unit: str) -> float | None:
    return UM_PER_UNIT.get(unit.strip().replace("\u03bc", "\u00b5").lower())  # Greek mu and the micro sign


def _dots(value: Any) -> float | None:
    """Return pixels per unit of a TIFF's tag, which is a fraction."""
    with suppress(TypeError, ValueError, ZeroDivisionError, IndexError):
        return float(value[0]) / float(value[1])
    return None


def _inverse(resolution: list[float | None], um_per_unit: float | None, source: str) -> list[_Stated]:
    x, y = resolution
    return [_Stated(um_per_unit / x, um_per_unit / y, source)] if um_per_unit and x and y else []


def _number(text: str | None) -> float | None:
    """Return a finite number above 0; None for anything else."""
    with suppress(TypeError, ValueError):
        number = float(text or "")
        return number if math.isfinite(number) and number > 0 else None
    return None
