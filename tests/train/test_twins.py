"""The pairs of slides that are the same one, compared with those of all pairs looked at one by one."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hist_cache.cached_slide import COUNT_ARRAYS, NO_COUNTS, CachedSlide
from tests.hist_cache.test_cache import make
from train.twins import find_twins

PLACES = ((0.0, 1.0), (2.0, 0.5), (2.0, 1.0), (3.0, 3.0), (-0.0, 1.0))


def slides_of(drawn: list[tuple[str, str, str, set[int]]]) -> dict[str, CachedSlide]:
    slides = {}
    for i, (embeddings, counts, image, places) in enumerate(drawn):
        slide = make(n=len(places), seed=i)
        slide.coords = np.array([PLACES[place] for place in places])
        slide.image = image
        slide.digests = {"embeddings": embeddings, "counts/data": counts, **dict.fromkeys(COUNT_ARRAYS[1:], "same")}
        slides[f"S{(7 * i) % 10}"] = slide
    return slides


def are_the_same(a: CachedSlide, b: CachedSlide) -> bool:
    counts = [slide.digests["counts/data"] for slide in (a, b)]
    same_place = any(tuple(p) == tuple(q) for p in a.coords for q in b.coords)
    return (
        a.digests["embeddings"] == b.digests["embeddings"] != ""
        or (counts[0] == counts[1] and counts[0] not in ("", *NO_COUNTS))
        or (a.image == b.image != "" and same_place)
    )


DIGEST = st.sampled_from([*"abcdefgh", ""])
SLIDE = st.tuples(
    DIGEST, st.sampled_from([*"ABCDEFGH", *NO_COUNTS[:2]]), DIGEST, st.sets(st.integers(0, 4), min_size=1)
)


@settings(max_examples=80, deadline=None)
@given(st.lists(SLIDE, max_size=9))
def test_pairs_are_those_of_a_search(drawn: list[tuple[str, str, str, set[int]]]) -> None:
    slides = slides_of(drawn)
    pairs = itertools.combinations(slides.items(), 2)
    assert find_twins(slides) == [(one, other) for (one, a), (other, b) in pairs if are_the_same(a, b)]


def test_three_names_of_one_slide_are_three_pairs() -> None:
    slides = slides_of([("a", "A", "", {0}), ("b", "B", "", {1}), ("a", "C", "", {2}), ("a", "C", "", {3})])
    assert find_twins(slides) == [("S0", "S4"), ("S0", "S1"), ("S4", "S1")]
