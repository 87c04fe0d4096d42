"""A bit that is not as it was written is found, or has no influence on anything that is read."""

from __future__ import annotations

import errno
import json
import pickle
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hist_cache.cache import Cache
from hist_cache.errors import DamagedCacheError, HistError, StaleCacheError
from hist_cache.slide_file import read_fingerprint, read_slide
from hist_cache.token_files import Tokens, open_tokens, token_path
from hist_cache.verify import verify_tokens
from tests.fuzzing import FACTOR
from tests.hist_cache.test_cache import folder, make, write
from tests.hist_cache.test_token_files import FINGERPRINT, values
from tests.hist_cache.test_token_files import write as write_token_file

FLIPS, CUTS = round(150 * FACTOR), round(40 * FACTOR)


def as_written_by_0_1(path: Path) -> None:
    """Take from a file what version 0.1 did not write: digests of the attributes and of single crops."""
    with h5py.File(path, "r+") as file:
        digests = json.loads(file.attrs["digests"])
        del digests["attributes"], file.attrs["sealed"]
        file.attrs["digests"] = json.dumps(digests)
        if "crop_digests" in file:
            del file["crop_digests"]


def cached(root: Path) -> Cache:
    here = folder(root)
    slide = make(n=4)
    slide.attributes |= {"slide": "S", "patient": "P1"}
    write(here / "S.h5", slide)
    write_token_file(token_path(here, "S", 13), {"spot": values(4), "niche/6": values(4, 1)})
    return Cache(here)


def slide_values(cache: Cache) -> list[Any]:
    """All that training reads of a slide, in a form that can be compared."""
    slide = read_slide(cache.path("S"), [6])
    arrays = (slide.coords, slide.array, slide.embeddings, slide.thumbnail, slide.niches[6], slide.neighbors[6])
    texts = [slide.barcodes, slide.genes, slide.attributes, slide.digests, slide.image, cache.fingerprint()]
    return [*texts, slide.counts.toarray().tolist(), *((a.dtype, a.shape, a.tobytes()) for a in arrays)]


def token_values(cache: Cache) -> list[Any]:
    with open_tokens(cache, "S", 13, [6]) as tokens:
        arrays = [tokens.read(name, range(len(tokens))).tobytes() for name in tokens.names]
        return [tokens.block, tokens.barcodes, tokens.sizes, tokens.shape, *arrays]


def found_or_harmless(cache: Cache, path: Path, read: Callable[[Cache], list[Any]], expected: list[Any]) -> bool:
    """Whether it is found; what is found is said in one line that names the file."""
    try:
        assert read(cache) == expected
        return False
    except HistError as error:
        message = str(error)
    assert str(path) in message
    assert "\n" not in message
    return True


@pytest.mark.fuzz
@pytest.mark.parametrize(("name", "read"), [("S.h5", slide_values), ("S.tokens13.h5", token_values)])
def test_a_flipped_bit_is_found_or_harmless(tmp_path: Path, name: str, read: Callable[[Cache], list[Any]]) -> None:
    cache = cached(tmp_path)
    expected, path = read(cache), cache.folder / name
    whole, draw = path.read_bytes(), random.Random(None if FACTOR > 1 else 0)
    found = 0
    for _ in range(FLIPS):
        at, bit = draw.randrange(len(whole)), draw.randrange(8)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << bit)]) + whole[at + 1 :])
        found += found_or_harmless(cache, path, read, expected)
    assert found > FLIPS / 10  # the rest is space that HDF5 keeps free in a file that small
    for _ in range(CUTS):
        path.write_bytes(whole[: draw.randrange(len(whole))])
        assert found_or_harmless(cache, path, read, expected)


def test_every_bit_of_every_array_counts(tmp_path: Path) -> None:
    cache = cached(tmp_path)
    path, expected = cache.path("S"), slide_values(cache)
    whole = path.read_bytes()
    for array in (expected[-1], expected[-2], expected[-4]):  # neighbours, niches and embeddings are stored as they are
        at = whole.index(array[2])
        for i in range(0, len(array[2]), 7):
            path.write_bytes(whole[: at + i] + bytes([whole[at + i] ^ 4]) + whole[at + i + 1 :])
            with pytest.raises(DamagedCacheError, match="has other values than when it was written"):
                slide_values(cache)


def test_tokens_are_checked_as_they_are_read_and_then_no_more(tmp_path: Path) -> None:
    cache = cached(tmp_path)
    path = token_path(cache.folder, "S", 13)
    whole = path.read_bytes()
    at = whole.index(values(4)[2].tobytes()) + 9

    def flip() -> None:
        with path.open("r+b") as file:
            file.seek(at)
            file.write(bytes([whole[at] ^ 1]))

    with open_tokens(cache, "S", 13, [6]) as tokens:
        assert len(tokens.read("spot", range(4))) == 4
        flip()
        tokens.read("spot", [2])
    with open_tokens(cache, "S", 13, [6]) as tokens:
        np.testing.assert_array_equal(tokens.read("spot", [0, 1, 3]), values(4)[[0, 1, 3]])
        with pytest.raises(DamagedCacheError, match=r"S\.tokens13\.h5: spot has other values .* \(crop 2\); delete it"):
            tokens.read("spot", [3, 2])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_tokens_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    path = tmp_path / "S.tokens13.h5"
    spoilt = values(4)
    spoilt[1, 2, 3] = value
    write_token_file(path, {"spot": spoilt})
    with Tokens(path) as tokens, pytest.raises(DamagedCacheError, match=r"spot has NaN or infinite tokens \(crop 1\)"):
        tokens.read("spot", [0, 1])


def test_files_of_0_1_are_read_and_their_arrays_checked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All crops of a token file have one digest, so only --verify, which reads all of them, can compare them."""
    cache = cached(tmp_path)
    tokens = token_path(cache.folder, "S", 13)
    before = slide_values(cache), token_values(cache)
    for path in (cache.path("S"), tokens):
        as_written_by_0_1(path)
    assert (slide_values(cache), token_values(cache)) == before
    assert verify_tokens(tokens) == []
    for path, array in ((cache.path("S"), "embeddings"), (tokens, "niche/6")):
        with h5py.File(path, "r+") as file:
            file[array][1] = 0
    with pytest.raises(DamagedCacheError, match=r"S\.h5: embeddings has other values than when it was written"):
        slide_values(cache)
    assert verify_tokens(tokens) == ["niche/6 has other values than when it was written"]
    token_values(cache)
    notes = [r.getMessage() for r in caplog.records if "without a check; hist-extract --verify" in r.getMessage()]
    assert len(notes) == 1, "said once, not for each file and name"


@pytest.mark.parametrize(("name", "value"), [("patient", "P2"), ("um_per_px", 0.25), ("more", 1)])
def test_changed_attributes_are_found(tmp_path: Path, name: str, value: object) -> None:
    path = cached(tmp_path).path("S")
    with h5py.File(path, "r+") as file:
        file.attrs[name] = value
    with pytest.raises(DamagedCacheError, match=r"S\.h5: its attributes or digests have other values"):
        read_slide(path)
    with h5py.File(path, "r+") as file:
        del file.attrs["sealed"]
    with pytest.raises(DamagedCacheError, match=r"S\.h5: its attributes or digests have other values"):
        read_slide(path)


def test_what_another_program_adds_is_missed_by_the_seal(tmp_path: Path) -> None:
    path = cached(tmp_path).path("S")
    with h5py.File(path, "r+") as file:
        file["notes"] = "seen"
    with pytest.raises(DamagedCacheError, match=r"S\.h5: its end is missing: it was cut off, or changed by another"):
        read_slide(path)


@pytest.mark.parametrize("key", ["attributes", "niche/6"])
def test_a_digest_that_is_not_there_is_missed(tmp_path: Path, key: str) -> None:
    path = cached(tmp_path).path("S")
    with h5py.File(path, "r+") as file:
        file.attrs["digests"] = file.attrs["digests"].replace(key, key[:-1] + "?")
    with pytest.raises(DamagedCacheError, match=r"S\.h5: "):
        read_slide(path)


def test_a_file_under_another_slides_name_is_refused(tmp_path: Path) -> None:
    cache = cached(tmp_path)
    for name in ("S.h5", "S.tokens13.h5"):
        copied = cache.folder / name.replace("S", "T", 1)
        copied.write_bytes((cache.folder / name).read_bytes())
        if name == "S.h5":
            with pytest.raises(StaleCacheError, match=r"T\.h5: is a file of slide S, copied or renamed; delete it"):
                cache.fingerprint()
    write_token_file(token_path(cache.folder, "U", 13), {"spot": values(4)}, FINGERPRINT)
    with h5py.File(token_path(cache.folder, "U", 13)) as file:
        assert file.attrs["slide"] == "S"
    with pytest.raises(StaleCacheError, match=r"U\.tokens13\.h5: is a file of slide S"):
        read_fingerprint(token_path(cache.folder, "U", 13))


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "S.h5").mkdir()
    with pytest.raises(HistError, match=r"S\.h5: not a file; remove it"):
        read_slide(tmp_path / "S.h5")
    with pytest.raises(HistError, match=r"T\.h5: cannot be read \(No such file"):
        read_slide(tmp_path / "T.h5")
    (tmp_path / "U.h5").touch()
    with pytest.raises(DamagedCacheError, match=r"U\.h5: not a readable cache file"):
        read_slide(tmp_path / "U.h5")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), MemoryError),
        (OSError(errno.EIO, "Input/output error"), r"S\.h5: cannot be read \(Input/output error\)$"),
        (OSError(errno.ESTALE, "Stale file handle"), r"S\.h5: cannot be read \(Stale file handle\)$"),
        (OSError("Can't read data (file read failed: errno = 5, error message = 'Input'"), r"cannot be read \(Input"),
        (OSError("Can't read data (file read failed: errno = 22, error message = 'Inv'"), DamagedCacheError),
        (OSError("Can't read data (wrong B-tree signature)"), DamagedCacheError),
    ],
)
@pytest.mark.parametrize("place", ["hist_cache.seal._digest", "h5py.Dataset.__getitem__"])
def test_a_disk_that_does_not_answer_and_too_little_memory_are_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, error: Exception, expected: object
) -> None:
    """Damaged files are deleted; what only cannot be read now must not be."""
    cache = cached(tmp_path)

    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(place, fail)
    with pytest.raises((HistError, MemoryError)) as caught:
        read_slide(cache.path("S"))
    if isinstance(expected, str):
        assert caught.type is HistError
        assert re.search(expected, str(caught.value))
    else:
        assert caught.type is expected


def test_the_error_survives_a_worker_process() -> None:
    error = pickle.loads(pickle.dumps(DamagedCacheError(Path("S.h5"), "cut off")))
    assert str(error) == "S.h5: cut off; delete it and extract again"
    assert error.problem == "cut off"
