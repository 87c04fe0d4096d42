"""OME-Zarr written by zarr, with the metadata of versions 0.4 and 0.5."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from extract.slides.listing import slide_images, slide_name
from extract.slides.ome_zarr import open_multiscales
from extract.slides.pixel_size import read_pixel_size
from extract.slides.readers import open_image
from hist_cache.errors import SlideError
from hist_cache.fingerprint import file_digest, file_stamp
from tests.extract.slides.test_readers import whole

PIXELS = np.random.default_rng(0).integers(0, 256, (300, 420, 3), dtype=np.uint8)
RGB = [{"label": "R", "color": "FF0000"}, {"label": "G", "color": "00FF00"}, {"label": "B", "color": "0000FF"}]
UM = {"y": "micrometer", "x": "nanometer"}


def write_zarr(path: Path, pixels: np.ndarray = PIXELS, axes: str = "tczyx", version: str = "0.4", levels: int = 2,
               channels: list[dict[str, str]] | None = None, group: str = "", chunk: int = 100,
               units: dict[str, str] = UM, shape: tuple[int, ...] | None = None) -> Path:  # fmt: skip
    """An image whose pixels are 0.5 um wide; each level has half the size of the one before."""
    zarr_format: Any = 2 if version == "0.4" else 3
    root = zarr.open_group(path, mode="a", zarr_format=zarr_format)
    image = root.create_group(group) if group else root
    datasets = []
    for level in range(levels):
        step = 1 << level
        small = np.moveaxis(pixels[::step, ::step], -1, 0)
        size = {"c": small.shape[0], "y": small.shape[1], "x": small.shape[2]}
        order = [axis for axis in axes if axis in size]
        data = small.transpose(["cyx".index(axis) for axis in order]).reshape([size.get(axis, 1) for axis in axes])
        shards = None if version == "0.4" else tuple(2 * chunk if axis in "yx" else size.get(axis, 1) for axis in axes)
        array = image.create_array(str(level), shape=shape or data.shape, dtype=data.dtype, shards=shards,
                                   chunks=tuple(chunk if axis in "yx" else 1 for axis in axes))  # fmt: skip
        if shape is None:
            array[...] = data
        sizes = {"y": 0.25, "x": 250.0}  # times the 2 of all levels
        scale = [sizes.get(axis, 1.0) * step for axis in axes]
        datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    kinds = {"t": "time", "c": "channel"}
    stated = [{"name": axis, "type": kinds.get(axis, "space")} | ({"unit": units[axis]} if axis in units else {})
              for axis in axes]  # fmt: skip
    twice = [{"type": "scale", "scale": [2.0 if axis in "yx" else 1.0 for axis in axes]}]
    about: dict[str, Any] = {
        "multiscales": [{"axes": stated, "datasets": datasets, "coordinateTransformations": twice}]
    }
    if channels is not None:
        about["omero"] = {"channels": channels}
    image.attrs.update({"ome": {"version": "0.5", **about}} if version == "0.5" else about)
    return path


@pytest.mark.parametrize(
    ("version", "axes", "channels", "name"),
    [
        ("0.4", "tczyx", RGB, "zarr"),
        ("0.4", "yxc", None, "zarr, unnamed channels"),
        ("0.5", "cyx", RGB, "zarr"),
        ("0.5", "tczyx", [{"color": "ffffff"}] * 3, "zarr, unnamed channels"),
    ],
)
def test_pixels_and_their_size(tmp_path: Path, version: str, axes: str, channels: Any, name: str) -> None:
    path = write_zarr(tmp_path / "a.ome.zarr", version=version, axes=axes, channels=channels)
    image = open_image("S", path)
    assert (image.reader_name, image.width, image.height) == (name, 420, 300)
    assert (image.tile_width, image.tile_height) == (300, 300)
    np.testing.assert_array_equal(whole(image), PIXELS)
    np.testing.assert_array_equal(image.overview(), PIXELS)
    size = read_pixel_size("S", path)
    assert size is not None
    assert (size.um_per_px, size.source) == (pytest.approx(0.5), "OME-Zarr's coordinateTransformations")


def test_older_versions_name_their_axes_or_have_five(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "a.zarr", levels=1)
    for axes in ({}, {"axes": ["t", "c", "z", "y", "x"]}):
        about = {"multiscales": [{"datasets": [{"path": "0"}], **axes}]}
        (path / ".zattrs").write_text(json.dumps(about))
        np.testing.assert_array_equal(whole(open_image("S", path)), PIXELS)
    assert read_pixel_size("S", path) is None


def test_channels_in_another_order(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "a.zarr", channels=[RGB[2], RGB[0], RGB[1]])
    np.testing.assert_array_equal(whole(open_image("S", path)), PIXELS[..., [1, 2, 0]])


def test_the_overview_is_read_from_the_pyramid(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 4200, 3), dtype=np.uint8)
    path = write_zarr(tmp_path / "a.zarr", pixels, axes="cyx", levels=4)
    np.testing.assert_array_equal(open_image("S", path).overview(), pixels[::4, ::4])


def test_the_largest_image_that_bioformats2raw_wrote(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    write_zarr(path, PIXELS[:50, :50], group="0")
    write_zarr(path, group="1", channels=RGB)
    write_zarr(path, PIXELS[:80, :50], group="10")
    zarr.open_group(path, mode="a").attrs["bioformats2raw.layout"] = 3
    np.testing.assert_array_equal(whole(open_image("S", path)), PIXELS)
    write_zarr(path, group="2")
    with pytest.raises(SlideError, match="several images of full size"):
        open_image("S", path)


def test_16_bits(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "a.zarr", PIXELS.astype(np.uint16) * 257, channels=RGB)
    image = open_image("S", path)
    assert image.reader_name == "zarr, 16 bits"
    np.testing.assert_array_equal(whole(image), PIXELS)
    path = write_zarr(tmp_path / "b.zarr", PIXELS.astype(np.uint16) * 16, channels=RGB)
    with pytest.raises(SlideError, match="use no more than 12 of them"):
        open_image("S", path)


STAINS = [{"label": name, "color": color["color"]} for name, color in zip(("DAPI", "FITC", "Cy3"), RGB, strict=True)]
OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "stains": ({"channels": STAINS}, "its 3 channels are DAPI, FITC, Cy3, not red, green and blue; store one RGB"),
    "one channel": ({"pixels": PIXELS[..., :1]}, "its 1 channel is unnamed"),
    "a volume": ({"axes": "czyx", "shape": (3, 7, 300, 420)}, "a stack of 7 focal planes"),
    "times": ({"shape": (2, 3, 1, 300, 420)}, "a stack of 2 times"),
    "float": ({"pixels": PIXELS.astype(np.float32)}, "its samples are float32"),
    "16 bits without names": ({"pixels": PIXELS.astype(np.uint16)}, "16 bits have no names"),
    "huge chunks": (
        {"shape": (1, 3, 1, 500_000, 500_000), "chunk": 500_000},
        "chunks of 1 x 1 x 1 x 500,000 x 500,000",
    ),
    "a huge image": ({"shape": (1, 3, 1, 2**31, 2**31)}, "its header states 2,147,483,648 x 2,147,483,648 px"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_are_refused(tmp_path: Path, kind: str) -> None:
    options, problem = OTHERS[kind]
    path = write_zarr(tmp_path / "a.zarr", levels=1, **options)
    with pytest.raises(SlideError) as caught:
        open_image("SLIDE7", path)
    assert str(caught.value).startswith(f"SLIDE7: {path}: ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


SPOILT: dict[str, tuple[Any, str]] = {
    "no metadata": ({}, "its metadata state no multiscales"),
    "a plate": ({"plate": {}}, "a plate of wells"),
    "a text": ({"multiscales": "0"}, "its multiscales metadata"),
    "no levels": ({"multiscales": [{"axes": ["y", "x"], "datasets": []}]}, "its multiscales metadata"),
    "other axes": ({"multiscales": [{"axes": ["q", "x"], "datasets": [{"path": "0"}]}]}, "its multiscales metadata"),
    "fewer axes": (
        {"multiscales": [{"axes": ["c", "y", "x"], "datasets": [{"path": "0"}]}]},
        "its level 0 is no array of 3 axes",
    ),
    "another level": ({"multiscales": [{"datasets": [{"path": "7"}]}]}, "not a readable image"),
    "a level elsewhere": ({"multiscales": [{"datasets": [{"path": "../b.zarr/0"}]}]}, "not a readable image"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_damaged_metadata(tmp_path: Path, kind: str) -> None:
    attributes, problem = SPOILT[kind]
    for name in ("a.zarr", "b.zarr"):
        write_zarr(tmp_path / name)
    (tmp_path / "a.zarr/.zattrs").write_text(json.dumps(attributes))
    with pytest.raises(SlideError, match=problem):
        open_image("S", tmp_path / "a.zarr")
    assert read_pixel_size("S", tmp_path / "a.zarr") is None


def test_damaged_chunks_and_folders(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "a.zarr", axes="cyx")
    (path / "0/1.1.1").write_bytes(b"no chunk")
    image = open_image("S", path)
    assert image.read_tile(1, 0).shape == (300, 120, 3)
    with pytest.raises(SlideError, match="tile 0,0 cannot be decoded"):
        image.read_tile(0, 0)
    (path / ".zattrs").write_text("{")
    with pytest.raises(SlideError, match="not a readable image"):
        open_image("S", path)
    shutil.rmtree(path)
    path.mkdir()
    with pytest.raises(SlideError, match="no group of zarr in it"):
        open_image("S", path)


def test_units_that_are_not_said(tmp_path: Path) -> None:
    assert read_pixel_size("S", write_zarr(tmp_path / "a.zarr", units={})) is None
    _, about = open_multiscales(tmp_path / "a.zarr")
    assert about.paths == ("0", "1")


def test_names_and_digests_of_folders(tmp_path: Path) -> None:
    path = write_zarr(tmp_path / "a.ome.zarr", axes="cyx")
    assert slide_images(tmp_path) == [path]
    assert slide_images(path) == [path]
    assert slide_name(path) == "a"
    digest, stamp = file_digest(path), file_stamp(path)
    assert stamp[0] == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    (path / "labels").mkdir()  # segmentations, which other programs add
    (path / "labels/.zgroup").write_text("{}")
    (path / "0/labels").mkdir(parents=True)  # those of the first image that bioformats2raw writes
    (path / "0/labels/.zgroup").write_text("{}")
    assert (file_digest(path), file_stamp(path)) == (digest, stamp)
    chunk = path / "0/0.0.0"
    data = chunk.read_bytes()
    chunk.write_bytes(data[::-1])
    assert file_digest(path) != digest
    assert file_stamp(path) != stamp
    chunk.write_bytes(data)
    assert file_digest(path) == digest
    chunk.rename(path / "0/9.9.9")
    assert file_digest(path) != digest
