"""A file that is written block by block is that which is written at once, and memory does not hold all of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hist_cache.cache_file import open_complete
from hist_cache.cached_slide import CachedSlide
from hist_cache.errors import DamagedCacheError, HistError
from hist_cache.fingerprint import Fingerprint
from hist_cache.slide_blocks import read_embeddings, read_slide_without_embeddings, write_slide_in_blocks
from hist_cache.slide_file import read_slide, write_slide
from hist_cache.verify import verify_slide
from tests.hist_cache.test_cache import COMMON, folder, make

FINGERPRINT = Fingerprint(COMMON, {"image": "0" * 64}, {})
NAMES = ("embeddings", "niche/6")


def blocks_of(slide: CachedSlide, order: np.ndarray, size: int):
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        yield rows, {"embeddings": slide.embeddings[rows], "niche/6": slide.niches[6][rows]}


def make_slide(n: int) -> CachedSlide:
    slide = make(n=n)
    slide.attributes |= {"slide": "S"}
    rng = np.random.default_rng(0)
    slide.embeddings = rng.normal(size=(n, 8)).astype(np.float16)
    slide.niches = {6: rng.normal(size=(n, 8)).astype(np.float16)}
    return slide


@pytest.mark.parametrize("size", [1, 3, 100])
def test_blocks_in_any_order_give_the_file_that_is_written_at_once(tmp_path: Path, size: int) -> None:
    slide, here = make_slide(11), folder(tmp_path)
    write_slide(here / "S.h5", slide, FINGERPRINT)
    expected = read_slide(here / "S.h5")
    (here / "S.h5").unlink()
    order = np.random.default_rng(size).permutation(11)
    write_slide_in_blocks(here / "S.h5", slide, FINGERPRINT, NAMES, 8, blocks_of(slide, order, size))
    found = read_slide(here / "S.h5")
    assert verify_slide(here / "S.h5") == []
    assert found.digests == expected.digests
    assert found.attributes == expected.attributes
    assert np.array_equal(found.embeddings, slide.embeddings)

    bare = read_slide_without_embeddings(here / "S.h5", 6)
    assert bare.barcodes == slide.barcodes
    assert bare.embeddings.size == 0
    assert np.array_equal(bare.neighbors[6], slide.neighbors[6])
    parts = list(read_embeddings(here / "S.h5", NAMES, [(0, 4), (4, 11)]))
    assert np.array_equal(np.concatenate([p[0] for p in parts]), slide.embeddings)
    assert np.array_equal(np.concatenate([p[1] for p in parts]), slide.niches[6])


def bad(values: np.ndarray, kind: str) -> np.ndarray:
    values = values.copy()
    if kind == "nan":
        values[3, 2] = np.nan
    elif kind == "same":
        values[:] = values[0]
    else:
        values[:] = 0
    return values


@pytest.mark.parametrize("kind", ["nan", "same", "zero"])
@pytest.mark.parametrize("size", [2, 50])
def test_what_could_not_be_read_again_is_not_written(tmp_path: Path, kind: str, size: int) -> None:
    slide, here = make_slide(11), folder(tmp_path)
    slide.niches[6] = bad(slide.niches[6], kind)
    with pytest.raises(HistError, match="niche/6"):
        write_slide(here / "S.h5", slide, FINGERPRINT)
    with pytest.raises(HistError, match="niche/6"):
        write_slide_in_blocks(here / "S.h5", slide, FINGERPRINT, NAMES, 8, blocks_of(slide, np.arange(11), size))
    assert not list(here.glob("S.h5*"))


def test_a_missing_block_and_a_wrong_neighbour_are_found(tmp_path: Path) -> None:
    slide, here = make_slide(11), folder(tmp_path)
    with pytest.raises(HistError, match="of 10 of 11 spots"):
        write_slide_in_blocks(here / "S.h5", slide, FINGERPRINT, NAMES, 8, blocks_of(slide, np.arange(10), 5))
    slide.neighbors[6][0, 0] = 99
    with pytest.raises(HistError, match="neighbors/6"):
        write_slide_in_blocks(here / "S.h5", slide, FINGERPRINT, NAMES, 8, blocks_of(slide, np.arange(11), 5))


@given(st.integers(0, 11 * 8 * 2 - 1))
def test_a_changed_byte_of_the_embeddings_is_found(byte: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        slide, here = make_slide(11), folder(Path(place))
        write_slide_in_blocks(here / "S.h5", slide, FINGERPRINT, NAMES, 8, blocks_of(slide, np.arange(11), 4))
        with open_complete(here / "S.h5") as file:
            start = file.hdf5["niche/6"].id.get_offset()
        content = bytearray((here / "S.h5").read_bytes())
        content[start + byte] ^= 1
        (here / "S.h5").write_bytes(content)
        with pytest.raises(DamagedCacheError, match="niche/6"):
            read_slide_without_embeddings(here / "S.h5", 6)
