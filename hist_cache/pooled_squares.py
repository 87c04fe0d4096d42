"""Squares that HEST-1k pooled out of transcripts (Xenium) and bins (Visium HD), whose sizes its metadata do not state.

For Xenium slides the metadata have no spot sizes, for Visium HD slides the 2 um of the bins before pooling. The spots
in `st/ID.h5ad` are squares without gaps between them. A square counts as a spot as wide as its side.
"""

from __future__ import annotations

SQUARES = {"Xenium": 100.0, "Visium HD": 128.0}  # um; technology -> side of the squares
SMALLEST_BIN_UM = 2.0  # of Visium HD
MAX_SIDE_ERROR = 0.05  # relative difference between the squares' side and how far apart the spots lie


def pooled_side(technology: object, pitch_um: float | None, spot_um: float | None) -> float | None:
    """Return the side of a slide's squares in um; None where the metadata state the sizes of spots themselves.

    Args:
        technology: `st_technology` of the metadata.
        pitch_um: The distance between spots that the metadata state; None where they state none.
        spot_um: Their diameter, likewise.
    """
    side = SQUARES.get(str(technology))
    lacking = pitch_um is None and spot_um is None
    of_bins = technology == "Visium HD" and pitch_um == spot_um == SMALLEST_BIN_UM
    return side if lacking or of_bins else None


def pooling_problem(gap_um: float, side_um: float, um_per_px: float) -> tuple[str, str] | None:
    """Compare how far apart spots lie with the side of the squares that they should be.

    Args:
        gap_um: Typical distance from a spot to the nearest other one.
        side_um: Side of the squares.
        um_per_px: The pixel size that the distance was computed with.

    Returns:
        What is wrong and what to do; None where they agree.
    """
    if abs(gap_um / side_um - 1) <= MAX_SIDE_ERROR:
        return None
    problem = f"spots lie {gap_um:.4g} um apart, and no squares of {side_um:g} um, into which HEST pools"
    if gap_um < side_um / 5:
        return problem, ""
    return problem, (
        f"set pixel_size_um_estimated to {um_per_px * side_um / gap_um:.4g} if they are, "
        "else inter_spot_dist and spot_diameter to what they are"
    )
