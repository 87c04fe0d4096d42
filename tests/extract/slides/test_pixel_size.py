import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from extract.slides.pixel_size import read_pixel_size
from hist_cache.errors import SlideError
from tests.conftest import SHARED, needs_shared

OME, TIFF, IMAGEJ = "OME-XML's PhysicalSizeX", "the TIFF's resolution", "ImageJ's unit"
NO_UNIT = {"resolutionunit": "NONE"}
PIXELS = np.zeros((64, 96, 3), dtype=np.uint8)
APERIO = "Aperio Image Library v11.2.1\r\n96x64 (64x64) JPEG/RGB Q=70|AppMag = 20|MPP = 0.4990|Left = 25"


def write(path: Path, **options: Any) -> Path:
    tifffile.imwrite(path, PIXELS, photometric="rgb", **({"metadata": None, "tile": (32, 32)} | options))
    return path


def per_cm(um: float) -> dict[str, Any]:
    return {"resolution": (1e4 / um, 1e4 / um), "resolutionunit": "CENTIMETER"}


def ome(x: str, y: str, size: tuple[int, int] = (96, 64)) -> str:
    return (
        '<?xml version="1.0"?><OME><Image ID="Image:0"><Pixels ID="P" SizeX="7" SizeY="7" PhysicalSizeX="9"/></Image>'
        f'<Image><Pixels BigEndian="false" SizeX="{size[0]}" SizeY="{size[1]}" SizeC="3" {x} {y}/></Image></OME>'
    )


@pytest.mark.parametrize(
    ("options", "um", "source"),
    [
        (per_cm(0.25), 0.25, TIFF),
        ({"resolution": (50_800, 50_800), "resolutionunit": "INCH"}, 0.5, TIFF),
        ({"description": ome('PhysicalSizeX="0.5"', 'PhysicalSizeY="0.505"'), **per_cm(3)}, 0.5025, OME),
        ({"description": ome('PhysicalSizeX="2e-4" PhysicalSizeXUnit="mm"',
                             'PhysicalSizeY="200" PhysicalSizeYUnit="nm"')}, 0.2, OME),
        ({"description": ome('PhysicalSizeX="1" PhysicalSizeXUnit="&#181;m"', 'PhysicalSizeY="1"')}, 1, OME),
        ({"description": ome('PhysicalSizeX="1"', 'PhysicalSizeYUnit="pixel"'), **per_cm(0.3)}, 0.3, TIFF),
        ({"description": ome('PhysicalSizeX="0.5"', 'PhysicalSizeY="0.5"', (95, 64))}, None, ""),
        ({"description": "ImageJ=1.53t\nunit=micron\n", "resolution": (4, 4), **NO_UNIT}, 0.25, IMAGEJ),
        ({"description": "ImageJ=1.53t\nunit=\\u00B5m\n", "resolution": (2, 2), **NO_UNIT}, 0.5, IMAGEJ),
        ({"description": "ImageJ=1.53t\nunit=pixel\n", "resolution": (4, 4), **NO_UNIT}, None, ""),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None, ""),
        ({"resolution": (96, 96), "resolutionunit": "INCH"}, None, ""),
        ({"resolution": (300, 300), "resolutionunit": "INCH"}, None, ""),
        ({"resolution": (4, 4), **NO_UNIT}, None, ""),
        ({"resolution": (0, 0), "resolutionunit": "CENTIMETER"}, None, ""),
        ({}, None, ""),
    ],
)  # fmt: skip
def test_what_a_tiff_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict, um: float | None, source: str
) -> None:
    monkeypatch.setattr("extract.slides.pixel_size._from_server", lambda path: [])  # which takes long to start
    size = read_pixel_size("S", write(tmp_path / "a.tif", **options))
    if um is None:
        assert size is None
    else:
        assert size is not None
        assert size.um_per_px == pytest.approx(um, rel=1e-6)
        assert size.source == source


def test_aperio_and_openslide(tmp_path: Path) -> None:
    size = read_pixel_size("S", write(tmp_path / "a.svs", description=APERIO, **per_cm(3)))
    assert size is not None
    assert (size.um_per_px, size.source) == (0.499, "Aperio's MPP")
    # With another case of letters only OpenSlide's own reading of the resolution is left.
    write(tmp_path / "b.scn", description=APERIO)
    size = read_pixel_size("S", tmp_path / "b.scn")
    assert size is not None
    assert (size.um_per_px, size.source) == (0.499, "OpenSlide's mpp-x and mpp-y")


@pytest.mark.parametrize("options", [
    {"resolution": (20_000, 30_000), "resolutionunit": "CENTIMETER"},
    {"description": ome('PhysicalSizeX="0.5"', 'PhysicalSizeY="0.52"')},
])  # fmt: skip
def test_pixels_must_be_square(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict) -> None:
    monkeypatch.setattr("extract.slides.pixel_size._from_server", lambda path: [])
    with pytest.raises(
        SlideError, match=r"^S: .*a\.tif: its pixels are not square: 0\.5 x 0\.\d+ um by .*; give --um-per"
    ):
        read_pixel_size("S", write(tmp_path / "a.tif", **options))


def test_metadata_of_hest_go_first(tmp_path: Path) -> None:
    for folder in ("wsis", "metadata", "other"):
        (tmp_path / folder).mkdir()
    path = write(tmp_path / "wsis" / "A1.tif", description=APERIO)
    metadata = tmp_path / "metadata" / "A1.json"
    metadata.write_text(json.dumps({"pixel_size_um_estimated": 0.71}))
    size = read_pixel_size("A1", path)
    assert size is not None
    assert (size.um_per_px, size.source) == (0.71, "HEST's metadata")
    size = read_pixel_size("A1", write(tmp_path / "other" / "A1.tif", description=APERIO))
    assert size is not None
    assert size.um_per_px == 0.499
    metadata.write_text(json.dumps({"pixel_size_um_estimated": None}))
    size = read_pixel_size("A1", path)
    assert size is not None
    assert size.um_per_px == 0.499
    metadata.write_text(json.dumps({"pixel_size_um_estimated": -1}))
    with pytest.raises(SlideError, match=r"A1\.json: pixel_size_um_estimated is -1"):
        read_pixel_size("A1", path)


def test_files_that_state_nothing_or_are_damaged(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"no image" * 100)
    assert read_pixel_size("S", tmp_path / "a.tif") is None
    (tmp_path / "a.png").write_bytes(b"")
    assert read_pixel_size("S", tmp_path / "a.png") is None


@needs_shared
def test_a_real_slide_of_hest() -> None:
    size = read_pixel_size("SPA138", SHARED / "hest" / "wsis" / "SPA138.tif")
    assert size is not None
    assert size.um_per_px == pytest.approx(0.6856783785463821)
