"""What goes wrong with measured slides in practice, each named in a line with the option that mends it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from extract.imports.pitch import MAX_DISAGREEMENT
from extract.imports.placement import (
    COMMON_SCALES,
    GAIN,
    PictureFit,
    Placement,
    TissueFit,
    best_on_tissue,
    compare_pictures,
    fit_to_tissue,
)
from extract.imports.sample import Sample
from extract.slides.image import Image
from extract.slides.pixel_size import PixelSize
from extract.slides.tissue import TissueMask, find_tissue
from hist_cache.errors import SlideError

MIN_LIKENESS = 0.5  # correlation of an image with a small copy of it; right pairs have 0.9 and more
LIKENESS_GAIN = 0.1  # by which a turned copy must be more like the image
MAX_SCALE_ERROR = 0.003  # relative: a third of a spot at the far side of a section of 65 pitches
MIN_ON_TISSUE = 0.5  # share of the spots below which the user is told to look
MOST_OUTSIDE = 0.5  # share of the spots outside of the image with which a slide is refused
LOOK = "look at the overlay"


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, or may be.

    Attributes:
        problem: What it is.
        advice: What mends it.
        refuses: Whether the slide is not imported because of it.
        wanted: The placement that mends it, where it is known.
    """

    problem: str
    advice: str
    refuses: bool
    wanted: Placement | None = None

    def __str__(self) -> str:
        return f"{self.problem}; {self.advice}"


@dataclass(frozen=True)
class PlacedImage:
    """An image, and how the positions of a sample are placed on it.

    Attributes:
        path: The file.
        image: The file, opened.
        own: The pixel size that the file states; None where it states none.
        placement: How the positions are placed.
        um_per_px: The pixel size that is used.
        um_per_px_source: Where it is from.
    """

    path: Path
    image: Image
    own: PixelSize | None
    placement: Placement
    um_per_px: float
    um_per_px_source: str

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, px."""
        return self.image.width, self.image.height


def check_sample(sample: Sample, placed: PlacedImage) -> tuple[list[Finding], TissueFit, TissueMask]:
    """Check that the spots of a sample lie where the image has tissue.

    Args:
        sample: The sample.
        placed: Its image.

    Returns:
        What is wrong, how well the spots fit the tissue, and the tissue.
    """
    overview = placed.image.overview()
    mask = find_tissue(overview, placed.size, placed.um_per_px)
    pitch_px = sample.pitch_um / (placed.um_per_px * placed.placement.scale)
    fit = fit_to_tissue(sample.coords, placed.placement, mask, pitch_px)
    findings = _from_small_image(sample, placed, overview)
    wanted = [finding.wanted for finding in findings if finding.wanted]
    if wanted and fit.is_clearly_better(fit_to_tissue(sample.coords, wanted[0], mask, pitch_px)):
        findings = []  # positions that were changed since the small image was made
    findings = findings or _from_tissue(sample, placed, mask, pitch_px, fit)
    if not findings:
        findings = _outside(sample.coords, placed) or _off_tissue(mask, fit)
    return [*findings, *_pixel_sizes(sample, placed)], fit, mask


def _from_small_image(sample: Sample, placed: PlacedImage, overview: NDArray[np.uint8]) -> list[Finding]:
    """Compare the image with a small copy of what positions were made on, where the source has one."""
    import PIL.Image

    if sample.low_resolution is None:
        return []
    file, factor = sample.low_resolution
    try:
        with PIL.Image.open(file) as picture:
            small = np.asarray(picture.convert("RGB"))
    except (OSError, ValueError) as error:
        raise SlideError(sample.name, file, f"not a readable image ({error})", "copy it again") from error
    fits = compare_pictures(small, factor, overview, placed.size)
    whole = (round(small.shape[1] / factor), round(small.shape[0] / factor))
    if not fits:
        problem = f"{placed.size[0]} x {placed.size[1]} px are not the proportions of the image that the positions were"
        return [Finding(f"{problem} made on ({whole[0]} x {whole[1]} px; cut?)", "give that image, as a whole", True)]
    if fits[0].correlation < MIN_LIKENESS:
        problem = f"does not look like {file.name} (correlation {fits[0].correlation:.2f}; another slide's image?)"
        return [Finding(problem, "give the image that the positions were made on", True)]
    return _differences(fits, placed, file.name)


def _differences(fits: list[PictureFit], placed: PlacedImage, small: str) -> list[Finding]:
    """Say how the image differs from its small copy, which is the first of `fits`."""
    now, best = placed.placement, fits[0]
    same = [fit for fit in fits if (fit.placement.swap_xy, fit.placement.flip) == (now.swap_xy, now.flip)]
    turned = not same or same[0].correlation < best.correlation - LIKENESS_GAIN
    wanted = best.placement if turned else same[0].placement
    rescaled = abs(wanted.scale / now.scale - 1) > MAX_SCALE_ERROR
    if not rescaled:
        wanted = Placement(wanted.swap_xy, now.scale, wanted.flip)
    if turned:
        also = " and of another resolution" if rescaled else ""
        problem = f"turned or mirrored{also} against the positions, by {small}"
        return [Finding(problem, wanted.flags, True, wanted)]
    if rescaled:
        problem = f"of another resolution: {wanted.scale:.4g} px of it are one px of the positions, by {small}"
        return [Finding(problem, wanted.flags, True, wanted)]
    return []


def _from_tissue(
    sample: Sample, placed: PlacedImage, mask: TissueMask, pitch_px: float, fit: TissueFit
) -> list[Finding]:
    """Say which other placement fits the tissue clearly better."""
    if fit.on_tissue + GAIN > 1:
        return []  # none can be clearly better
    now = placed.placement
    scales = [now.scale]
    if sample.um_per_px is not None and placed.own is not None:
        ratio = sample.um_per_px / placed.own.um_per_px
        scales += [ratio] if abs(ratio / now.scale - 1) > MAX_DISAGREEMENT else []
    known = best_on_tissue(sample.coords, scales, mask, pitch_px)
    best = known if known.is_clearly_better(fit) else best_on_tissue(sample.coords, COMMON_SCALES, mask, pitch_px)
    if not best.is_clearly_better(fit) or not (best is known or _is_optimum(sample.coords, best, mask, pitch_px)):
        return []
    what = []
    if best.placement.swap_xy != now.swap_xy:
        what.append("x and y interchanged")
    if best.placement.flip != now.flip:
        what.append("image mirrored")
    if best.placement.scale != now.scale:
        what.append("image of another resolution")
    problem = f"{fit.on_tissue:.0%} of the spots lie on tissue, and {best.on_tissue:.0%} otherwise: {', '.join(what)}?"
    return [Finding(problem, best.placement.flags, True, best.placement)]


def _is_optimum(coords: NDArray[np.float64], guess: TissueFit, mask: TissueMask, pitch_px: float) -> bool:
    """Tell whether a guessed scale fits better than those beside it, so that it is not just the nearest guess."""
    near = [replace(guess.placement, scale=guess.placement.scale * by) for by in (0.9, 1.1)]
    return all(fit_to_tissue(coords, placement, mask, pitch_px).overlap < guess.overlap for placement in near)


def _outside(coords: NDArray[np.float64], placed: PlacedImage) -> list[Finding]:
    centers = placed.placement.apply(coords, placed.size)
    outside = int(((centers < 0) | (centers >= placed.size)).any(axis=1).sum())
    if not outside:
        return []
    problem = f"{outside} of {len(coords)} spots lie outside of the image ({placed.size[0]} x {placed.size[1]} px)"
    if outside > MOST_OUTSIDE * len(coords):
        return [Finding(problem, "of another resolution? --scale is its width by that of the image they are of", True)]
    return [Finding(problem, LOOK, False)]


def _off_tissue(mask: TissueMask, fit: TissueFit) -> list[Finding]:
    if not mask.pixels.any():
        return [Finding("no tissue was found on the image", LOOK, False)]
    if fit.on_tissue >= MIN_ON_TISSUE:
        return []
    return [Finding(f"only {fit.on_tissue:.0%} of the spots lie on the tissue that was found", LOOK, False)]


def _pixel_sizes(sample: Sample, placed: PlacedImage) -> list[Finding]:
    """Say which pixel sizes disagree with the one that is used."""
    stated = []
    if placed.own is not None:
        stated.append((placed.own.um_per_px, f"the image ({placed.own.source})"))
    if sample.um_per_px is not None:
        stated.append((sample.um_per_px / placed.placement.scale, sample.um_per_px_source))
    return [
        Finding(
            f"a pixel has {um:.4g} um by {source}, and {placed.um_per_px:.4g} um by {placed.um_per_px_source}",
            f"the latter is used; --um-per-px {um:.4g} if the first is right",
            False,
        )
        for um, source in stated
        if abs(um / placed.um_per_px - 1) > MAX_DISAGREEMENT
    ]
