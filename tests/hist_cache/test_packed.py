"""Arrays are unpacked as HDF5 unpacks them, in threads too, and what is damaged is said to be."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

from hist_cache.errors import DamagedCacheError
from hist_cache.packed import is_packed, unpack
from hist_cache.slide_file import read_slide
from tests.hist_cache.test_cache import make, rewrite, write

PACKED = {"compression": "gzip", "compression_opts": 1, "shuffle": True}


def read_both(path: Path, values: np.ndarray, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    with h5py.File(path, "w") as file:
        file.create_dataset("x", data=values, **(PACKED | options))
    with h5py.File(path) as file:
        assert is_packed(file["x"])
        return unpack(file["x"]), file["x"][:]


@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(["i1", "u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8"]),
    length=st.integers(1, 300),
    chunk=st.integers(1, 120),
    highest=st.sampled_from([1, 100, 2**62]),
    seed=st.integers(0, 99),
)
def test_numbers_are_those_that_hdf5_reads(
    tmp_path_factory: pytest.TempPathFactory, kind: str, length: int, chunk: int, highest: int, seed: int
) -> None:
    drawn = np.random.default_rng(seed).integers(-highest, highest, length).astype(kind)
    path = tmp_path_factory.mktemp("packed") / "x.h5"
    own, expected = read_both(path, drawn, chunks=(min(chunk, length),))
    assert own.dtype == expected.dtype
    np.testing.assert_array_equal(own, expected)
    np.testing.assert_array_equal(own, drawn)


def test_chunks_that_compression_would_not_make_smaller(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 2**63, 4000, dtype=np.int64)
    own, expected = read_both(tmp_path / "x.h5", noise, chunks=(500,))
    np.testing.assert_array_equal(own, expected)


def test_a_chunk_that_was_written_without_some_of_the_filters(tmp_path: Path) -> None:
    values = np.arange(10, dtype=np.int32)
    planes = values[4:8].view(np.uint8).reshape(4, 4).T.tobytes()  # shuffled
    with h5py.File(tmp_path / "x.h5", "w") as file:
        dataset = file.create_dataset("x", data=0 * values, chunks=(4,), **PACKED)
        dataset.id.write_direct_chunk((0,), values[:4].tobytes(), filter_mask=0b11)
        dataset.id.write_direct_chunk((4,), planes, filter_mask=0b10)
        dataset[8:] = values[8:]
    with h5py.File(tmp_path / "x.h5") as file:
        assert is_packed(file["x"])
        np.testing.assert_array_equal(file["x"][:], values)
        np.testing.assert_array_equal(unpack(file["x"]), values)


def test_missing_chunks_are_said(tmp_path: Path) -> None:
    path = tmp_path / "S.h5"
    write(path)
    with h5py.File(path, "r+") as file:
        stored = file["counts/data"]
        length, kind = stored.shape, stored.dtype
        del file["counts/data"]
        file.create_dataset("counts/data", length, kind, chunks=(2,), **PACKED)[:2] = 1
    rewrite(path)
    with pytest.raises(DamagedCacheError, match=r"counts/data cannot be read \(chunks are missing\)"):
        read_slide(path)


@pytest.mark.parametrize(
    "options",
    [
        *({"compression": None}, {"shuffle": False}, {"compression": "lzf"}, {"fletcher32": True}),
        *({"data": np.ones(9)}, {"data": np.ones((3, 3), int)}, {"data": np.ones(9, ">i4")}),
    ],
    ids=str,
)
def test_what_is_left_to_hdf5(tmp_path: Path, options: dict[str, Any]) -> None:
    options = {"data": np.arange(9)} | PACKED | options
    if options["compression"] != "gzip":
        options.pop("compression_opts")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        assert not is_packed(file.create_dataset("x", **options))


def test_filters_in_another_order_are_left_to_hdf5(tmp_path: Path) -> None:
    values = np.arange(9, dtype=np.int32)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        how.set_chunk((9,))
        how.set_deflate(1)
        how.set_shuffle()
        made = h5py.h5d.create(file.id, b"x", h5py.h5t.NATIVE_INT32, h5py.h5s.create_simple((9,)), how)
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, values)
        assert not is_packed(file["x"])
        np.testing.assert_array_equal(file["x"][:], values)


def test_many_threads_read_one_file(tmp_path: Path) -> None:
    slides = {tmp_path / f"S{i}.h5": make(n=400, genes=300, seed=i) for i in range(4)}
    for path, slide in slides.items():
        write(path, slide)
    with ThreadPoolExecutor(8) as pool:
        for path, read in zip(4 * list(slides), pool.map(read_slide, 4 * list(slides)), strict=True):
            assert (read.counts != csr_matrix(slides[path].counts)).nnz == 0


def problem_of_reading(path: Path, counts: csr_matrix) -> str:
    """Why a file cannot be read; "" where its counts are still these, for a bit may stand for nothing."""
    try:
        own = read_slide(path).counts
    except DamagedCacheError as error:
        return str(error)
    assert (own != counts).nnz == 0
    return ""


@pytest.mark.parametrize("name", ["counts/data", "counts/indices", "counts/indptr"])
def test_any_damaged_byte_is_noticed(tmp_path: Path, name: str) -> None:
    path = tmp_path / "S.h5"
    write(path)
    sound, counts, noticed = path.read_bytes(), read_slide(path).counts, 0
    with h5py.File(path) as file:
        chunk = file[name].id.get_chunk_info(0)
    for at in range(chunk.byte_offset, chunk.byte_offset + chunk.size):
        content = bytearray(sound)
        content[at] ^= 1 << at % 8
        path.write_bytes(content)
        problem = problem_of_reading(path, counts)
        assert not problem or f"{path}: {name} cannot be read" in problem or f"{path}: {name} has other" in problem
        noticed += bool(problem)
    assert noticed >= chunk.size - 1, "there may be bits that fill up a byte"
