"""Where slides come from: what a phase asks of a slide, whoever keeps its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hist_cache.fingerprint import Fingerprint
from hist_cache.slides import SlideFiles, find_slide, unchanged_slide
from hist_cache.spots import Spots, count_spots, read_spots


class SlideSource(Protocol):
    """Slides by their IDs."""

    @property
    def root(self) -> Path:
        """The folder that is recorded as their origin."""

    def find(self, slide: str) -> SlideFiles:
        """Find the files of a slide and its scale; `SlideError` where one is missing or cannot be right."""

    def unchanged(self, slide: str, earlier: Fingerprint) -> SlideFiles | None:
        """Find a slide by what an earlier cache file was made from, without opening files; None where that cannot be.

        It is for slides of which nothing is to be done: the metadata are empty.
        """

    def count(self, files: SlideFiles) -> int:
        """Return the number of spots of a slide; `SlideError` where it cannot be told."""

    def read(self, files: SlideFiles) -> Spots:
        """Read the spots of a slide, checked in full; `SlideError` where they cannot be used."""


@dataclass(frozen=True)
class HestFolder:
    """Slides in the layout of HEST-1k.

    Attributes:
        root: Folder with `st/`, `wsis/` and `metadata/`.
        any_scale: Whether pixel and spot sizes are accepted that no usual slide has.
    """

    root: Path
    any_scale: bool = False

    def find(self, slide: str) -> SlideFiles:
        """Find the files of a slide, as `find_slide` does."""
        return find_slide(self.root, slide, self.any_scale)

    def unchanged(self, slide: str, earlier: Fingerprint) -> SlideFiles | None:
        """Find a slide whose metadata have not changed, as `unchanged_slide` does."""
        return unchanged_slide(self.root, slide, earlier, self.any_scale)

    def count(self, files: SlideFiles) -> int:
        """Read the number of spots from the header of the slide's h5ad."""
        return count_spots(files)

    def read(self, files: SlideFiles) -> Spots:
        """Read the slide's h5ad, as `read_spots` does."""
        return read_spots(files, self.any_scale)
