"""Token files: written in any order, read in any order, checked crop by crop."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hist_cache.cache import Cache, open_cache, slide_files
from hist_cache.errors import HistError, InputError, StaleCacheError
from hist_cache.fingerprint import Fingerprint
from hist_cache.token_files import (
    Tokens,
    open_tokens,
    token_blocks,
    token_bytes,
    token_files,
    token_names,
    token_path,
)
from hist_cache.token_writer import write_tokens
from tests.hist_cache.test_cache import COMMON, folder, rewrite
from tests.hist_cache.test_cache import write as write_embeddings

SHAPE = (5, 8)
FINGERPRINT = Fingerprint(COMMON, {"image": "b" * 64}, {"date": "today"})


def values(n: int, seed: int = 0, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, *shape)).astype(np.float16)


def write(
    path: Path, arrays: dict[str, np.ndarray], fingerprint: Fingerprint = FINGERPRINT, block: int = 13, seed: int = 0
) -> None:
    """Write these arrays, crops shuffled and in uneven batches."""
    first = next(iter(arrays.values()))
    rng = np.random.default_rng(seed)
    barcodes = [f"spöt-{i}" for i in range(len(first))]
    shape = (first.shape[1], first.shape[2])
    with write_tokens(path, list(arrays), barcodes, shape, fingerprint, {"slide": "S", "block": block}) as writer:
        for name, array in arrays.items():
            order = rng.permutation(len(array))
            for rows in np.split(order, [1, 3]):
                writer.put(name, rows, array[rows])


def cached(root: Path, slides: tuple[str, ...] = ("S",), blocks: tuple[int, ...] = (13,)) -> Cache:
    """A cache of five spots a slide, with spot and niche tokens."""
    here = folder(root)
    for slide in slides:
        write_embeddings(here / f"{slide}.h5")
        for block in blocks:
            write(token_path(here, slide, block), {"spot": values(5), "niche/6": values(5, 1)}, block=block)
    return open_cache(here)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 9), n_tokens=st.integers(1, 6), width=st.integers(1, 9), seed=st.integers(0, 99))
def test_round_trip_in_any_order(tmp_path_factory, n: int, n_tokens: int, width: int, seed: int) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path_factory.mktemp("t") / "S.tokens2.h5"
    spot, niche = values(n, seed, (n_tokens, width)), values(n, seed + 1, (n_tokens, width))
    write(path, {"spot": spot, "niche/18": niche}, block=2, seed=seed)
    rows = np.random.default_rng(seed).integers(0, n, 2 * n)
    with Tokens(path) as tokens:
        assert (len(tokens), tokens.block, tokens.shape, tokens.sizes) == (n, 2, (n_tokens, width), [18])
        assert tokens.barcodes[0] == "spöt-0"
        np.testing.assert_array_equal(tokens.read("spot", rows), spot[rows])
        buffer = torch.empty((2 * n, n_tokens, width), dtype=torch.float16)
        assert tokens.read("niche/18", torch.from_numpy(rows), buffer) is buffer
        np.testing.assert_array_equal(buffer.numpy(), niche[rows])
        assert tokens.read("spot", []).shape == (0, n_tokens, width)


def test_any_hdf5_reader_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "S.tokens13.h5"
    write(path, {"spot": values(5), "niche/6": values(5, 1)})
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["spot"][:], values(5))
        np.testing.assert_array_equal(file["niche/6"][:], values(5, 1))
        assert file["spot"].chunks == (1, *SHAPE)
        assert file["spot"].compression is None
        assert file["barcodes"][4].decode() == "spöt-4"
        assert (file.attrs["schema"], file.attrs["block"], file.attrs["complete"]) == (1, 13, True)
    assert token_names([6, 18]) == ["spot", "niche/6", "niche/18"]
    assert token_bytes(10, (197, 1024)) == 10 * 197 * 1024 * 2


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    path = tmp_path / "S.tokens13.h5"
    write(path, {"spot": values(5)})
    with Tokens(path) as tokens:
        with pytest.raises(InputError, match="no niche/6 tokens; it has spot"):
            tokens.read("niche/6", [0])
        with pytest.raises(InputError, match="crops 0 to 5 asked for; it has 5"):
            tokens.read("spot", [5, 0])
        for buffer in (np.empty((2, *SHAPE), np.float32), np.empty((1, *SHAPE), np.float16)):
            with pytest.raises(ValueError, match="a contiguous float16 buffer"):
                tokens.read("spot", [1, 2], buffer)
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)
        with pytest.raises(HistError, match="ends too early"):
            tokens.read("spot", range(5))


def test_a_repacked_file_is_not_misread(tmp_path: Path) -> None:
    path = tmp_path / "S.tokens13.h5"
    write(path, {"spot": values(5)})
    with h5py.File(path, "r+") as file:
        del file["spot"]
        file.create_dataset("spot", data=values(5), chunks=(1, *SHAPE), compression="gzip")
    rewrite(path)
    with pytest.raises(HistError, match="not stored crop by crop"):
        Tokens(path)


def test_token_files_are_no_slides(tmp_path: Path) -> None:
    cache = cached(tmp_path, ("A", "A.1"), (13, 20))
    assert cache.slides == ["A", "A.1"]
    assert [p.name for p in slide_files(cache.folder)] == ["A.h5", "A.1.h5"]
    assert len(token_files(cache.folder)) == 4
    assert open_cache(cache.folder).slides == ["A", "A.1"]
    assert cache.fingerprint().common == COMMON
    for path in slide_files(cache.folder):
        path.unlink()
    with pytest.raises(InputError, match="no cache of demo"):
        open_cache(tmp_path, "demo")


def test_blocks_that_serve_all_slides(tmp_path: Path) -> None:
    cache = cached(tmp_path, ("A", "B"), (13, 7))
    token_path(cache.folder, "B", 7).unlink()
    assert token_blocks(cache, ["A", "B"]) == [13]
    assert token_blocks(cache, ["A"]) == [7, 13]
    assert token_blocks(cache, ["A", "C"]) == []


COMMAND = "hist-extract --dataset demo --encoder demo --neighbors 6,18 --tokens-at 13"


def test_opening_says_which_command_helps(tmp_path: Path) -> None:
    cache = cached(tmp_path)
    path = token_path(cache.folder, "S", 13)
    with open_tokens(cache, "S", 13, [6]) as tokens:
        np.testing.assert_array_equal(tokens.read("spot", [3, 1]), values(5)[[3, 1]])
    with pytest.raises(InputError, match=f"no tokens of niches of 18 neighbours; run {COMMAND}"):
        open_tokens(cache, "S", 13, [6, 18])
    path.rename(token_path(cache.folder, "S", 12))
    with pytest.raises(InputError, match=f"no such file; run {COMMAND}"):
        open_tokens(cache, "S", 13, [6, 18])
    with pytest.raises(StaleCacheError, match="holds tokens of block 13; was it renamed"):
        open_tokens(cache, "S", 12)
    write(path, {"spot": values(5)}, Fingerprint(COMMON, {"image": "c" * 64}, {}))
    with pytest.raises(StaleCacheError, match=rf"stale beside S\.h5: image c+ -> b+; delete it and run {COMMAND}"):
        open_tokens(cache, "S", 13, [6, 18])
    with h5py.File(path, "r+") as file:
        file.attrs["complete"] = False
    with pytest.raises(HistError, match=f"incomplete; .*: {COMMAND}"):
        open_tokens(cache, "S", 13, [6, 18])
