"""Arrays that do not fit together, or that mean nothing, are refused by the name of their file, whoever wrote it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from hist_cache.errors import DamagedCacheError, HistError
from hist_cache.fingerprint import Fingerprint
from hist_cache.slide_file import read_slide, write_slide
from hist_cache.verify import verify_slide
from tests.hist_cache.test_cache import COMMON, folder, make, rewrite, write

HALF = np.float16
SLIDE = make()  # 5 spots, 7 genes, width 4
NEAR = SLIDE.neighbors[6]
COUNTS = SLIDE.counts


def changed(array: np.ndarray, at: object, value: float) -> np.ndarray:
    array = array.copy()
    array[at] = value
    return array


DATA = COUNTS.data.astype(np.float64)
WRONG = {
    "a NaN": ({"embeddings": changed(SLIDE.embeddings, (2, 1), np.nan)}, "embeddings: 1 of 5 spots have NaN or infin"),
    "infinity": ({"niche/6": changed(SLIDE.niches[6], 3, np.inf)}, "niche/6: 1 of 5 spots have NaN or infinite embed"),
    "zeros": ({"embeddings": np.zeros((5, 4), HALF)}, "embeddings are all zero"),
    "one embedding for all": ({"niche/6": np.ones((5, 4), HALF)}, "niche/6 are the same for all 5 spots"),
    "another width": ({"niche/6": np.ones((5, 3), HALF)}, r"niche/6 has the shape \(5, 3\) where 5 x 4 is expected"),
    "too few spots": ({"embeddings": SLIDE.embeddings[1:]}, r"embeddings has the shape \(4, 4\) where 5 x 4 is expec"),
    "no embeddings": ({"embeddings": np.ones((5, 0), HALF), "niche/6": np.ones((5, 0), HALF)}, "embeddings has the sh"),
    "one number a spot": ({"embeddings": np.ones(5, HALF)}, r"embeddings has the shape \(5,\)"),
    "embeddings of integers": ({"embeddings": np.ones((5, 4), np.int16)}, "embeddings is of type <i2"),
    "other byte order": ({"embeddings": SLIDE.embeddings.astype(">f2")}, "embeddings is of type >f2"),
    "a place that is none": ({"coords": changed(SLIDE.coords, 0, np.nan)}, "coords: some are not finite"),
    "places in one dimension": ({"coords": SLIDE.coords[:, :1]}, r"coords has the shape \(5, 1\)"),
    "a grey thumbnail": ({"thumbnail": SLIDE.thumbnail[..., 0]}, "thumbnail has the shape"),
    "a neighbour out of range": ({"neighbors/6": changed(NEAR, (0, 0), 5)}, "neighbors/6 go from row -1 to 5, with 5"),
    "a row before the first": ({"neighbors/6": changed(NEAR, (0, 0), -2)}, "neighbors/6 go from row -2 to"),
    "its own neighbour": ({"neighbors/6": changed(NEAR, (2, 5), 2)}, "neighbors/6: a spot is its own neighbour"),
    "a neighbour twice": ({"neighbors/6": changed(NEAR, 0, 1)}, "neighbors/6: a spot has the same neighbour twice"),
    "rows as floats": ({"neighbors/6": NEAR.astype(np.float32)}, "neighbors/6 is of type <f4"),
    "a negative count": ({"counts/data": changed(COUNTS.data, 0, -3)}, "counts/data: 1 are negative"),
    "fractions": ({"counts/data": DATA + 0.5}, f"counts/data: {COUNTS.nnz} are not whole numbers"),
    "a count that is none": ({"counts/data": changed(DATA, 1, np.nan)}, "counts/data: some are NaN, infinite or no"),
    "a gene too many": ({"counts/indices": changed(COUNTS.indices, 0, 7)}, "counts/indices go from 0 to 7, with 7"),
    "a gene before the first": ({"counts/indices": changed(COUNTS.indices, 0, -1)}, "counts/indices go from -1 to"),
    "a gene twice": ({"counts/indices": np.zeros_like(COUNTS.indices)}, "counts/indices name a gene twice"),
    "rows that go back": ({"counts/indptr": COUNTS.indptr[::-1].copy()}, "counts/indptr does not say where rows sta"),
    "a row too few": ({"counts/indptr": COUNTS.indptr[:-1]}, "counts/indptr does not say where rows start"),
    "fewer values than said": ({"counts/data": COUNTS.data[1:]}, "counts: .* are announced"),
    "a barcode twice": ({"barcodes": np.array(["A", "A", "B", "C", "D"], object)}, "barcodes: 1 of 5 are repeats or"),
    "a gene's name twice": ({"genes": np.array(["A"] * 7, object)}, "genes: 6 of 7 are repeats or missing"),
    "no spots": ({"barcodes": np.array([], object)}, "barcodes|it has no spots"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_means_nothing_is_refused(tmp_path: Path, case: str) -> None:
    arrays, message = WRONG[case]
    path = folder(tmp_path) / "S.h5"
    write(path, make())
    rewrite(path, {k: v.astype("S") if v.dtype == object else v for k, v in arrays.items()})
    with pytest.raises(DamagedCacheError, match=rf"S\.h5: {message}.*; delete it and extract again$") as caught:
        read_slide(path)
    assert "\n" not in str(caught.value)
    (problem,) = verify_slide(path)
    assert str(caught.value) == f"{path}: {problem}; delete it and extract again"


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), "wide", [1.0, 2.0]])
@pytest.mark.parametrize("name", ["um_per_px", "spot_um"])
def test_lengths_are_positive(tmp_path: Path, name: str, value: object) -> None:
    path = tmp_path / "S.h5"
    write(path)
    rewrite(path, **{name: value})
    with pytest.raises(DamagedCacheError, match=rf"S\.h5: {name} is .*, not a positive length"):
        read_slide(path)


def test_what_another_program_may_do_is_read(tmp_path: Path) -> None:
    """Counts out of order, of other types and with other indices; embeddings of 32 bits; one spot alone."""
    path = tmp_path / "S.h5"
    write(path)
    starts, order = COUNTS.indptr, np.arange(COUNTS.nnz)
    for start, end in itertools.pairwise(starts):
        order[start:end] = order[start:end][::-1]
    rewrite(
        path,
        {
            "counts/data": COUNTS.data[order].astype(np.uint16),
            "counts/indices": COUNTS.indices[order].astype(np.int64),
            "embeddings": SLIDE.embeddings.astype(np.float32),
        },
    )
    back = read_slide(path)
    np.testing.assert_array_equal(back.counts.toarray(), COUNTS.toarray())
    np.testing.assert_array_equal(back.counts[1:3].toarray(), COUNTS[1:3].toarray())
    np.testing.assert_array_equal(back.embeddings, SLIDE.embeddings)
    write(path, make(n=1))
    assert len(read_slide(path)) == 1


def test_some_embeddings_of_zeros_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "S.h5"
    write(path)
    rewrite(path, {"embeddings": changed(SLIDE.embeddings, slice(0, 2), 0)})
    read_slide(path)
    read_slide(path)
    assert caplog.text.count(f"{path}: all zero: embeddings of 2 of 5 spots") == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: replace(s, counts=csr_matrix(s.counts * 0.5)), "counts are not whole numbers, or too large"),
        (lambda s: replace(s, counts=csr_matrix(s.counts * 1e9)), "counts are not whole numbers, or too large"),
        (lambda s: replace(s, embeddings=s.embeddings.astype(np.float32) * 1e6), "5 spots have NaN or infinite"),
        (lambda s: replace(s, array=s.array[:2]), r"array has the shape \(2, 2\) where 5 x 2"),
    ],
)
def test_it_is_not_written_either(tmp_path: Path, spoil: Callable, message: str) -> None:
    with pytest.raises(HistError, match=message), np.errstate(over="ignore"):
        write_slide(tmp_path / "S.h5", spoil(make()), Fingerprint(COMMON, {}, {}))
    assert list(tmp_path.iterdir()) == []
