"""OME-TIFF with one channel a page, and samples of which fewer than 16 bits are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from extract.slides.image import UnreadKindError
from extract.slides.ome import Channel, read_ome_xml, rgb_order
from extract.slides.pixel_size import read_pixel_size
from extract.slides.readers import open_image
from hist_cache.errors import SlideError
from tests.extract.slides.test_readers import whole

PIXELS = np.random.default_rng(0).integers(0, 256, (150, 210, 3), dtype=np.uint8)
COLORS = {"red": -16776961, "green": 16711935, "blue": 65535}  # OME's: RGBA as one signed number


def write_channels(path: Path, pixels: np.ndarray = PIXELS, levels: int = 0, **metadata: Any) -> None:
    """Channels as pages, each with its pyramid in SubIFDs."""
    options: dict[str, Any] = {"tile": (64, 64), "photometric": "minisblack", "compression": "zlib"}
    with tifffile.TiffWriter(path, ome=True) as tiff:
        tiff.write(np.moveaxis(pixels, -1, 0), subifds=levels, metadata={"axes": "CYX", **metadata}, **options)
        for level in range(levels):
            small = pixels[:: 2 << level, :: 2 << level]
            tiff.write(np.moveaxis(small, -1, 0), subfiletype=1, **options)


@pytest.mark.parametrize(
    ("metadata", "order", "name"),
    [
        ({}, (0, 1, 2), "tifffile, channels as RGB, unnamed"),
        ({"Channel": {"Name": ["Channel 1", "Channel 2", "Channel 3"]}}, (0, 1, 2),
         "tifffile, channels as RGB, unnamed"),
        ({"Channel": {"Name": ["Red", "Green", "Blue"]}}, (0, 1, 2), "tifffile, channels as RGB"),
        ({"Channel": {"Name": ["b", "g", "r"]}}, (2, 1, 0), "tifffile, channels as RGB"),
        ({"Channel": {"Color": [COLORS["green"], COLORS["blue"], COLORS["red"]]}}, (2, 0, 1),
         "tifffile, channels as RGB"),
    ],
)  # fmt: skip
def test_one_channel_a_page(tmp_path: Path, metadata: dict[str, Any], order: tuple[int, ...], name: str) -> None:
    path = tmp_path / "a.ome.tif"
    write_channels(path, PhysicalSizeX=0.5, PhysicalSizeXUnit="µm", PhysicalSizeY=500, PhysicalSizeYUnit="nm",
                   **metadata)  # fmt: skip
    image = open_image("S", path)
    assert image.reader_name == name
    np.testing.assert_array_equal(whole(image), PIXELS[..., list(order)])
    np.testing.assert_array_equal(image.overview(), PIXELS[..., list(order)])
    size = read_pixel_size("S", path)
    assert size is not None
    assert size.um_per_px == pytest.approx(0.5)


def test_the_pyramid_of_channels(tmp_path: Path) -> None:
    y, x = np.mgrid[:200, :2400]
    pixels = np.stack([x % 256, y % 256, (x + y) % 256], axis=-1).astype(np.uint8)
    write_channels(tmp_path / "a.ome.tif", pixels, levels=2)
    image = open_image("S", tmp_path / "a.ome.tif")
    np.testing.assert_array_equal(image.read_tile(3, 2), pixels[128:192, 192:256])
    np.testing.assert_array_equal(image.overview(), pixels[::2, ::2])  # the level of 1,200 px, not that of 600


def test_the_file_says_which_page_is_which_channel(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    planes = "".join(f'<TiffData IFD="{ifd}" FirstC="{c}" PlaneCount="1"/>' for ifd, c in ((0, 2), (1, 0), (2, 1)))
    text = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image><Pixels SizeX="210" SizeY="150" '
        f'SizeC="3" SizeZ="1" SizeT="1">{planes}</Pixels></Image></OME>'
    )
    tifffile.imwrite(path, np.moveaxis(PIXELS, -1, 0), photometric="minisblack", tile=(64, 64), description=text,
                     metadata=None)  # fmt: skip
    np.testing.assert_array_equal(whole(open_image("S", path)), PIXELS[..., [1, 2, 0]])


FOUR = np.concatenate([PIXELS, PIXELS[..., :1]], axis=-1)
SIXTEEN = PIXELS.astype(np.uint16) * 257
STAINS = {"Channel": {"Name": ["DAPI", "FITC", "TRITC"], "Color": [COLORS["blue"], COLORS["green"], COLORS["red"]]}}
OTHERS: dict[str, tuple[np.ndarray, dict[str, Any], str]] = {
    "stains": (PIXELS, STAINS, "its 3 channels are DAPI, FITC, TRITC, not red, green and blue; store one RGB"),
    "one stain": (PIXELS, {"Channel": {"Name": ["Red", "Green", "DAPI"]}}, "Red, Green, DAPI, not red"),
    "other colours": (PIXELS, {"Channel": {"Color": [COLORS["red"], 65535, 65535]}}, "#ff0000, #0000ff, #0000ff"),
    "four stains": (FOUR, {"Channel": {"Name": ["a", "b\nb", "c", "d"]}}, "its 4 channels are a, b b, c, d, not red"),
    "four channels": (FOUR, {}, "its 4 channels are"),
    "16 bits without names": (SIXTEEN, {}, "its three channels of 16 bits have no names"),
    "focal planes": (PIXELS, {"axes": "ZYX"}, "a stack of 3 focal planes; store one RGB picture"),
    "times": (PIXELS, {"axes": "TYX"}, "a stack of 3 times"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_channels_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    pixels, metadata, problem = OTHERS[kind]
    write_channels(tmp_path / "a.ome.tif", pixels, **metadata)
    with pytest.raises(SlideError) as caught:
        open_image("SLIDE7", tmp_path / "a.ome.tif")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_channels_with_names_may_have_16_bits(tmp_path: Path) -> None:
    write_channels(tmp_path / "a.ome.tif", SIXTEEN, Channel={"Name": ["R", "G", "B"]})
    image = open_image("S", tmp_path / "a.ome.tif")
    assert image.reader_name == "tifffile, channels as RGB, 16 bits"
    np.testing.assert_array_equal(whole(image), PIXELS)


def test_bits_that_are_used(tmp_path: Path) -> None:
    """12 bits scaled by a formula in float64; without the statement they would be black, so they are refused."""
    pixels = np.random.default_rng(1).integers(0, 4096, PIXELS.shape, dtype=np.uint16)
    options: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb"}
    tifffile.imwrite(tmp_path / "a.ome.tif", pixels, metadata={"axes": "YXS", "SignificantBits": 12}, **options)
    image = open_image("S", tmp_path / "a.ome.tif")
    assert image.reader_name == "tifffile, 12 of 16 bits"
    np.testing.assert_array_equal(whole(image), np.round(pixels / 4095 * 255))
    tifffile.imwrite(tmp_path / "b.tif", pixels, **options)
    with pytest.raises(SlideError, match=r"use no more than 12 of them .* convert it to 8-bit RGB"):
        open_image("S", tmp_path / "b.tif")


def test_colours_by_name_or_colour() -> None:
    assert rgb_order([Channel("G"), Channel("B"), Channel("R")]) == (2, 0, 1)
    assert rgb_order([Channel("TL"), Channel("TL"), Channel("TL")]) is None  # nobody calls three stains the same
    with pytest.raises(UnreadKindError, match="its 1 channel is unnamed"):
        rgb_order([Channel()])


def test_descriptions_that_are_no_ome_xml() -> None:
    pixels = '<Pixels SizeX="210" SizeY="150" SizeC="3"/>'
    assert len(read_ome_xml(f"<OME>{pixels}</OME>", 210, 150)) == 1
    assert read_ome_xml(f"<OME>{pixels}</OME>", 150, 210) == []
    spoilt = [pixels[:-1], "Aperio", f'<!DOCTYPE a [<!ENTITY b "c">]><OME>{pixels}</OME>',
              pixels.replace('"3"', '"99999999999"')[:-2] + ' SizeZ="x"/>']  # fmt: skip
    for text in ("", *spoilt):
        assert read_ome_xml(text, 210, 150) == []
