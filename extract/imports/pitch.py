"""How large a pixel is by how far apart the spots lie: the most reliable thing that a table of spots says of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from extract.imports.options import ImportOptions
from hist_cache.lattice import Kind, find_lattice

VISIUM_PITCH_UM, VISIUM_SPOT_UM = 100.0, 55.0
# Space Ranger states the diameter in px of a "theoretical 65 um spot"; some programs write that of the 55 um one.
STATED_DIAMETERS_UM = (65.0, 55.0)
MAX_DISAGREEMENT = 0.05  # relative, between two sizes of a pixel that are the same
MIN_LATTICE_SPOTS = 4  # of a lattice


@dataclass(frozen=True)
class MeasuredPitch:
    """The lattice that spots follow.

    Attributes:
        px: Distance between the centres of neighbouring spots.
        kind: `hex` or `square`.
        by_array: Whether array rows and columns fit the positions, so that they name the sites of that lattice.
    """

    px: float
    kind: Kind
    by_array: bool

    @property
    def is_visium(self) -> bool:
        """Whether it is the lattice of Visium's array."""
        return self.kind == "hex" and self.by_array


@dataclass(frozen=True)
class DerivedScale:
    """The size of a pixel, and where it is from.

    Attributes:
        um_per_px: Micrometres per px of the positions.
        source: What says so.
        notes: Lines about what says otherwise.
    """

    um_per_px: float
    source: str
    notes: tuple[str, ...] = ()


class SpotSizes(TypedDict):
    """What a `Sample` states of its spots' sizes, and of the size of a px by these."""

    technology: str
    pitch_um: float
    spot_um: float
    um_per_px: float | None
    um_per_px_source: str


def sizes_by_pitch(technology: str, pitch_um: float, spot_um: float, measured: MeasuredPitch | None) -> SpotSizes:
    """Return sizes with the pixel size by which spots are `pitch_um` apart; None where they follow no lattice."""
    return SpotSizes(
        technology=technology,
        pitch_um=pitch_um,
        spot_um=spot_um,
        um_per_px=None if measured is None else pitch_um / measured.px,
        um_per_px_source="" if measured is None else f"the pitch of {pitch_um:g} um",
    )


def given_sizes(options: ImportOptions, measured: MeasuredPitch | None) -> SpotSizes | None:
    """Return the sizes that `--pitch` and `--spot` give; None where one is missing."""
    if options.pitch is None or options.spot is None:
        return None
    return sizes_by_pitch("unknown", options.pitch, options.spot, measured)


def measure_pitch(coords: NDArray[np.float64], array: NDArray[np.int32]) -> MeasuredPitch | None:
    """Measure the pitch of spots by a fit of their lattice to all of them; None where they follow none.

    Args:
        coords: (N, 2) spot centres, px.
        array: (N, 2) array row and column; -1 where they are not known.
    """
    from scipy.spatial import cKDTree

    if len(coords) < MIN_LATTICE_SPOTS:
        return None
    nearest = float(np.median(cKDTree(coords).query(coords, k=2)[0][:, 1]))
    lattice = find_lattice(coords, array, nearest) if nearest > 0 else None
    if lattice is None or lattice.kind == "none":
        return None
    design = np.column_stack([lattice.sites, np.ones(len(coords))])
    vectors = np.linalg.lstsq(design, coords, rcond=None)[0][:2]
    return MeasuredPitch(float(np.sqrt((vectors**2).sum(1).mean())), lattice.kind, lattice.source == "array")


def visium_scale(pitch: MeasuredPitch | None, diameter_px: float | None) -> DerivedScale | None:
    """Return the pixel size of a Visium slide, by its pitch or else by the diameter that Space Ranger states.

    Args:
        pitch: The measured lattice; None where there is none.
        diameter_px: `spot_diameter_fullres`; None where it is not stated.
    """
    if pitch is None:
        if diameter_px is None:
            return None
        return DerivedScale(STATED_DIAMETERS_UM[0] / diameter_px, "spot_diameter_fullres (65 um)")
    um_per_px = VISIUM_PITCH_UM / pitch.px
    if diameter_px is None:
        return DerivedScale(um_per_px, "the pitch of 100 um")
    stated = [diameter_um / diameter_px for diameter_um in STATED_DIAMETERS_UM]
    for diameter_um, um in zip(STATED_DIAMETERS_UM, stated, strict=True):
        if abs(um / um_per_px - 1) <= MAX_DISAGREEMENT:
            return DerivedScale(um_per_px, f"the pitch of 100 um, and spot_diameter_fullres as {diameter_um:g} um")
    note = (
        f"by spot_diameter_fullres a pixel has {stated[0]:.4g} um, by the spots' pitch of 100 um {um_per_px:.4g} um; "
        "the pitch is used, --um-per-px sets another"
    )
    return DerivedScale(um_per_px, "the pitch of 100 um", (note,))
