"""A measured slide as a reader found it: what all readers give, and all that comes after them needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from extract.imports.options import ImportOptions

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


@dataclass(frozen=True)
class Sample:
    """A measured slide.

    Attributes:
        name: ID proposed for the slide, from the name of its folder or file.
        counts: (N, G) raw counts.
        barcodes: (N,) names of the spots.
        genes: (G,) gene symbols; they may repeat.
        gene_ids: (G,) Ensembl ids; None where they are not known.
        coords: (N, 2) spot centres, x then y, in px of the full-resolution image.
        array: (N, 2) array row and column; -1 where they are not known.
        technology: As HEST's `st_technology`: Visium, Visium HD, Xenium, Spatial Transcriptomics.
        pitch_um: Distance between the centres of neighbouring spots.
        spot_um: Diameter of a spot.
        um_per_px: Size of a px of `coords` by the source's own files; None where they do not say.
        um_per_px_source: What says so, for metadata and messages: `the pitch of 100 um`.
        image: The full-resolution image, where the source has or names one.
        low_resolution: A small image in the source, with px of it per px of `coords`. `--image` is compared with it.
        patient: Name of the patient, where the source has it.
        notes: What the reader changed or left out, each a line for the user.
    """

    name: str
    counts: csr_matrix
    barcodes: list[str]
    genes: list[str]
    gene_ids: list[str] | None
    coords: NDArray[np.float64]
    array: NDArray[np.int32]
    technology: str
    pitch_um: float
    spot_um: float
    um_per_px: float | None
    um_per_px_source: str
    image: Path | None
    low_resolution: tuple[Path, float] | None = None
    patient: str | None = None
    notes: tuple[str, ...] = ()


class SampleReader(Protocol):
    """What reads one kind of source.

    Attributes:
        name: The kind, for messages: `Space Ranger`.
        expected: What such a source is, for messages: `outs/ with spatial/ in it`.
        uses: Those of `KIND_OPTIONS` that it uses.
    """

    name: str
    expected: str
    uses: tuple[str, ...]

    def recognises(self, source: Path) -> bool:
        """Tell at once, by names of files alone, whether a source is of this kind."""

    def read(self, source: Path, options: ImportOptions) -> Sample:
        """Read a source.

        Raises:
            InputError: Options are missing or contradict the source.
            SlideError: A file is missing or cannot be used.
        """


def sample_name(source: Path) -> str:
    """Propose an ID for a slide: the name of its file or folder, or of the folder above one that is called `outs`."""
    place = source.absolute()
    if place.name == "outs":
        place = place.parent
    name = place.name
    for ending in (".gz", ".h5ad", ".zarr", ".tsv", ".csv", ".txt"):
        name = name.removesuffix(ending)
    return name
