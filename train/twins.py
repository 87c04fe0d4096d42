"""Slides that are in a cache twice, under two names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from hist_cache.cached_slide import CachedSlide, count_digests


def find_twins(slides: Mapping[str, CachedSlide]) -> list[tuple[str, str]]:
    """Pairs of names that stand for the same slide, in the order of the slides.

    They have the same counts or the same embeddings, or they show some of the same places of the same image.
    """
    numbers = {name: i for i, name in enumerate(slides)}
    alike = [*_same_arrays(slides), *_same_places(slides)]
    pairs = {pair for names in alike for pair in combinations(sorted(names, key=numbers.__getitem__), 2)}
    return sorted(pairs, key=lambda pair: (numbers[pair[0]], numbers[pair[1]]))


def _same_arrays(slides: Mapping[str, CachedSlide]) -> Iterator[Sequence[str]]:
    """Names of the slides with the same embeddings, and of those with the same counts."""
    names: dict[str, list[str]] = {}
    for name, slide in slides.items():
        for text in {slide.digests.get("embeddings", ""), " ".join(count_digests(slide))} - {""}:
            names.setdefault(text, []).append(name)
    yield from (sharing for sharing in names.values() if len(sharing) > 1)


def _same_places(slides: Mapping[str, CachedSlide]) -> Iterator[Sequence[str]]:
    """Names of the slides that have a place of an image in common."""
    of_image: dict[str, list[str]] = {}
    for name, slide in slides.items():
        if slide.image:
            of_image.setdefault(slide.image, []).append(name)
    for sharing in of_image.values():
        if len(sharing) > 1:  # places are listed of these alone
            names: dict[tuple[float, ...], list[str]] = {}
            for name in sharing:
                for place in set(map(tuple, slides[name].coords.tolist())):
                    names.setdefault(place, []).append(name)
            yield from {tuple(at_place) for at_place in names.values() if len(at_place) > 1}
