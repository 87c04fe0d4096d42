"""The cache in memory and what is derived from it, each computed once for all runs of a grid."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hist_cache.cache import Cache, CachedSlide
from hist_cache.datasets import dataset_named
from hist_cache.errors import InputError
from hist_cache.fingerprint import differences
from hist_cache.panels import choose_panel
from train.data import SpotData, Transform, assemble, read_slides, without_arrays


@dataclass(frozen=True)
class DataKey:
    """What tensors a run trains on; runs of the same key share them."""

    neighbors: int
    panel: tuple[str, ...]
    transform: Transform
    drop_edges: bool


class Workspace:
    """Slides of a cache (and of the dataset to test on), with the neighbourhood sizes asked for."""

    def __init__(self, cache: Cache, sizes: Sequence[int], test_cache: Cache | None = None) -> None:
        self.cache = cache
        self.dataset = cache.dataset
        self.test_dataset = test_cache.dataset if test_cache else None
        self.common = cache.fingerprint().common
        self.slides = read_slides(cache, sizes)
        self.test_slides: dict[str, CachedSlide] = {}
        if test_cache is not None:
            if different := differences(self.common, test_cache.fingerprint().common):
                raise InputError(f"{test_cache.folder} was made otherwise than {cache.folder}: {'; '.join(different)}")
            self.test_slides = read_slides(test_cache, sizes)
        self.patients = patients_of(cache.dataset, self.slides)
        self._panels: dict[Any, list[str]] = {}
        self._latest: tuple[DataKey, SpotData] | None = None

    @property
    def every_slide(self) -> dict[str, CachedSlide]:
        """Those to train on, then those of the test dataset."""
        return self.slides | self.test_slides

    @property
    def pictures(self) -> dict[str, CachedSlide]:
        """All slides, without their large arrays."""
        return without_arrays(self.every_slide)

    def panel(self, genes: str, n: int | None, chosen_on: Sequence[str]) -> list[str]:
        """The gene panel, from the counts of the slides `chosen_on`; of all other slides only gene names are read."""
        key = (genes, n, tuple(sorted(chosen_on)))
        if key not in self._panels:
            tables = {s: (self.slides[s].counts, self.slides[s].genes) for s in chosen_on}
            names = {s: v.genes for s, v in self.every_slide.items()}
            self._panels[key] = choose_panel(genes, n, tables, names)
        return self._panels[key]

    def data(self, key: DataKey, device: torch.device) -> SpotData:
        """The tensors of a key; only the latest are kept."""
        if self._latest is None or self._latest[0] != key:
            data = assemble(self.every_slide, key.neighbors, list(key.panel), device, key.transform, key.drop_edges)
            self._latest = (key, data)
        return self._latest[1]


def digest_of(panel: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(panel).encode()).hexdigest()


def patients_of(dataset: str, slides: dict[str, CachedSlide]) -> dict[str, str]:
    """Slide -> patient, from the dataset's table, else from the slides' metadata; empty where unknown."""
    if known := dataset_named(dataset).patients:
        return {s: known[s] for s in slides if s in known}
    found = {s: str(v.attributes["patient"]) for s, v in slides.items() if "patient" in v.attributes}
    return found if len(found) == len(slides) else {}
