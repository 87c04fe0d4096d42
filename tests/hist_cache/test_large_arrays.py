"""Slides without their large arrays, which are read from the file when they are needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hist_cache.cached_slide import CachedSlide, count_digests
from hist_cache.errors import DamagedCacheError, InputError
from hist_cache.large_arrays import read_counts, read_large_arrays, read_small_arrays
from hist_cache.slide_file import read_slide
from tests.hist_cache.test_cache import make, rewrite, write


def test_the_large_arrays_are_read_when_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "S.h5"
    write(path, make(sizes=(6, 18)))
    small, whole = read_small_arrays(path, [6, 18]), read_slide(path)
    assert small.counts.shape == (0, 0)
    assert {a.shape for a in (small.embeddings, *small.niches.values())} == {(0, 4)}
    assert (len(small), repr(small)) == (len(whole), repr(whole))
    assert count_digests(small) == count_digests(whole) != []
    assert (read_counts(small) != whole.counts).nnz == 0
    filled = read_large_arrays(small, [18])
    assert filled.file is None
    np.testing.assert_array_equal(filled.embeddings, whole.embeddings)
    np.testing.assert_array_equal(filled.niches[18], whole.niches[18])
    assert filled.niches.keys() == filled.neighbors.keys() == {18}
    assert (filled.counts != whole.counts).nnz == 0
    assert read_large_arrays(whole, [6]) is whole
    assert read_counts(whole) is whole.counts


def test_what_is_wrong_is_said_by_the_reading_that_meets_it(tmp_path: Path) -> None:
    path = tmp_path / "S.h5"
    slide = write(path)
    with pytest.raises(InputError, match="no niches of 36 neighbours"):
        read_small_arrays(path, [36])
    rewrite(path, {"embeddings": np.full((5, 4), np.nan, np.float16), "counts/data": -slide.counts.data})
    small = read_small_arrays(path, [6])
    with pytest.raises(DamagedCacheError, match=r"S\.h5: embeddings: 5 of 5 spots have NaN"):
        read_large_arrays(small, [6])
    with pytest.raises(DamagedCacheError, match=r"S\.h5: counts/data: .* are negative"):
        read_counts(small)
    for arrays, message in (
        ({"embeddings": np.ones(5, np.float16)}, r"embeddings has the shape \(5,\)"),
        ({"embeddings": np.ones((5, 0), np.float16)}, r"embeddings has the shape \(5, 0\)"),
        ({"embeddings": np.ones((5, 4), np.int16)}, "embeddings is of type <i2, which is not expected there"),
        ({"niche/6": np.ones((5, 4), ">f2")}, "niche/6 is of type >f2, which is not expected there"),
        ({"niche/6": np.ones((5, 4), np.longdouble)}, "niche/6 is of type <f16, which is not expected there"),
        ({"neighbors/6": np.full((5, 6), 5, np.int32)}, "neighbors/6 go from row 5 to 5, with 5 spots"),
    ):
        write(path)
        rewrite(path, arrays)
        with pytest.raises(DamagedCacheError, match=message):
            read_small_arrays(path, [6])


@pytest.mark.parametrize("read", [read_counts, lambda slide: read_large_arrays(slide, [6])], ids=["counts", "all"])
def test_a_file_that_was_written_anew_meanwhile_is_not_mixed_with_the_old_one(
    tmp_path: Path, read: Callable[[CachedSlide], object]
) -> None:
    path = tmp_path / "S.h5"
    write(path)
    small = read_small_arrays(path, [6])
    write(path, replace(make(), counts=2 * make().counts))
    with pytest.raises(InputError, match=r"S\.h5: was written anew while this command was running; start it again"):
        read(small)
    write(path, make(sizes=(6,)))
    read(small)
    more = make(sizes=(6, 18))
    write(path, replace(more, niches=more.niches | make().niches, neighbors=more.neighbors | make().neighbors))
    read(small)  # another neighbourhood size in it changes nothing


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.float32, np.float64])
def test_slides_without_any_count_have_no_digests_in_common(tmp_path: Path, kind: type) -> None:
    slide = make()
    slide.counts = 0 * slide.counts
    slide.counts.eliminate_zeros()
    write(tmp_path / "S.h5", slide)
    rewrite(tmp_path / "S.h5", {"counts/data": slide.counts.data.astype(kind)})
    assert count_digests(read_slide(tmp_path / "S.h5")) == []
    assert count_digests(slide) == []
