"""Splits within slices by name."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hist_cache.slide_parts import N_BANDS, WITHIN, part_name, whole_slide
from hist_cache.splits import SPLIT_PARTS, kind_in_use, make_splits
from tests.hist_cache.test_splits import slide_ids


@given(slide_ids)
def test_every_slide_is_in_all_parts_of_every_split(ids: list[str]) -> None:
    splits = make_splits("custom", ids, {}, WITHIN)
    assert [s.name for s in splits] == [f"within-{i}" for i in range(N_BANDS)]
    for split in splits:
        for part in SPLIT_PARTS:
            assert sorted(map(whole_slide, getattr(split, part))) == sorted(ids)
    names = [name for split in splits for name in split.ids]
    assert len(set(names)) == len(names), "a name stands for one set of spots"


def test_one_slide_is_enough_and_fewer_folds_are_the_first() -> None:
    assert kind_in_use("her2st", ["A"], {}, WITHIN) == WITHIN
    every = make_splits("custom", ["A"], {}, WITHIN)
    assert make_splits("custom", ["A"], {}, WITHIN, folds=2) == every[:2]
    assert every[3].val == (part_name("A", "val", 3),)


@given(st.text(min_size=1), st.sampled_from(SPLIT_PARTS), st.integers(0, N_BANDS - 1))
def test_a_part_knows_its_slide(slide: str, part: str, tested: int) -> None:
    assert whole_slide(part_name(slide, part, tested)) == slide
