"""What makes a cache file what it is: the encoder, its weights, how crops are cut, and the slide's own files."""

from __future__ import annotations

from typing import Any

from extract.encoders.encoder import Encoder
from extract.slides.crops import niche_side_um
from extract.slides.readers import Image
from hist_cache.fingerprint import Fingerprint, file_digest, file_stamp, short_hash
from hist_cache.lattice import RINGS
from hist_cache.slides import SlideFiles


def common_identity(encoder: Encoder, precision: str, min_spot_um: float) -> dict[str, Any]:
    """The part of the fingerprint that all slides share; its hash names the cache folder."""
    return {
        "encoder": encoder.name,
        "weights": encoder.digest,
        "pretrained": encoder.pretrained,
        "lora": encoder.lora,
        "mean": list(encoder.mean),
        "std": list(encoder.std),
        "input_size": encoder.input_size,
        "resize": f"antialiased {encoder.interpolation}, uint8",
        "precision": precision,
        "spot_crop_um": "spot diameter" if not min_spot_um else f"spot diameter, at least {min_spot_um:g}",
        "niche_crop_um": "2 (m pitch + spot radius)",
    }


def folder_name(encoder: Encoder, common: dict[str, Any]) -> str:
    return f"{encoder.slug}-{short_hash(common)}"


def crop_sides_um(files: SlideFiles, sizes: tuple[int, ...], min_spot_um: float) -> dict[str, float]:
    """Crop name -> side in um: "spot" and each neighbourhood size."""
    sides = {"spot": max(files.spot_um, min_spot_um)}
    return sides | {str(k): niche_side_um(RINGS[k], files.pitch_um, files.spot_um) for k in sizes}


def slide_identity(
    files: SlideFiles, image: Image, known: Fingerprint | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The slide's own part of the fingerprint, and the file stamps that spare hashing it again.

    `known`: the fingerprint of an earlier cache file; its digests hold where size and time of a file are the same.
    """
    digests, stamps = {}, {}
    for key, path in (("image", files.image), ("table", files.table)):
        stamps[key] = file_stamp(path)
        if known is not None and known.provenance.get("stamps", {}).get(key) == stamps[key]:
            digests[key] = known.slide[key]
        else:
            digests[key] = file_digest(path)
    identity = {
        **digests,
        "um_per_px": files.um_per_px,
        "pitch_um": files.pitch_um,
        "spot_um": files.spot_um,
        "reader": image.reader,
    }
    return identity, stamps
