"""Whether a fold tests slides that the encoder's adapter has seen: on a cache of `hist-extract --lora`."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from extract.encoders.adapter_slides import UNKNOWN, AdapterSlides
from hist_cache.cached_slide import CachedSlide, count_digests
from hist_cache.datasets import dataset_named, patient_names
from hist_cache.fingerprint import is_tuned
from hist_cache.splits import Split, shared_patients
from train.workspace import Workspace


def slide_patients(workspace: Workspace, slides: Collection[str]) -> dict[str, str]:
    """Slide -> patient, by names that can be compared between datasets; slides of unknown patients are left out."""

    def patient(slide: str, dataset: str) -> str | None:
        known = dataset_named(dataset).patients.get(slide, workspace.all_slides[slide].attributes.get("patient"))
        return None if known is None else str(known)

    named: dict[str, str] = {}
    for slide in slides:
        dataset = workspace.cache_of(slide).dataset
        named |= patient_names(dataset, {slide: patient(slide, dataset)})
    return named


def slide_contents(workspace: Workspace, slides: Collection[str]) -> dict[str, list[str]]:
    """Slide -> digests of its counts, and of its image with the places of its spots."""

    def digests(slide: CachedSlide) -> list[str]:
        places = [slide.image, slide.digests["coords"]] if slide.image else []
        return [
            hashlib.sha256(" ".join(part).encode()).hexdigest()[:16] for part in (count_digests(slide), places) if part
        ]

    return {slide: digests(workspace.all_slides[slide]) for slide in slides}


def adapter_slides(workspace: Workspace, split: Split) -> AdapterSlides:
    """The slides of an adapter that is trained on a split."""
    patients, contents = slide_patients(workspace, split.ids), slide_contents(workspace, split.ids)
    return AdapterSlides(workspace.dataset, split.train, split.val, split.test, patients, contents)


def find_leak(workspace: Workspace, split: Split) -> str:
    """Say what the adapter of a cache has seen of the slides that a fold tests.

    Returns:
        A part of a sentence; "" where it has seen none, or the encoder has no adapter.
    """
    return adapter_leak(workspace, cached_adapter(workspace.common), split) if is_tuned(workspace.common) else ""


def adapter_leak(workspace: Workspace, adapter: AdapterSlides | None, split: Split) -> str:
    """`find_leak` for an adapter with these slides; None where they are not known."""
    if adapter is None:
        return UNKNOWN
    patients = slide_patients(workspace, split.ids)
    shared = shared_patients(split, patients)
    return "; ".join(adapter.leaks(split.test, patients, slide_contents(workspace, split.test), shared))


def find_validation_leak(workspace: Workspace, split: Split) -> str:
    """Say which validation slides of a fold the adapter of a cache was trained on; "" where there is none."""
    adapter = cached_adapter(workspace.common)
    seen = adapter.trained_on(split.val, slide_contents(workspace, split.val)) if adapter else []
    return f"validates on {', '.join(seen)}, which the adapter was trained on" if seen else ""


def cached_adapter(common: Mapping[str, Any]) -> AdapterSlides | None:
    """The slides of the adapter that made a cache, by its fingerprint; None where they are unknown."""
    try:
        return AdapterSlides.from_dict(common["adapter"])
    except (KeyError, TypeError, ValueError):
        return None


def leak_sentences(leaks: Iterable[tuple[int, str]]) -> list[str]:
    """Join the folds that leak alike: `folds 1, 2 tests S1, which ...`.

    Args:
        leaks: Number of each fold, and what leaks there, "" for nothing.
    """
    folds: dict[str, set[int]] = {}
    for fold, leak in leaks:
        if leak:
            folds.setdefault(leak, set()).add(fold)
    return [f"fold{'s' * (len(n) > 1)} {', '.join(map(str, sorted(n)))} {leak}" for leak, n in folds.items()]
