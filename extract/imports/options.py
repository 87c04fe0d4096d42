"""The options of hist-import. Nothing here imports a heavy library, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hist_cache.options import CommandOptions, option, positional
from hist_cache.values import Interval

UM = Interval(0.05, 10)
SPOT_SIZES_UM = Interval(5, 1000)
KIND_OPTIONS = ("positions", "pitch", "spot", "bin", "alignment")  # of some kinds of sources
MEASURED_UM = Interval(1, 1000)  # of bins that are pooled, too


@dataclass(frozen=True)
class ImportOptions(CommandOptions):
    """What is imported, where to, and what mends positions that do not fit their image."""

    source: tuple[str, ...] = positional("folders or files, a slide each: see docs/data-layout.md", "SOURCE")
    image: str | None = option(
        None, "the full-resolution image, or for several sources a folder of images with the slides' names", "F",
        group="What",
    )  # fmt: skip
    id: str | None = option(None, "ID of the slide (default: the name of its folder or file)", "ID")
    name: str | None = option(None, "also make the slides a dataset, for hist-extract --dataset NAME", "DATASET")
    data_root: str | None = option(None, "where to write st/, wsis/ and metadata/ (default: $HIST_DATA or ./data)", "D")
    replace: bool = option(False, "replace a slide of the same ID that came from another source")
    positions: str | None = option(
        None, "spots' positions where they are not beside the counts (legacy Spatial Transcriptomics)", "F"
    )
    pitch: float | None = option(
        None, "distance between spots, um, of an h5ad whose spots are not Visium's", "UM", within=MEASURED_UM
    )
    spot: float | None = option(None, "diameter of a spot, um, of such an h5ad", "UM", within=MEASURED_UM)
    bin: Literal["8", "16"] = option("8", "bins of Visium HD that are read, um")
    pseudo_spots: float | None = option(
        None, "pool bins, cells or transcripts into spots of this diameter, um (Xenium: 55)", "UM",
        within=SPOT_SIZES_UM,
    )  # fmt: skip
    alignment: str | None = option(
        None, "3 x 3 matrix (CSV) of Xenium Explorer that maps px of the H&E image to px of the morphology image", "F"
    )
    um_per_px: float | None = option(
        None, "pixel size of the image (default: by the spots' pitch, else as the image says)", "UM", within=UM,
        group="Where spots do not fit the image",
    )  # fmt: skip
    scale: float = option(
        1.0, "px of the image per px of the positions, for an image of another resolution", "F",
        within=Interval(0, 1000, above=True),
    )  # fmt: skip
    swap_xy: bool = option(False, "exchange x and y of the positions, before --flip")
    flip: Literal["x", "y", "xy"] | None = option(None, "mirror the positions along x, y or both within the image")
    any_place: bool = option(False, "import although spots do not seem to lie on the tissue of the image")
    any_scale: bool = option(False, "accept pixels, pitches and spots of any size, as hist-extract --any-scale")
    dry_run: bool = option(False, "read and check everything, write nothing", group="Other")
    debug: bool = option(False, "show a traceback for every error")

    @property
    def um_per_source_px(self) -> float | None:
        """The size of a px of the positions by `--um-per-px`, which is that of the image, and `--scale`."""
        return None if self.um_per_px is None else self.um_per_px * self.scale
