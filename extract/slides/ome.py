"""What OME's metadata say of an image's planes and channels, in the OME-XML of a TIFF or in an OME-Zarr."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from extract.slides.image import UnreadKindError
from hist_cache.errors import one_line

RGB_NAMES = {"r": "red", "red": "red", "g": "green", "green": "green", "b": "blue", "blue": "blue"}
RGB_COLORS = {(255, 0, 0): "red", (0, 255, 0): "green", (0, 0, 255): "blue"}
NO_NAME = re.compile(r"(channel|chan|ch|c)?[ :_.-]*\d*([ :_.-]+\d+)*", re.IGNORECASE)  # such as `Channel 1` or `C:0`
MAX_CHANNELS = 1000
CHANNELS_NAMED = 5  # channels that a message names
ONE_RGB = "store one RGB picture"  # advice


@dataclass(frozen=True)
class Channel:
    """A channel as the metadata describe it.

    Attributes:
        name: Its name; empty where it has none.
        color: The colour in which it is shown, RGB; None where none is stated.
    """

    name: str = ""
    color: tuple[int, int, int] | None = None

    def __str__(self) -> str:
        """The name, or else the colour, for messages."""
        color = "unnamed" if self.color is None else "#{:02x}{:02x}{:02x}".format(*self.color)
        return one_line(ValueError(self.name), 40) if self.name.strip() else color


@dataclass(frozen=True)
class OmePixels:
    """What OME-XML states of the planes of one image.

    Attributes:
        z: Focal planes.
        t: Times.
        channels: Its channels; of those with several samples (RGB), one.
        significant_bits: Bits of a sample that are used; None where it does not say.
        pages: Number of the TIFF's page -> number of the channel in it, where that is stated.
    """

    z: int
    t: int
    channels: tuple[Channel, ...]
    significant_bits: int | None
    pages: dict[int, int]

    @property
    def stack(self) -> str:
        """What there are several of besides channels, for messages; empty where there is one plane a channel."""
        parts = [f"{n:,} {what}" for n, what in ((self.z, "focal planes"), (self.t, "times")) if n != 1]
        return " and ".join(parts)


def read_ome_xml(text: str, width: int, height: int) -> list[OmePixels]:
    """Read what OME-XML states of the images of one size.

    Args:
        text: The description in a TIFF; anything that is no OME-XML states nothing.
        width: Width of the images, px.
        height: Their height, px.
    """
    # Entities are the one way in which a short text becomes a long one; OME-XML has none.
    if "<" not in text or "<!DOCTYPE" in text or "<!ENTITY" in text:
        return []
    try:
        root = ElementTree.fromstring(text)
        size = str(width), str(height)
        every = [e for e in root.iter() if _tag(e) == "Pixels" and (e.get("SizeX"), e.get("SizeY")) == size]
        return [_pixels(element) for element in every]
    except (ElementTree.ParseError, ValueError):
        return []


def _pixels(element: ElementTree.Element) -> OmePixels:
    channels = [Channel(e.get("Name") or "", _rgba(e.get("Color"))) for e in _children(element, "Channel")]
    if not channels and (count := int(element.get("SizeC", 1))) <= MAX_CHANNELS:
        channels = [Channel()] * count
    pages = {int(e.get("IFD", 0)): int(e.get("FirstC", 0)) for e in _children(element, "TiffData") if e.get("IFD")}
    bits = element.get("SignificantBits")
    return OmePixels(
        z=int(element.get("SizeZ", 1)),
        t=int(element.get("SizeT", 1)),
        channels=tuple(channels),
        significant_bits=None if bits is None else int(bits),
        pages=pages,
    )


def _children(element: ElementTree.Element, tag: str) -> Iterator[ElementTree.Element]:
    return (child for child in element if _tag(child) == tag)


def _tag(element: ElementTree.Element) -> str:
    """Return the name of an element without that of its schema."""
    return str(element.tag).rpartition("}")[2]


def _rgba(text: str | None) -> tuple[int, int, int] | None:
    """Return the colour of a signed number of 32 bits, red in the highest byte and opacity in the lowest."""
    if text is None:
        return None
    red, green, blue, _ = (int(text) & 0xFFFFFFFF).to_bytes(4, "big")
    return red, green, blue


def rgb_order(channels: Sequence[Channel]) -> tuple[int, ...] | None:
    """Find red, green and blue among channels, by their names, or by their colours where no name says anything.

    Names come first: stains of fluorescence are shown in red, green and blue too.

    Returns:
        The numbers of the red, the green and the blue channel; None where neither names nor colours say anything.

    Raises:
        UnreadKindError: They are other channels.
    """
    names = [channel.name.strip().lower() for channel in channels]
    colors = [channel.color for channel in channels]
    kinds: list[str | None]
    if len(set(names)) > 1 and not all(NO_NAME.fullmatch(name) for name in names):
        kinds = [RGB_NAMES.get(name) for name in names]
    elif len(set(colors)) == 1 and len(channels) == 3:
        return None
    else:
        kinds = [RGB_COLORS.get(color) if color else None for color in colors]
    if len(channels) != 3 or set(kinds) != {"red", "green", "blue"}:
        raise not_rgb(channels)
    return tuple(kinds.index(kind) for kind in ("red", "green", "blue"))


def not_rgb(channels: Sequence[Channel]) -> UnreadKindError:
    """Return the error of an image that has these channels and no others."""
    named = ", ".join(map(str, channels[:CHANNELS_NAMED])) + (", ..." if len(channels) > CHANNELS_NAMED else "")
    plural = "channels are" if len(channels) > 1 else "channel is"
    return UnreadKindError(f"its {len(channels):,} {plural} {named}, not red, green and blue", ONE_RGB)
