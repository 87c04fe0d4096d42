"""Slides without counts as a source of slides: an image, and spots placed on its tissue or read from a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.sparse import csr_matrix

from extract.slides.focus import MIN_FOCUS, measure_focus
from extract.slides.given_spots import read_coords
from extract.slides.masks import read_mask
from extract.slides.pixel_size import read_pixel_size
from extract.slides.readers import open_image
from extract.slides.tissue import TissueMask, find_tissue
from extract.slides.virtual_spots import VirtualSpots, place_spots
from hist_cache.errors import SlideError
from hist_cache.fingerprint import Fingerprint, file_digest, file_stamp, short_hash
from hist_cache.metadata import USUAL
from hist_cache.slides import SlideFiles
from hist_cache.spot_scale import SpotScale
from hist_cache.spots import Spots

TISSUE_METHOD = 1  # counted up when `find_tissue` or `place_spots` give other spots


@dataclass(frozen=True)
class SpotRule:
    """How slides get their spots and crops, the same for all of them.

    Attributes:
        trained: The spots that the model has learnt from; crops are as large as theirs.
        pitch_um: Distance between the spots that are placed.
        lattice: What they follow.
        neighbors: Neighbourhood size of the niches.
        um_per_px: Pixel size of all slides; None to read each one's own.
        any_focus: Whether blurred slides are used too.
    """

    trained: SpotScale
    pitch_um: float
    lattice: Literal["hex", "square"]
    neighbors: int
    um_per_px: float | None = None
    any_focus: bool = False


@dataclass(frozen=True)
class SlideImage:
    """An image that is to be predicted.

    Attributes:
        name: Name of the slide.
        image: Its file.
        mask: Where its tissue is, by the user; None to find it.
        positions: A file with the spots' positions; None to place them.
        scale: Of these spots; None for that of the spots that the model has learnt from.
    """

    name: str
    image: Path
    mask: Path | None = None
    positions: Path | None = None
    scale: SpotScale | None = None


@dataclass(frozen=True)
class VirtualFiles(SlideFiles):
    """The files of a slide without counts; `table` is where its spots come from.

    Attributes:
        spots: How its spots came about, as the fingerprint of its cache file states it.
        lattice_pitch_um: Distance between them.
    """

    spots: dict[str, Any] = field(default_factory=dict)
    lattice_pitch_um: float = 0.0

    @property
    def digested(self) -> dict[str, Path]:
        """The image alone: digests of the other files are in `spots`."""
        return {"image": self.image}

    @property
    def facts(self) -> dict[str, Any]:
        """How the spots came about."""
        return {"spots": self.spots}


class VirtualSlides:
    """Images as a source of slides.

    Args:
        root: What is recorded as their origin.
        images: The slides.
        rule: How they get spots and crops.

    Attributes:
        ids: Name in the cache -> the slide. It is the slide's name with 8 hex digits of the image's size and of how the
            spots come about: slides of one name do not take each other's place.
        pixel_sizes: Name in the cache -> where the pixel size of slides that were opened comes from.
        focus: Name in the cache -> `measure_focus` of slides that were read.
    """

    def __init__(self, root: Path, images: Sequence[SlideImage], rule: SpotRule) -> None:
        self.root, self.rule = root, rule
        self.ids = {self._id(image): image for image in images}
        self.pixel_sizes: dict[str, str] = {}
        self.focus: dict[str, float] = {}

    def _id(self, image: SlideImage) -> str:
        size = file_stamp(image.image)[0] if image.image.exists() else 0
        return f"{image.name}-{short_hash({'bytes': size, 'um_per_px': self.rule.um_per_px} | self._spots(image))}"

    def _spots(self, image: SlideImage) -> dict[str, Any]:
        """How a slide's spots come about."""
        scale = image.scale or self.rule.trained
        common = {"neighbors": self.rule.neighbors, "crop_pitch_um": scale.pitch_um, "spot_um": scale.spot_um}
        if image.positions is not None:
            return common | {"positions": file_digest(image.positions)}
        tissue = TISSUE_METHOD if image.mask is None else file_digest(image.mask)
        return common | {"pitch_um": self.rule.pitch_um, "lattice": self.rule.lattice, "tissue": tissue}

    def unchanged(self, slide: str, earlier: Fingerprint) -> None:
        """Find nothing: the spots must be placed to be compared."""

    def find(self, slide: str) -> VirtualFiles:
        """Find a slide by its name in the cache, and its pixel size.

        Raises:
            SlideError: The pixel size is not known, or none that a slide can have.
        """
        image = self.ids[slide]
        scale = image.scale or self.rule.trained
        um_per_px = self._um_per_px(slide, image)
        return VirtualFiles(
            *(slide, image.image, image.positions or image.image, {}, um_per_px, scale.pitch_um, scale.spot_um, None),
            spots=self._spots(image),
            lattice_pitch_um=scale.pitch_um if image.positions else self.rule.pitch_um,
        )

    def _um_per_px(self, slide: str, image: SlideImage) -> float:
        if self.rule.um_per_px is not None:
            self.pixel_sizes[slide] = "--um-per-px"
            return self.rule.um_per_px
        stated = read_pixel_size(image.name, image.image)
        low, high = USUAL["pixel_size_um_estimated"]
        if stated is None or not low <= stated.um_per_px <= high:
            problem = "no pixel size" if stated is None else f"{stated.source}: {stated.um_per_px:.4g} um a pixel"
            raise SlideError(image.name, image.image, problem, "give --um-per-px, the um of a level-0 pixel")
        self.pixel_sizes[slide] = stated.source
        return stated.um_per_px

    def count(self, files: SlideFiles) -> int:
        """Nobody knows before the tissue is found, which takes a second a slide."""
        return 0

    def read(self, files: SlideFiles) -> Spots:
        """Place the spots of a slide on its tissue, or read them.

        Raises:
            SlideError: It has no tissue, or is blurred.
        """
        assert isinstance(files, VirtualFiles)
        image = self.ids[files.id]
        opened = open_image(image.name, image.image)
        try:
            size = (opened.width, opened.height)
            if image.mask is not None:
                mask = read_mask(image.name, image.mask, size, files.um_per_px)
            else:
                mask = find_tissue(opened.overview(), size, files.um_per_px)
            spots = self._find_spots(image, files, mask)
            if mask.pixels.any():  # positions that were given may lie where no stain is seen
                self.focus[files.id] = measure_focus(opened, mask)
        finally:
            opened.close()
        self.check_focus(files.id, self.focus.get(files.id))
        no_counts = csr_matrix((len(spots), 0), dtype=np.int32)
        return Spots(spots.names, spots.coords, spots.array, no_counts, [])

    def _find_spots(self, image: SlideImage, files: VirtualFiles, mask: TissueMask) -> VirtualSpots:
        if image.positions is not None:
            return read_coords(image.name, image.positions, (mask.width, mask.height))
        spots = place_spots(mask, self.rule.pitch_um, files.spot_um, self.rule.lattice)
        if not len(spots):
            where = image.mask or image.image
            advice = "does the mask fit this slide?" if image.mask else "leave it out, or draw its tissue (--mask)"
            raise SlideError(image.name, where, "no tissue found", advice)
        return spots

    def check_focus(self, slide: str, focus: float | None) -> None:
        """`SlideError` for a slide that is blurred, unless such slides are used too.

        Args:
            slide: Its name in the cache.
            focus: `measure_focus` of it; None where it is not known.
        """
        if self.rule.any_focus or focus is None or focus >= MIN_FOCUS:
            return
        image = self.ids[slide]
        problem = f"blurred (focus {focus:.2f}, sharp above {MIN_FOCUS})"
        raise SlideError(image.name, image.image, problem, "scan it again, or give --any-focus")
