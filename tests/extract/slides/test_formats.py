"""Kinds of slides in files that other programs would write, and where a folder has slides."""

from __future__ import annotations

import io
import struct
from functools import partial
from pathlib import Path

import imagecodecs
import numpy as np
import PIL.Image
import pydicom
import pytest
import tifffile

from extract.slides.dicom_series import series_uid
from extract.slides.listing import slide_images, slide_name
from extract.slides.pixel_size import read_pixel_size
from extract.slides.readers import open_image
from hist_cache.errors import InputError, SlideError
from tests.extract.slides.test_readers import whole

SERIES = "1.2.826.0.1.3680043.8.498.1"
WSI_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"


def smooth_pixels(width: int = 300, height: int = 200) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x % 256, y % 256, (x + y) % 256], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("name", ["a.ome.tif", "A.OME.TIFF"])
def test_ome_tiff_with_its_pyramid_below_the_page(tmp_path: Path, name: str) -> None:
    pixels = smooth_pixels(2400, 200)
    small = np.full((100, 1200, 3), 77, dtype=np.uint8)  # to see which level the overview is made from
    with tifffile.TiffWriter(tmp_path / name, ome=True) as tiff:
        metadata = {"axes": "YXS", "PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 250.0,
                    "PhysicalSizeYUnit": "nm"}  # fmt: skip
        options = {"tile": (64, 64), "photometric": "rgb", "compression": "zlib"}
        tiff.write(pixels, subifds=1, metadata=metadata, **options)
        tiff.write(small, subfiletype=1, **options)
    image = open_image("S", tmp_path / name)
    assert (image.reader_name, image.width, image.height) == ("tifffile", 2400, 200)
    np.testing.assert_array_equal(image.read_tile(3, 2), pixels[128:192, 192:256])
    overview = image.overview()
    assert max(overview.shape) == 1200
    assert (overview == 77).all()
    size = read_pixel_size("S", tmp_path / name)
    assert size is not None
    assert size.um_per_px == pytest.approx(0.25)
    assert size.source == "OME-XML's PhysicalSizeX"
    assert slide_name(tmp_path / name).lower() == "a"


def test_planar_ome_tiff(tmp_path: Path) -> None:
    pixels = smooth_pixels()
    tifffile.imwrite(tmp_path / "a.ome.tif", np.moveaxis(pixels, -1, 0), photometric="rgb", planarconfig="separate",
                     tile=(64, 64), metadata={"axes": "SYX"})  # fmt: skip
    np.testing.assert_array_equal(whole(open_image("S", tmp_path / "a.ome.tif")), pixels)


def element(group: int, number: int, kind: str, value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    data += (b"\0" if kind == "UI" else b" " if isinstance(value, str) else b"\0") * (len(data) % 2)
    head = struct.pack("<HH", group, number) + kind.encode()
    if kind in ("OB", "OW", "SQ"):
        return head + struct.pack("<HI", 0, len(data)) + data
    return head + struct.pack("<H", len(data)) + data


def sequence(group: int, number: int, *items: bytes, ends: bool = False) -> bytes:
    """A sequence with a length, or one without, of items without, that ends with marks."""
    if not ends:
        return element(group, number, "SQ", b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(i)) + i for i in items))
    item = b"".join(
        struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF) + i + struct.pack("<HHI", 0xFFFE, 0xE00D, 0) for i in items
    )
    head = struct.pack("<HH", group, number) + b"SQ" + struct.pack("<HI", 0, 0xFFFFFFFF)
    return head + item + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)


def short(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}H", *values)


def write_dicom(path: Path, pixels: np.ndarray, um_per_px: float, instance: int = 1, series: str = SERIES) -> None:
    """A level of a slide as one file of frames without compression (DICOM PS3.3, A.32.8)."""
    tile = 100
    height, width = pixels.shape[:2]
    frames = [
        pixels[y : y + tile, x : x + tile].tobytes() for y in range(0, height, tile) for x in range(0, width, tile)
    ]
    uid = f"{SERIES}.{instance}"
    meta = element(2, 1, "OB", b"\0\1") + element(2, 2, "UI", WSI_CLASS) + element(2, 3, "UI", uid)
    meta += element(2, 0x10, "UI", EXPLICIT_LITTLE)
    measures = element(0x28, 0x30, "DS", f"{um_per_px / 1000:g}\\{um_per_px / 1000:g}")
    data = [
        element(8, 8, "CS", "ORIGINAL\\PRIMARY\\VOLUME\\NONE"),
        element(8, 0x16, "UI", WSI_CLASS),
        element(8, 0x18, "UI", uid),
        element(8, 0x60, "CS", "SM"),
        sequence(8, 0x1115, element(0x20, 0xE, "UI", "9.9.9"), ends=True),  # another series that is referred to
        element(0x20, 0xD, "UI", "1.2.3"),
        element(0x20, 0xE, "UI", series),
        element(0x20, 0x9311, "CS", "TILED_FULL"),
        element(0x28, 2, "US", short(3)),
        element(0x28, 4, "CS", "RGB"),
        element(0x28, 6, "US", short(0)),
        element(0x28, 8, "IS", str(len(frames))),
        element(0x28, 0x10, "US", short(tile)),
        element(0x28, 0x11, "US", short(tile)),
        element(0x28, 0x100, "US", short(8)),
        element(0x28, 0x101, "US", short(8)),
        element(0x28, 0x102, "US", short(7)),
        element(0x28, 0x103, "US", short(0)),
        element(0x48, 6, "UL", struct.pack("<I", width)),
        element(0x48, 7, "UL", struct.pack("<I", height)),
        sequence(0x5200, 0x9229, sequence(0x28, 0x9110, measures)),
        element(0x7FE0, 0x10, "OB", b"".join(frames)),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(128) + b"DICM" + element(2, 0, "UL", struct.pack("<I", len(meta))) + meta + b"".join(data))


def test_dicom(tmp_path: Path) -> None:
    pixels = smooth_pixels()
    write_dicom(tmp_path / "CASE" / "b.dcm", pixels, 0.5)
    write_dicom(tmp_path / "CASE" / "a.dcm", pixels[::2, ::2][:100, :100], 1.0, instance=2)
    (path,) = slide_images(tmp_path / "CASE")
    assert path.name == "b.dcm"
    assert series_uid(path) == SERIES
    image = open_image("S", path)
    assert (image.reader_name, image.width, image.height) == ("openslide", 300, 200)
    np.testing.assert_array_equal(whole(image), pixels)
    size = read_pixel_size("S", path)
    assert size is not None
    assert size.um_per_px == pytest.approx(0.5)
    assert slide_images(tmp_path) == [path]
    assert slide_name(path) == "CASE"
    image.close()


def jpeg_tile(tile: np.ndarray) -> bytes:
    return imagecodecs.jpeg_encode(tile, level=95, colorspace="RGB", outcolorspace="YCBCR")


def write_compressed_dicom(path: Path, pixels: np.ndarray, kind: str, sparse: bool) -> None:
    """A level of a slide by pydicom, in tiles of 100 px; `sparse` states where each of them lies."""
    syntaxes = {"jpeg": pydicom.uid.JPEGBaseline8Bit, "jpeg 2000": pydicom.uid.JPEG2000Lossless}
    height, width = pixels.shape[:2]
    places = [(x, y) for y in range(0, height, 100) for x in range(0, width, 100)]
    if sparse:
        places.reverse()
    tiles = [pixels[y : y + 100, x : x + 100] for x, y in places]
    encode = jpeg_tile if kind == "jpeg" else partial(imagecodecs.jpeg2k_encode, codecformat="j2k", mct=False)
    data = pydicom.Dataset()
    data.SOPClassUID, data.SOPInstanceUID = WSI_CLASS, f"{SERIES}.1"
    data.ImageType, data.Modality = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], "SM"
    data.StudyInstanceUID, data.SeriesInstanceUID = "1.2.3", SERIES
    data.DimensionOrganizationType = "TILED_SPARSE" if sparse else "TILED_FULL"
    data.SamplesPerPixel, data.PlanarConfiguration, data.PixelRepresentation = 3, 0, 0
    data.PhotometricInterpretation = "YBR_FULL_422" if kind == "jpeg" else "RGB"
    data.Rows = data.Columns = 100
    data.BitsAllocated, data.BitsStored, data.HighBit = 8, 8, 7
    data.NumberOfFrames = len(tiles)
    data.TotalPixelMatrixColumns, data.TotalPixelMatrixRows = width, height
    measures = pydicom.Dataset()
    measures.PixelSpacing = [0.0005, 0.0005]
    shared = pydicom.Dataset()
    shared.PixelMeasuresSequence = [measures]
    data.SharedFunctionalGroupsSequence = [shared]
    if sparse:
        data.PerFrameFunctionalGroupsSequence = []
        for x, y in places:
            position, frame = pydicom.Dataset(), pydicom.Dataset()
            position.ColumnPositionInTotalImagePixelMatrix = x + 1
            position.RowPositionInTotalImagePixelMatrix = y + 1
            frame.PlanePositionSlideSequence = [position]
            data.PerFrameFunctionalGroupsSequence.append(frame)
    data.PixelData = pydicom.encaps.encapsulate([encode(np.ascontiguousarray(tile)) for tile in tiles])
    data["PixelData"].is_undefined_length = True
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntaxes[kind]
    data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = WSI_CLASS, f"{SERIES}.1"
    data.save_as(path, enforce_file_format=True)


@pytest.mark.parametrize(("kind", "sparse"), [("jpeg", False), ("jpeg 2000", True)])
def test_compressed_dicom(tmp_path: Path, kind: str, sparse: bool) -> None:
    pixels = smooth_pixels()
    write_compressed_dicom(tmp_path / "a.dcm", pixels, kind, sparse)
    tile = np.ascontiguousarray(pixels[100:200, 200:300])
    if kind == "jpeg":
        tile = np.asarray(PIL.Image.open(io.BytesIO(jpeg_tile(tile))))
    for path in (tmp_path / "a.dcm", tmp_path):  # as a file, and as a folder of files
        image = open_image("S", path)
        assert (image.reader_name, image.width, image.height) == ("openslide", 300, 200)
        assert np.abs(whole(image)[100:200, 200:300].astype(int) - tile).max() <= (2 if kind == "jpeg" else 0)
        assert np.abs(whole(image).astype(int) - pixels).mean() < 3
        image.close()


def test_dicom_files_of_two_slides_in_one_folder(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", smooth_pixels(), 0.5)
    write_dicom(tmp_path / "b.dcm", smooth_pixels(), 0.5, series=f"{SERIES}.7")
    with pytest.raises(InputError, match=r"DICOM files of several slides; put those of each into a folder"):
        slide_images(tmp_path)


def test_dicom_files_that_are_cut_short_or_none(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a.dcm", smooth_pixels(), 0.5)
    data = (tmp_path / "a.dcm").read_bytes()
    for cut in range(0, 600, 7):
        (tmp_path / "a.dcm").write_bytes(data[:cut])
        assert series_uid(tmp_path / "a.dcm") in (None, SERIES) or cut > 400
    (tmp_path / "a.dcm").write_bytes(data[:300])
    assert slide_images(tmp_path) == [tmp_path / "a.dcm"]  # opening it tells what is wrong
    with pytest.raises(SlideError):
        open_image("S", tmp_path / "a.dcm")
    assert read_pixel_size("S", tmp_path / "a.dcm") is None


def test_slides_of_a_folder(tmp_path: Path) -> None:
    for name in ("b.svs", "a.ndpi", "C.TIF", "d.ome.tiff", "m.mrxs", "m/Slidedat.ini", "m/Data0000.dat", ".hidden.svs",
                 "notes.txt", "v.vms", "v.jpg", "v_map2.jpg", "w.jpg", "sub/e.svs"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.svs").mkdir()
    listed = slide_images(tmp_path)
    assert [path.name for path in listed] == ["C.TIF", "a.ndpi", "b.svs", "d.ome.tiff", "m.mrxs", "v.vms", "w.jpg"]
    assert [slide_name(path) for path in listed] == ["C", "a", "b", "d", "m", "v", "w"]
    assert slide_images(tmp_path / "b.svs") == [tmp_path / "b.svs"]


def test_folders_without_slides_and_slides_of_one_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x: no such file or folder"):
        slide_images(tmp_path / "x")
    with pytest.raises(InputError, match=r"no slide in it \(\.tif"):
        slide_images(tmp_path)
    (tmp_path / "a.svs").touch()
    (tmp_path / "a.tif").touch()
    with pytest.raises(InputError, match=r"a\.tif: has the name of .*a\.svs; rename one"):
        slide_images(tmp_path)
