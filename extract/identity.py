"""What identifies a cache file: the encoder and its weights, how crops are cut, and the slide's own files."""

from __future__ import annotations

from typing import Any

from extract.encoders.encoder import Encoder
from extract.slides.crops import niche_side_um
from extract.slides.image import Image
from hist_cache.fingerprint import (
    METADATA,
    CropRule,
    Fingerprint,
    file_digest,
    file_stamp,
    identity_hash,
    versions,
)
from hist_cache.lattice import RINGS
from hist_cache.slides import SlideFiles

READER_LIBRARIES = ("hist-cache", "tifffile", "imagecodecs", "openslide-python")  # what decides who reads an image
READER_RULES = 1  # to be raised with every change in which reader opens an image, or by which rule


def common_identity(encoder: Encoder, precision: str, min_spot_um: float) -> dict[str, Any]:
    """Return the part of the fingerprint that all slides of a cache share; its hash names the cache folder.

    Args:
        encoder: The encoder that makes the embeddings.
        precision: Precision that it runs in, `bf16` or `fp32`.
        min_spot_um: Spot crops are at least this wide, um; 0 for the spot's diameter.
    """
    slides = {} if encoder.adapter_slides is None else {"adapter": encoder.adapter_slides.as_dict()}
    own = {} if encoder.entry is None else {"entry": encoder.entry}
    return {
        "encoder": encoder.name,
        **own,
        "weights": encoder.digest,
        "pretrained": encoder.pretrained,
        "lora": encoder.lora,
        **slides,
        "mean": list(encoder.mean),
        "std": list(encoder.std),
        "input_size": encoder.input_size,
        "resize": f"antialiased {encoder.interpolation}, uint8",
        "precision": precision,
        "crop_rule": CropRule(min_spot_um).as_dict(),
    }


def folder_name(encoder: Encoder, common: dict[str, Any]) -> str:
    """Return the name of a cache folder: `uni-1a2b3c4d`."""
    return f"{encoder.slug}-{identity_hash(common)}"


def crop_sides_um(files: SlideFiles, sizes: tuple[int, ...], min_spot_um: float) -> dict[str, float]:
    """Return the sides of a slide's crops, um.

    Args:
        files: The slide.
        sizes: Neighbourhood sizes: any of 6, 18, 36.
        min_spot_um: Spot crops are at least this wide, um.

    Returns:
        Name of the crops -> side: `spot` and each neighbourhood size.
    """
    sides = {"spot": max(files.spot_um, min_spot_um)}
    return sides | {str(k): niche_side_um(RINGS[k], files.pitch_um, files.spot_um) for k in sizes}


def unchanged_identity(files: SlideFiles, earlier: Fingerprint) -> dict[str, Any] | None:
    """Return the part of the fingerprint that is the slide's own, where that can be told without opening its image.

    It can where the same versions of the readers have seen these files: then the same reader would open them again.

    Args:
        files: The slide.
        earlier: The fingerprint of an earlier cache file of the slide.

    Returns:
        The identity; None where a file has another size or time than it had, or a reader another version.
    """
    stated, now = earlier.provenance.get("versions"), versions()
    if not isinstance(stated, dict) or any(stated.get(name) != now.get(name) for name in READER_LIBRARIES):
        return None
    if earlier.provenance.get("reader_rules") != READER_RULES:
        return None
    if any(earlier.stamps.get(key) != list(file_stamp(path)) for key, path in files.digested.items()):
        return None
    if not {*files.digested, "reader"} <= set(earlier.slide):
        return None
    digests = {key: earlier.slide[key] for key in files.digested}
    return {**digests, **_stated_sizes(files), "reader": earlier.slide["reader"]}


def _stated_sizes(files: SlideFiles) -> dict[str, Any]:
    sizes = {"um_per_px": files.um_per_px, "pitch_um": files.pitch_um, "spot_um": files.spot_um}
    return {**files.facts, **sizes}


def slide_identity(
    files: SlideFiles, image: Image, earlier: Fingerprint | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the part of the fingerprint that is the slide's own.

    Args:
        files: The slide.
        image: Its image, opened.
        earlier: The fingerprint of an earlier cache file of the slide. Its digests are used again for files whose size
            and modification time are still the same.

    Returns:
        The identity, and the size and time of each file, which are recorded so that it need not be read again.
    """
    digests = {}
    stamps = {} if files.metadata_stamp is None else {METADATA: list(files.metadata_stamp)}
    for key, path in files.digested.items():
        stamps[key] = list(file_stamp(path))
        if earlier is not None and key in earlier.slide and earlier.stamps.get(key) == stamps[key]:
            digests[key] = earlier.slide[key]
        else:
            digests[key] = file_digest(path)
    return {**digests, **_stated_sizes(files), "reader": image.reader_name}, stamps
