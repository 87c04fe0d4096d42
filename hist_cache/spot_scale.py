"""How large spots are and how far apart: what a model has learnt from, and what other slides are then cut into."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from hist_cache.cached_slide import CachedSlide
from hist_cache.lattice import Kind

ENTRIES = ("pitch_um", "spot_um", "lattice")


@dataclass(frozen=True)
class SpotScale:
    """The spots of a slide.

    Attributes:
        pitch_um: Distance between the centres of neighbouring spots.
        spot_um: Diameter of a spot.
        lattice: The lattice that they follow.
    """

    pitch_um: float
    spot_um: float
    lattice: Kind

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SpotScale:
        """Read back what `dataclasses.asdict` gave, or the attributes of a cached slide.

        Raises:
            KeyError: An entry is missing.
            ValueError: A length or the lattice is none.
        """
        pitch, spot, lattice = (values[name] for name in ENTRIES)
        if not (float(pitch) > 0 and float(spot) > 0 and lattice in get_args(Kind)):
            raise ValueError(f"no scale of spots: {pitch!r}, {spot!r}, {lattice!r}")
        return cls(float(pitch), float(spot), lattice)


def usual_scale(slides: Iterable[CachedSlide]) -> SpotScale | None:
    """The scale that most of the slides have, the first of those that are equally frequent; None where none states it.

    Pitch and spot diameter are rounded to 0.01 um, because some programs compute them.
    """
    scales = []
    for slide in slides:
        if all(name in slide.attributes for name in ENTRIES):
            scale = SpotScale.from_dict(slide.attributes)
            scales.append(SpotScale(round(scale.pitch_um, 2), round(scale.spot_um, 2), scale.lattice))
    return Counter(scales).most_common(1)[0][0] if scales else None
