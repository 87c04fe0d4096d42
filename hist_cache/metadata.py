"""What the metadata of a slide say, `metadata/ID.json` or a row of HEST's table: sizes in um, and the patient."""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from hist_cache.errors import SlideError
from hist_cache.pooled_squares import pooled_side
from hist_cache.texts import bad_name, read_csv, read_json

log = logging.getLogger(__name__)

# Pitch and spot diameter in um, for slides whose metadata have only the name of the technology.
TECHNOLOGIES = {"Visium": (100.0, 55.0), "Spatial Transcriptomics": (200.0, 100.0)}
MAX_PIXEL_SIZE_ERROR = 0.05  # relative difference between embedded and estimated pixel size that causes no warning
# What a slide of spots on tissue can have, in um. HEST-1k has pixels of 0.14 to 3.2, pitches of 100 to 200 and spots
# of 55 to 150. In its NCBI759-770 pitch and spot diameter are interchanged (110 and 150), and the pixel size may have
# been made from the wrong one of them.
USUAL = {"pixel_size_um_estimated": (0.05, 10.0), "inter_spot_dist": (5.0, 1000.0), "spot_diameter": (5.0, 1000.0)}
HEST_ID = re.compile(r"(INT|MEND|MISC|NCBI|SPA|TENX|ZEN)\d+")  # of slides that --download can fetch
NOT_STATED = ("", "nan", "none", "null")  # values that programs write where there is none
ANY_SCALE = "correct it, or give --any-scale if it is right"
BINS = "pool such bins into spots (hist-import --pseudo-spots 55), or give --any-scale if it is right"
INTERCHANGED = (
    "correct them, and the pixel size if it was made from the wrong one, or give --any-scale if they are right"
)


@dataclass(frozen=True)
class Scale:
    """Sizes on a slide, in um.

    Attributes:
        um_per_px: Pixel size of level 0.
        pitch_um: Distance between the centres of neighbouring spots.
        spot_um: Diameter of a spot.
        pooled: Whether pitch and diameter are the side of the squares that HEST pools into, which its metadata do not
            state, so that the spots themselves must show it.
    """

    um_per_px: float
    pitch_um: float
    spot_um: float
    pooled: bool = False


def read_metadata(root: Path, slide: str) -> tuple[Path, dict[str, Any]]:
    """Read a slide's metadata from `metadata/ID.json` or, without that file, from HEST's table `HEST_v*.csv`.

    Returns:
        The file that has the metadata, and the metadata by name.

    Raises:
        SlideError: There are no metadata, or they cannot be read.
    """
    file = root / "metadata" / f"{slide}.json"
    if file.exists():
        try:
            metadata = read_json(file)
        except ValueError as error:
            raise SlideError(slide, file, str(error), "copy or download it again") from error
        if not isinstance(metadata, dict):
            raise SlideError(slide, file, f"holds {_kind(metadata)}", "metadata are names with values: {...}")
        return file, metadata
    for csv_file in sorted(root.glob("HEST_v*.csv"), reverse=True):
        try:
            rows = _rows_by_id(csv_file, csv_file.stat().st_mtime_ns)
        except ValueError as error:
            raise SlideError(slide, csv_file, str(error), "copy or download it again") from error
        if slide in rows:
            return csv_file, dict(rows[slide])
    raise missing_file(slide, file, "no metadata")


@lru_cache(maxsize=4)
def _rows_by_id(csv_file: Path, mtime_ns: int) -> dict[str, dict[str, Any]]:
    """Read HEST's table once for all its slides, and again when it has changed: the first row of each ID."""
    return {row.get("id", ""): {k: v for k, v in row.items() if v} for row in reversed(read_csv(csv_file)[1])}


def missing_file(slide: str, file: Path, problem: str) -> SlideError:
    """Return the error for a file that is not there, with advice that fits: only HEST's slides can be fetched."""
    fetch = "hist-extract --download fetches missing slides of HEST"
    return SlideError(slide, file, problem, fetch if HEST_ID.fullmatch(slide) else "put it there")


def _kind(value: object) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def read_scale(slide: str, file: Path, metadata: dict[str, Any], any_scale: bool = False) -> Scale:
    """Read pixel size, pitch and spot diameter from a slide's metadata, and check them.

    Args:
        slide: ID of the slide.
        file: The file that has the metadata.
        metadata: All metadata, by name.
        any_scale: Accept sizes outside of `USUAL` too.

    Raises:
        SlideError: A size is missing, is no number above 0 or not a usual one.
    """
    error = partial(SlideError, slide, file)
    names = ("pixel_size_um_estimated", "inter_spot_dist", "spot_diameter")
    um_per_px, pitch, diameter = (_positive(metadata, name, error) for name in names)
    if um_per_px is None:
        raise error("no pixel size", "set pixel_size_um_estimated (um per level-0 pixel) in it")
    side = pooled_side(metadata.get("st_technology"), pitch, diameter)
    if side is not None:
        stated = "no spot size" if pitch is None else f"bins of {pitch:g} um"
        log.warning(f"{slide}: the metadata state {stated}; its spots are taken for HEST's squares of {side:g} um")
        pitch = diameter = side
    usual_pitch, usual_diameter = TECHNOLOGIES.get(str(metadata.get("st_technology")), (None, None))
    pitch, diameter = pitch or usual_pitch, diameter or usual_diameter
    if pitch is None or diameter is None:
        raise error("no spot size", "set spot_diameter and inter_spot_dist (um) in it")
    if not any_scale and (unusual := unusual_size(um_per_px, pitch, diameter)):
        raise error(*unusual)
    embedded = _number(metadata.get("pixel_size_um_embedded"))
    if embedded and abs(embedded / um_per_px - 1) > MAX_PIXEL_SIZE_ERROR:
        log.warning(
            f"{slide}: embedded pixel size {embedded:.4g} um differs from the estimated {um_per_px:.4g}; "
            "using the latter"
        )
    return Scale(um_per_px, pitch, diameter, side is not None)


def unusual_size(um_per_px: float, pitch_um: float, spot_um: float) -> tuple[str, str] | None:
    """Return which size is not one that a slide of spots on tissue can have, and what to do; None where all can be."""
    for name, value in zip(USUAL, (um_per_px, pitch_um, spot_um), strict=True):
        low, high = USUAL[name]
        if not low <= value <= high:
            advice = BINS if name != "pixel_size_um_estimated" and value < low else ANY_SCALE
            return f"{name} is {value:g} um, not between {low:g} and {high:g}", advice
    if spot_um > pitch_um:
        problem = f"spot_diameter {spot_um:g} um is larger than inter_spot_dist {pitch_um:g} um (interchanged?)"
        return problem, INTERCHANGED
    return None


def estimated_pixel_size(slide: str, file: Path, metadata: dict[str, Any]) -> float | None:
    """Return the um per level-0 px that a slide's metadata state; None where they state none.

    Raises:
        SlideError: It is no number above 0.
    """
    return _positive(metadata, "pixel_size_um_estimated", partial(SlideError, slide, file))


def read_patient(slide: str, file: Path, metadata: dict[str, Any]) -> str | None:
    """Return the name of the slide's patient; None where it is not known.

    Raises:
        SlideError: The name has characters that cannot be stored.
    """
    patient = metadata.get("patient")
    if isinstance(patient, int | float) and not isinstance(patient, bool) and math.isfinite(patient):
        patient = str(patient)
    if not isinstance(patient, str) or patient.strip().lower() in NOT_STATED:
        return None
    if problem := bad_name([patient]):
        raise SlideError(slide, file, f"patient is {problem}")
    return patient


def _positive(metadata: dict[str, Any], key: str, error: partial[SlideError]) -> float | None:
    """Return a number above 0 from the metadata, or None if it is unknown."""
    stated = metadata.get(key)
    if stated is None or str(stated).strip().lower() in NOT_STATED:
        return None
    number = _number(stated)
    if number is None or number <= 0:
        shown = str(stated) if isinstance(stated, float) else ascii(stated)
        raise error(f"{key} is {shown[:40]}", "it must be a number above 0, in um")
    return number


def _number(value: object) -> float | None:
    """Return a finite number, also one written as a text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str) or "_" in str(value)[:40]:
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
