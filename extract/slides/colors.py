"""From the samples of a pixel, as a TIFF's tags describe them, to 8-bit RGB.

What a kind of image means is decided once, by `color_rule`, from the photometric tag. A kind without a rule is refused:
its samples would otherwise be read as colours that they are not.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from extract.slides.image import WHITE, Reader, UnreadKindError


class Photometric(IntEnum):
    """Values of TIFF's photometric tag for which there is a rule."""

    WHITE_IS_ZERO = 0
    BLACK_IS_ZERO = 1
    RGB = 2
    PALETTE = 3
    CMYK = 5
    YCBCR = 6


PHOTOMETRIC_NAMES = {
    -1: "not said",
    3: "a palette",
    4: "a mask",
    5: "inks",
    6: "YCbCr",
    8: "CIE Lab",
    9: "ICC Lab",
    10: "ITU Lab",
    32803: "raw camera",
    32845: "LogLuv",
}
ASSOCIATED, UNASSOCIATED = 1, 2  # kinds of extra samples; others are no alpha
JPEG = (7, 33007)
JPEG_2000 = (33005, 34712)  # not 33003, Aperio's YCbCr, which OpenSlide reads
LOSSLESS = (1, 5, 8, 32773, 32946, 34925, 50000)  # none, LZW, Deflate, PackBits, LZMA, Zstandard
WEBP = 50001
COMPRESSION_NAMES = {6: "old JPEG", 33003: "JPEG 2000 in YCbCr", 50002: "JPEG XL"}

MAX_SAMPLES = 1000  # of a pixel; a damaged tag may claim trillions
DARK = 16  # of 255, to which 12 bits of 16 are scaled
CONVERT = "convert it to 8-bit RGB"  # advice


@dataclass(frozen=True)
class Samples:
    """What the tags of a TIFF page say of its samples."""

    photometric: int
    """Meaning of the samples; -1 without the tag."""
    compression: int
    dtype: np.dtype | None
    """Type of a decoded sample; None where there is none for it."""
    bits: tuple[int, ...]
    """Bits of each sample, where they differ."""
    count: int
    """Samples of a pixel, extra samples among them."""
    extra: tuple[int, ...]
    """Kinds of the extra samples that are declared."""
    ink_set: int = 1
    """1 for cyan, magenta, yellow and black."""
    palette: np.ndarray | None = None
    """(3, 256) uint16 colours."""
    significant_bits: int | None = None
    """Bits of a sample that are used, where the file states them."""

    @property
    def used_bits(self) -> int:
        """Bits of a sample that are used: all of them, unless the file states fewer."""
        stated = self.significant_bits
        return stated if self.dtype == np.uint16 and stated is not None and 8 <= stated < 16 else 16


@dataclass(frozen=True)
class ColorRule:
    """How the samples of one kind of image become RGB."""

    name: str
    """Empty for what version 0.1 read in the same way: RGB, RGBA and grey of 8 bits."""
    convert: Callable[[np.ndarray], np.ndarray]
    """(h, w, count) samples -> (h, w, 3) uint8."""
    may_be_dark: bool = False
    """Whether samples have 16 bits, and the file does not say how many are used (see `check_not_dark`)."""


def color_rule(samples: Samples) -> ColorRule:
    """Return how these samples become RGB.

    Raises:
        UnreadKindError: There is no rule for them.
    """
    _check_storage(samples)
    kind, lossless = samples.photometric, samples.compression in LOSSLESS
    if kind == Photometric.PALETTE and lossless:
        return _palette_rule(samples)
    if kind == Photometric.CMYK and lossless and samples.count == 4 and samples.ink_set == 1:
        return ColorRule(_name("CMYK", samples), lambda pixels: cmyk_to_rgb(to_8_bits(pixels, samples.used_bits)))
    if kind in (Photometric.WHITE_IS_ZERO, Photometric.BLACK_IS_ZERO):
        return _plain_rule(samples, 1)
    if kind == Photometric.RGB or (kind == Photometric.YCBCR and samples.compression in JPEG):
        return _plain_rule(samples, 3)  # decoders of JPEG give RGB
    name = PHOTOMETRIC_NAMES.get(kind, f"of unknown kind {kind}")
    raise UnreadKindError(f"its colours are {name}, not grey or RGB", CONVERT)


def _plain_rule(samples: Samples, colors: int) -> ColorRule:
    """Return the rule of grey (1 colour) or RGB (3 colours), perhaps with alpha."""
    alpha, extra = _alpha(samples, colors), samples.count - colors
    inverted = samples.photometric == Photometric.WHITE_IS_ZERO
    name = "inverted grey" if inverted else ""
    if extra and (alpha, extra, colors) != (UNASSOCIATED, 1, 3):
        name = ", ".join(part for part in (name, f"{extra} extra, alpha {alpha}") if part)

    def convert(pixels: np.ndarray) -> np.ndarray:
        pixels = to_8_bits(pixels, samples.used_bits)
        color = WHITE - pixels[..., :colors] if inverted else pixels[..., :colors]
        rgb = np.repeat(color, 3, axis=-1) if colors == 1 else color
        return on_white(rgb, pixels[..., colors : colors + 1], alpha == ASSOCIATED) if alpha else rgb

    may_be_dark = samples.dtype == np.uint16 and samples.significant_bits is None and not inverted
    return ColorRule(_name(name, samples), convert, may_be_dark)


def _name(name: str, samples: Samples) -> str:
    """Return the name of a rule, with the bits of samples if they are not 8."""
    used = "16 bits" if samples.used_bits == 16 else f"{samples.used_bits} of 16 bits"
    return ", ".join(part for part in (name, used if samples.dtype == np.uint16 else "") if part)


def _check_storage(samples: Samples) -> None:
    """Check that samples are stored in a way that is read: whole numbers of 8 or 16 bits, in a known compression."""
    if samples.count > MAX_SAMPLES:
        raise UnreadKindError(f"it has {samples.count:,} samples in a pixel", CONVERT)
    bits = "/".join(map(str, samples.bits))
    if samples.dtype not in (np.uint8, np.uint16) or samples.bits not in ((8,), (16,)):
        kind = f"samples are {samples.dtype} of" if samples.dtype is not None else "samples have"
        raise UnreadKindError(f"its {kind} {bits} bits, not 8 or 16 bits without sign", CONVERT)
    if samples.compression not in (*JPEG, *JPEG_2000, WEBP, *LOSSLESS):
        name = COMPRESSION_NAMES.get(samples.compression, f"kind {samples.compression}")
        raise UnreadKindError(f"it is compressed by {name}", "store it with JPEG, Deflate, LZW or without compression")
    if samples.compression in JPEG and (samples.dtype != np.uint8 or samples.count not in (1, 3)):
        raise UnreadKindError(f"a JPEG of {samples.count} samples of {bits} bits", CONVERT)
    if samples.compression == WEBP and (samples.dtype != np.uint8 or samples.count not in (3, 4)):
        raise UnreadKindError(f"a WebP of {samples.count} samples of {bits} bits", CONVERT)


def _alpha(samples: Samples, colors: int) -> int:
    """Return the kind of alpha of grey or RGB samples, 0 for none.

    Raises:
        UnreadKindError: There are fewer samples than colours, or extra ones that may be channels of their own.
    """
    if samples.count < colors:
        raise UnreadKindError(f"it has {samples.count} of {colors} colours in a pixel", CONVERT)
    extra = (*samples.extra, *(0 for _ in range(samples.count)))[: samples.count - colors]
    if extra[:1] and extra[0] in (ASSOCIATED, UNASSOCIATED):
        return extra[0]
    if any(kind in (ASSOCIATED, UNASSOCIATED) for kind in extra):
        raise UnreadKindError("its alpha is not the first extra sample", CONVERT)
    if extra and colors == 1:
        raise UnreadKindError(f"it has {samples.count} channels and no RGB", CONVERT)
    return 0


def _palette_rule(samples: Samples) -> ColorRule:
    palette = samples.palette
    if samples.count != 1 or samples.dtype != np.uint8 or palette is None or palette.shape != (3, 256):
        raise UnreadKindError("its palette has not 256 colours for one sample", CONVERT)
    # Some programs write colours of 8 bits, where the format has 16; libtiff tells them apart in the same way.
    colors = (palette if palette.max() < 256 else palette >> 8).astype(np.uint8).T
    return ColorRule("palette", lambda pixels: colors[pixels[..., 0]])


def to_8_bits(pixels: np.ndarray, bits: int = 16) -> np.ndarray:
    """Scale samples of 16 bits to 0..255, rounded; samples of 8 bits stay as they are.

    Args:
        pixels: Samples, uint8 or uint16.
        bits: Those of 16 that are used: 65535, 4095 for 12 bits and so on becomes 255, and larger samples too.
    """
    if pixels.dtype == np.uint8:
        return pixels
    top = (1 << bits) - 1
    return ((np.minimum(pixels, top).astype(np.uint32) * WHITE + top // 2) // top).astype(np.uint8)


def check_not_dark(image: Reader) -> None:
    """Check that samples of 16 bits use their range, as far as five tiles show it: those of cameras often have 12.

    Raises:
        UnreadKindError: All of them are below a sixteenth of the range.
    """
    across, down = -(-image.width // image.tile_width), -(-image.height // image.tile_height)
    places = {(across * x // 4, down * y // 4) for x, y in ((2, 2), (1, 1), (3, 1), (1, 3), (3, 3))}
    most = []
    for column, row in sorted(places):
        with suppress(Exception):  # whoever needs a damaged tile is told of it
            most.append(int(image.read_tile(column, row).max()))
        if most and most[-1] > DARK:
            return
    if most:
        problem = "its samples of 16 bits use no more than 12 of them in the tiles looked at, and would be black"
        raise UnreadKindError(problem, f"{CONVERT}, or let its OME-XML state the SignificantBits")


def on_white(color: np.ndarray, alpha: np.ndarray, associated: bool) -> np.ndarray:
    """Show colours on white where they are transparent.

    Args:
        color: (h, w, 3) uint8.
        alpha: (h, w, 1) uint8; 255 is opaque.
        associated: Whether the colours are multiplied by alpha already.

    Returns:
        (h, w, 3) uint8.
    """
    if alpha.min(initial=WHITE) == WHITE:
        return np.ascontiguousarray(color)
    a = alpha.astype(np.uint16)
    if associated:
        return np.minimum(color + (WHITE - a), WHITE).astype(np.uint8)
    return ((color * a + WHITE * (WHITE - a) + 127) // WHITE).astype(np.uint8)


def cmyk_to_rgb(inks: np.ndarray) -> np.ndarray:
    """Return (1 - ink) (1 - black) for each of cyan, magenta and yellow, which is what is done without a profile.

    Args:
        inks: (h, w, 4) uint8; 0 is no ink.

    Returns:
        (h, w, 3) uint8.
    """
    paper = WHITE - inks.astype(np.uint16)
    return ((paper[..., :3] * paper[..., 3:] + 127) // WHITE).astype(np.uint8)
