"""Depths of slides against a loop, and which differences are said."""

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hist_cache.splits import Split
from train.depth import depth_warnings, slide_depths

SPLIT = Split(("A", "B", "C"), ("V", "W"), ("T",), "mine")
TRAIN = {"A": 900.0, "B": 1000.0, "C": 5000.0}


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 10**6)), max_size=40))
def test_the_median_of_each_slide(spots: list[tuple[int, int]]) -> None:
    slide_index = np.array([i for i, _ in spots], dtype=np.int64)
    total = np.array([count for _, count in spots], dtype=np.float32)
    depths = slide_depths(total, slide_index, 5)
    assert depths.shape == (5,)
    for i, depth in enumerate(depths):
        own = [float(np.float32(count)) for j, count in spots if j == i]
        assert depth == pytest.approx(statistics.median(own)) if own else np.isnan(depth)


def test_far_depths_are_said_with_what_follows() -> None:
    assert depth_warnings(TRAIN | {"V": 3001, "W": 1000, "T": 333}, SPLIT) == [
        "validation slide V has a median of 3,001 counts a spot, train slides 1,000: validation MSE then follows "
        "the slide's offset more than the model (--select-by centered_mse does not count it, --validate-on alike takes "
        "other slides)",
        "test slide T has a median of 333 counts a spot, train slides 1,000: its MSE then is to a large part the "
        "slide's offset (`centered` in metrics.json is without it)",
    ]


def test_near_and_unknown_depths_are_not() -> None:
    assert depth_warnings(TRAIN | {"V": 3000, "W": 334, "T": 2000}, SPLIT) == []
    assert depth_warnings(TRAIN | {"V": float("nan")}, SPLIT) == []
    assert depth_warnings({"V": 1.0, "T": 10_000.0}, SPLIT) == [], "nothing is known of the train slides"
    assert len(depth_warnings({"A": 1000.0, "V": 1.0, "W": 0.0, "T": 9000.0}, SPLIT)) == 3
    assert len(depth_warnings(dict.fromkeys("ABC", 0.0) | {"V": 1.0, "W": 0.0}, SPLIT)) == 1
