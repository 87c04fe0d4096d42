"""OME-Zarr, versions 0.1 to 0.5, read chunk by chunk through zarr: a folder with the levels of a pyramid as arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from extract.slides.colors import CONVERT, check_not_dark, to_8_bits
from extract.slides.image import THUMBNAIL_PX, ImageError, UnreadKindError, check_memory, check_size, shrink
from extract.slides.ome import ONE_RGB, Channel, not_rgb, rgb_order

if TYPE_CHECKING:
    from zarr import Array, Group

OLD_AXES = ("t", "c", "z", "y", "x")  # of versions before 0.3, which do not state them
STACKS = {"t": "times", "z": "focal planes"}
SMALLEST_TILE = 256  # px; several smaller chunks make a tile, because each reading takes a millisecond
MAX_LEVELS = 100
CHUNKS_AT_ONCE = 4  # that threads decode


@dataclass(frozen=True)
class Multiscales:
    """What the metadata say of an image.

    Attributes:
        paths: The arrays of its levels, the largest first.
        axes: Names of the axes of all of them.
        scale: Size of a pixel of the largest along each axis, in its unit.
        units: The unit of each axis; empty where none is stated.
        channels: Its channels, where they are described.
    """

    paths: tuple[str, ...]
    axes: tuple[str, ...]
    scale: tuple[float, ...]
    units: tuple[str, ...]
    channels: tuple[Channel, ...]


class OmeZarrLevel:
    """One level as a grid of tiles.

    Args:
        array: The array of the level.
        axes: Names of its axes.
        order: Numbers of the red, the green and the blue channel.

    Raises:
        ImageError: Its chunks do not fit into memory.
    """

    def __init__(self, array: Array[Any], axes: Sequence[str], order: Sequence[int]) -> None:
        self._array, self._axes, self._order = array, axes, list(order)
        shape = dict(zip(axes, map(index, array.shape), strict=True))
        chunk = dict(zip(axes, map(index, array.chunks), strict=True))
        self.width, self.height = shape["x"], shape["y"]
        check_size(self.width, self.height)
        what = f"chunks of {' x '.join(f'{n:,}' for n in array.chunks)}"
        check_memory(CHUNKS_AT_ONCE * math.prod(array.chunks) * array.dtype.itemsize, what)
        self.tile_width = min(chunk["x"] * -(-SMALLEST_TILE // chunk["x"]), self.width)
        self.tile_height = min(chunk["y"] * -(-SMALLEST_TILE // chunk["y"]), self.height)
        self.across, self.down = -(-self.width // self.tile_width), -(-self.height // self.tile_height)

    def read_tile(self, column: int, row: int) -> np.ndarray:
        """Decode one tile: (h, w, 3) uint8."""
        x, y = column * self.tile_width, row * self.tile_height
        take = {"x": slice(x, x + self.tile_width), "y": slice(y, y + self.tile_height), "c": slice(None)}
        pixels = np.asarray(self._array[tuple(take.get(axis, 0) for axis in self._axes)])
        left = [axis for axis in self._axes if axis in take]
        pixels = pixels.transpose([left.index(axis) for axis in "yxc"])[..., self._order]
        return np.ascontiguousarray(to_8_bits(pixels))


class OmeZarrImage:
    """The largest level of an OME-Zarr; its chunks that are not there have the fill value that it states.

    Args:
        path: The folder. Of one with several images, as bioformats2raw writes, the largest is the slide.

    Raises:
        ImageError: It is damaged, or no RGB.
    """

    def __init__(self, path: Path) -> None:
        group, self._about = open_multiscales(path)
        array = _array(group, self._about)
        order, named = _rgb_channels(array, self._about)
        self._group, self._order = group, order
        self._level = OmeZarrLevel(array, self._about.axes, order)
        self.width, self.height = self._level.width, self._level.height
        self.tile_width, self.tile_height = self._level.tile_width, self._level.tile_height
        parts = ["zarr", "" if named else "unnamed channels", "16 bits" if array.dtype == np.uint16 else ""]
        self.name = ", ".join(part for part in parts if part)
        if array.dtype == np.uint16:
            check_not_dark(self)

    def read_tile(self, column: int, row: int) -> np.ndarray:
        """Decode one tile: (h, w, 3) uint8."""
        return self._level.read_tile(column, row)

    def overview(self) -> np.ndarray:
        """Read the whole slide at a lower resolution: (h, w, 3) uint8."""
        level = self._level
        for i in range(1, min(len(self._about.paths), MAX_LEVELS)):
            smaller = OmeZarrLevel(_array(self._group, self._about, i), self._about.axes, self._order)
            if THUMBNAIL_PX <= max(smaller.width, smaller.height) < max(level.width, level.height):
                level = smaller
        return shrink(level)

    def close(self) -> None:
        """Do nothing, because zarr keeps no file open."""


def open_multiscales(path: Path) -> tuple[Group, Multiscales]:
    """Open an OME-Zarr.

    Args:
        path: The folder.

    Returns:
        The group of the image, and what its metadata say.

    Raises:
        ImageError: It has no image, or several that are equally large.
    """
    import zarr

    try:
        root = zarr.open_group(path, mode="r", use_consolidated=False)
    except FileNotFoundError:  # of which zarr's error of a group that is not there is one
        raise ImageError("no OME-Zarr: no group of zarr in it") from None
    about = _ome(root)
    if "plate" in about:
        raise UnreadKindError("a plate of wells, not a slide", "give one of its images")
    if "multiscales" in about:
        return root, _read_multiscales(about)
    images = [(group, _read_multiscales(_ome(group))) for group in _series(root)]
    sized = sorted(((_area(*image), i) for i, image in enumerate(images)), reverse=True)
    if not sized:
        raise ImageError("no OME-Zarr: its metadata state no multiscales")
    if len(sized) > 1 and sized[0][0] == sized[1][0]:
        raise UnreadKindError("several images of full size", ONE_RGB)
    return images[sized[0][1]]


def _ome(group: Group) -> Mapping[str, Any]:
    """Return OME's metadata of a group: since version 0.5 under a key of their own."""
    attributes = group.attrs.asdict()
    ome = attributes.get("ome")
    return ome if isinstance(ome, dict) else attributes


def _series(root: Group) -> list[Group]:
    """List the images of a folder that bioformats2raw wrote, called 0, 1 and so on."""
    names = sorted((name for name in root.group_keys() if name.isdecimal()), key=int)
    groups = [root[name] for name in names[:MAX_LEVELS]]
    return [group for group in groups if "multiscales" in _ome(group)]  # type: ignore[arg-type,misc]


def _area(group: Group, about: Multiscales) -> int:
    shape = dict(zip(about.axes, _array(group, about).shape, strict=True))
    return shape["x"] * shape["y"]


def _array(group: Group, about: Multiscales, level: int = 0) -> Array[Any]:
    """Open the array of a level.

    Raises:
        ImageError: It is none, or has another shape than the axes say.
    """
    import zarr

    path = about.paths[level]
    array = group[path]
    if not isinstance(array, zarr.Array) or len(array.shape) != len(about.axes):
        raise ImageError(f"its level {path} is no array of {len(about.axes)} axes")
    return array


def _read_multiscales(ome: Mapping[str, Any]) -> Multiscales:
    """Read the metadata of an image.

    Raises:
        ImageError: They are not as the format says.
    """
    try:
        about = ome["multiscales"][0]
        axes = [axis if isinstance(axis, dict) else {"name": axis} for axis in about.get("axes", OLD_AXES)]
        names = tuple(str(axis["name"]) for axis in axes)
        levels = [str(level["path"]) for level in about["datasets"]]
        scales = [_scale(part, len(axes)) for part in (about, about["datasets"][0])]
        channels = ome.get("omero", {}).get("channels", [])
        described = tuple(Channel(str(c.get("label") or ""), _hex_color(c.get("color"))) for c in channels)
        if not levels or len(set(names)) < len(names) or not {"x", "y"} <= set(names) <= set(OLD_AXES):
            raise ValueError(f"axes {names}")
        scale = tuple(a * b for a, b in zip(*scales, strict=True))
        return Multiscales(tuple(levels), names, scale, tuple(str(a.get("unit") or "") for a in axes), described)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ImageError(f"its multiscales metadata are not those of OME-Zarr ({error!r:.80})") from None


def _scale(part: Mapping[str, Any], axes: int) -> list[float]:
    """Return what a transformation scales each axis by; 1 where there is none."""
    for transformation in part.get("coordinateTransformations", []):
        if transformation["type"] == "scale":
            return [float(value) for value in transformation["scale"]]
    return [1.0] * axes


def _hex_color(text: object) -> tuple[int, int, int] | None:
    """Return the colour of six hexadecimal digits; None for anything else."""
    try:
        red, green, blue = bytes.fromhex(str(text).removeprefix("#"))[:3]
    except ValueError:
        return None
    return red, green, blue


def _rgb_channels(array: Array[Any], about: Multiscales) -> tuple[tuple[int, ...], bool]:
    """Return the numbers of the red, the green and the blue channel, and whether the metadata say which they are.

    Raises:
        UnreadKindError: They are no red, green and blue, or there are several planes.
    """
    shape = dict(zip(about.axes, array.shape, strict=False))
    for axis, what in STACKS.items():
        if shape.get(axis, 1) != 1:
            raise UnreadKindError(f"a stack of {shape[axis]:,} {what}", ONE_RGB)
    count = shape.get("c", 1)
    channels = about.channels if len(about.channels) == count else (Channel(),) * min(count, MAX_LEVELS)
    if count != 3:
        raise not_rgb(channels)
    order = rgb_order(channels)
    if array.dtype not in (np.uint8, np.uint16):
        raise UnreadKindError(f"its samples are {array.dtype}, not 8 or 16 bits without sign", CONVERT)
    if order is None and array.dtype == np.uint16:
        raise UnreadKindError("its three channels of 16 bits have no names", ONE_RGB)
    return order or (0, 1, 2), order is not None


def stated_scale(path: Path) -> dict[str, tuple[float, str]]:
    """Return the size of a pixel of level 0 along each axis, and its unit; an empty one where none is stated."""
    _, about = open_multiscales(path)
    return {axis: (size, unit) for axis, size, unit in zip(about.axes, about.scale, about.units, strict=True)}
