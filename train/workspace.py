"""What all runs of a grid or a study share: the slides of a cache without their large arrays, and the last tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hist_cache.cache import Cache
from hist_cache.cached_slide import COUNT_ARRAYS, CachedSlide
from hist_cache.datasets import dataset_named
from hist_cache.errors import InputError
from hist_cache.fingerprint import differences
from hist_cache.large_arrays import read_large_arrays
from hist_cache.panel_files import keep_panel, panel_source, read_kept_panel
from hist_cache.panels import choose_panel
from hist_cache.splits import SPLIT_PARTS, Split
from hist_cache.threads import in_threads
from train.assembly import assemble, check_widths, read_slides, without_arrays
from train.data import SpotData, TensorCache
from train.expression import NicheProfile, Transform
from train.parts import BandCut, SlidePart, cut_slides
from train.twins import find_twins


@dataclass(frozen=True)
class DataKey:
    """What tensors a run trains on; runs of the same key share them."""

    neighbors: int
    panel: tuple[str, ...]
    transform: Transform
    drop_edges: bool
    niche_profile: NicheProfile = "log_of_mean"
    n_rings: int = 0  # rings around each spot whose spots are listed
    tested_band: int | None = None  # of each slide, where slides are cut; None where they are whole

    @property
    def cut(self) -> BandCut | None:
        """How slides are cut; None where they are whole."""
        return None if self.tested_band is None else BandCut(self.neighbors, self.tested_band)


class Workspace:
    """Slides of a cache, and of the dataset to test on, with the neighbourhood sizes that are needed.

    Embeddings and counts are not kept: each panel and each key's tensors are made of what is read from the files again.

    Args:
        cache: To train on.
        sizes: Neighbourhood sizes.
        test_cache: To test on, if that is another dataset.
        tensors_kept: How many keys' tensors are kept at once.

    Raises:
        InputError: A size is missing, or the two caches were made differently.
    """

    def __init__(
        self, cache: Cache, sizes: Sequence[int], test_cache: Cache | None = None, tensors_kept: int = 1
    ) -> None:
        self.cache, self.test_cache = cache, test_cache
        self.sizes = list(sizes)
        self.dataset = cache.dataset
        self.test_dataset = test_cache.dataset if test_cache else None
        self.common = cache.fingerprint().common
        self.slides = read_slides(cache, sizes)
        self.test_slides: dict[str, CachedSlide] = {}
        if test_cache is not None:
            if different := differences(self.common, test_cache.fingerprint().common):
                raise InputError(f"{test_cache.folder} was made otherwise than {cache.folder}: {'; '.join(different)}")
            self.test_slides = read_slides(test_cache, sizes)
            width = next(iter(self.slides.values())).embeddings.shape[1]
            check_widths(self.test_slides, test_cache, width)
        self.patients = patients_of(cache.dataset, self.slides)
        self.twins = find_twins(self.all_slides)
        self._checked = False
        self._panels: dict[Any, list[str]] = {}
        self._parts: dict[BandCut, dict[str, SlidePart]] = {}
        self._chosen: list[tuple[dict[str, Any], list[str]]] = []  # panels that no file of the cache had
        self.keep_tensors(tensors_kept)

    def check(self) -> None:
        """Read all that tensors are made of, once, and keep nothing; raises the error of the first damaged file."""
        if self._checked:
            return
        for _ in in_threads(lambda slide: len(read_large_arrays(slide, self.sizes)), self.all_slides.values()):
            pass
        self._checked = True

    def keep_tensors(self, count: int) -> None:
        """Drop all tensors, and keep those of `count` keys from here on."""
        self._tensors_kept = count
        self.drop_tensors()

    def drop_tensors(self) -> None:
        """Drop all tensors; those that are asked for again are made again."""
        self._tensors: TensorCache[SpotData] = TensorCache(self._tensors_kept)

    @property
    def all_slides(self) -> dict[str, CachedSlide]:
        """Those to train on, then those of the test dataset."""
        return self.slides | self.test_slides

    def cache_of(self, slide: str) -> Cache:
        """The cache that a slide was read from."""
        return self.test_cache if self.test_cache is not None and slide in self.test_slides else self.cache

    @property
    def pictures(self) -> dict[str, CachedSlide]:
        """All slides with what tables and maps need of them."""
        return without_arrays(self.all_slides)

    def parts(self, cut: BandCut) -> dict[str, SlidePart]:
        """The parts of all slides, by name; `InputError` where a slide cannot be cut, or two are the same one."""
        if self.twins:
            one, other = self.twins[0]
            raise InputError(
                f"--split within: {one} and {other} are the same slide under two names, so that the train spots of one "
                "are test spots of the other; delete the cache file of one"
            )
        if cut not in self._parts:
            self._parts[cut] = cut_slides(self.slides, cut)
        return self._parts[cut]

    def check_split(self, split: Split) -> None:
        """`InputError` for a split with the same slide in two parts, once under each of two names."""
        part_of = {slide: part for part in SPLIT_PARTS for slide in getattr(split, part)}
        for one, other in self.twins:
            if one in part_of and other in part_of and part_of[one] != part_of[other]:
                raise InputError(
                    f"split {split.name}: {one} in {part_of[one]} and {other} in {part_of[other]} are the same slide "
                    "under two names; delete the cache file of one, or give a file of splits with both in one part"
                )

    def panel(self, genes: str, n: int | None, slides: Sequence[str], cut: BandCut | None = None) -> list[str]:
        """The gene panel.

        Args:
            genes: Its kind, or its file.
            n: Its size; None is the kind's own.
            slides: Whose counts choose it; of all other slides only the names of genes are read.
            cut: Where `slides` are names of parts, how they were cut. Their panel is not kept in the cache.
        """
        key = (genes, n, tuple(sorted(slides)), cut)
        if key not in self._panels:
            names = {s: v.genes for s, v in self.all_slides.items()}
            parts: dict[str, SlidePart] = self.parts(cut) if cut else {}
            chosen_on = {s: parts.get(s) or SlidePart.all_of(s, self.slides[s]) for s in slides}
            wholes = {s: part.slide for s, part in chosen_on.items()}
            source = None if cut else panel_source(genes, n, wholes, self.all_slides)
            panel = read_kept_panel(self.cache.folder, source, names.values()) if source else None
            if panel is None:
                tables = {s: (part.counts, part.slide.genes) for s, part in chosen_on.items()}
                panel = choose_panel(genes, n, tables, names)
                self._chosen += [(source, panel)] if source else []
            self._panels[key] = panel
        return self._panels[key]

    def keep_panels(self) -> None:
        """Write the panels that were chosen into the cache, for the next command."""
        while self._chosen:
            keep_panel(self.cache.folder, *self._chosen.pop())

    def data(self, key: DataKey, device: torch.device, slides: Sequence[str] | None = None) -> SpotData:
        """The tensors of a key, of all slides or of some; those used last are kept."""
        every: dict[str, CachedSlide] | dict[str, SlidePart] = self.parts(key.cut) if key.cut else self.all_slides
        chosen = {s: v for s, v in every.items() if slides is None or s in slides}

        def make() -> SpotData:
            profile = key.niche_profile
            how = key.transform, key.drop_edges, profile, key.n_rings
            return assemble(chosen, key.neighbors, key.panel, device, *how)

        return self._tensors.get((key, tuple(chosen), device), make)


def panel_digest(panel: Sequence[str]) -> str:
    """sha256 of a panel's names, hex."""
    return hashlib.sha256("\n".join(panel).encode()).hexdigest()


def slide_digests(slide: CachedSlide, size: int) -> dict[str, str]:
    """Digests of what a run reads of a slide: of its counts, and of its embeddings.

    Extracting more neighbourhood sizes later, or another thumbnail, changes neither.

    Args:
        slide: From a cache.
        size: Neighbourhood size of the niches.
    """
    parts = {
        "counts": ("barcodes", "coords", "genes", *COUNT_ARRAYS),
        "embeddings": ("embeddings", f"niche/{size}", f"neighbors/{size}"),
    }
    texts = {part: " ".join(slide.digests[name] for name in names) for part, names in parts.items()}
    return {part: hashlib.sha256(text.encode()).hexdigest()[:16] for part, text in texts.items()}


def patients_of(dataset: str, slides: dict[str, CachedSlide]) -> dict[str, str]:
    """Slide -> patient, from the dataset's table, else from the slides' metadata; empty where unknown."""
    if listed := dataset_named(dataset).patients:
        return {s: listed[s] for s in slides if s in listed}
    patients = {s: str(v.attributes["patient"]) for s, v in slides.items() if "patient" in v.attributes}
    return patients if len(patients) == len(slides) else {}
