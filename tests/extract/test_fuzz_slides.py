"""hist-extract on h5ad and metadata files with random changes: one line for them, and the good slide is done."""

from __future__ import annotations

import functools
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import extract.encoders.registry
from extract.cli import main
from hist_cache.cache import open_cache
from tests.conftest import TINY_ENCODER
from tests.fuzzing import fuzz, outcome

Change = tuple[str, Any]

NUMBERS = [0, -1, 1, 29, 30, 31, 2**31 - 1, 2**31, 2**63 - 1, -(2**63), 0.5, 1e18, 1e300, math.nan, math.inf, -math.inf]
DTYPES = ["i1", "u1", "i4", "i8", "u8", "f2", "f4", "f8", "c8", "?", "S3"]
SHAPES = [(), (0,), (1,), (30,), (31,), (30, 1), (30, 2), (30, 30), (2, 30), (30, 3, 2), (0, 0), (30, 0)]
TEXTS = ["", "x", "a/b", "..", "\x1b[31m", "A\nB", "ä", "\u202e", "$x_$", "[red]", "ENSG00000000001", "X" * 400, "nan"]
ATTRIBUTES = [
    *("x", "csr_matrix", "csc_matrix", "array", "dataframe", "categorical", "string-array", "dict", "null", "0.1.0"),
    *(0, 30, -1, 10**15, 0.5, b"\xff", [30, 30], [30, 10**12], [[30, 30]], ["a", "b"], [], [-1, 30], [30.5, 30]),
]

changes = st.one_of(
    st.tuples(st.just("delete"), st.none()),
    st.tuples(st.just("array"), st.tuples(st.sampled_from(DTYPES), st.sampled_from(SHAPES), st.sampled_from(NUMBERS))),
    st.tuples(st.just("cast"), st.sampled_from(DTYPES)),
    st.tuples(st.just("value"), st.tuples(st.integers(0, 40), st.sampled_from(NUMBERS))),
    st.tuples(st.just("text"), st.tuples(st.integers(0, 40), st.sampled_from(TEXTS))),
    st.tuples(st.just("shorter"), st.integers(0, 40)),
    st.tuples(st.just("group"), st.none()),
    st.tuples(st.just("link"), st.sampled_from(["/X", "/obs", "/nowhere", "/"])),
    st.tuples(st.just("elsewhere"), st.sampled_from(["/etc/passwd", "/dev/zero", "nowhere.h5", "TINY2.h5ad"])),
    st.tuples(st.just("virtual"), st.none()),
    st.tuples(st.just("huge"), st.sampled_from([(10**7, 10**6), (10**15,), (30, 10**9)])),
    st.tuples(st.just("attribute"), st.tuples(st.integers(0, 5), st.sampled_from([None, *ATTRIBUTES]))),
)


def change_table(file: h5py.File, name: str, change: Change) -> None:
    """Apply a change to the object of that name, as far as HDF5 can hold the result."""
    kind, what = change
    item = file.get(name)
    if item is None:
        return
    attributes = {k: v for k, v in item.attrs.items() if kind != "group"}
    stored = item[...] if isinstance(item, h5py.Dataset) and item.size and item.size < 10_000 else None
    if kind == "attribute":
        names = sorted({*attributes, "encoding-type", "shape", "_index"})
        key = names[what[0] % len(names)]
        if what[1] is None:
            item.attrs.pop(key, None)
        else:
            item.attrs[key] = what[1]
        return
    if kind in ("value", "text", "cast", "shorter") and (stored is None or not stored.size):
        return
    made: Any = None
    if kind in ("value", "text"):
        with np.errstate(all="ignore"):
            made = stored.astype("f8") if kind == "value" and stored.dtype.kind in "iuf" else stored
        made.reshape(-1)[what[0] % made.size] = what[1]
    elif kind == "cast":
        with np.errstate(all="ignore"):
            made = stored.astype(what)
    elif kind == "shorter":
        made = stored[: what[()] if isinstance(what, np.ndarray) else what]
    elif kind == "array":
        with np.errstate(all="ignore"):
            made = np.full(what[1], np.array(what[2]).astype(what[0]))
    del file[name]
    if kind == "link":
        file[name] = h5py.SoftLink(what)
    elif kind == "elsewhere":
        file[name] = h5py.ExternalLink(what, name)
    elif kind == "group":
        file.create_group(name)
    elif kind == "virtual":
        layout = h5py.VirtualLayout(shape=(30, 2), dtype="f8")
        layout[:] = h5py.VirtualSource("/etc/passwd", "x", shape=(30, 2))
        file.create_virtual_dataset(name, layout)
    elif kind == "huge":
        file.create_dataset(name, shape=what, dtype="f8", chunks=True)
    elif kind != "delete":
        file.create_dataset(name, data=made, dtype=h5py.string_dtype() if made.dtype == object else None)
    if kind in ("array", "cast", "value", "text", "shorter", "huge"):
        file[name].attrs.update(attributes)


PARTS = (
    *("X", "X/data", "X/indices", "X/indptr", "obs", "obs/_index", "obs/array_row", "obs/array_col", "var"),
    *("var/_index", "var/gene_name", "obsm", "obsm/spatial"),
)


@pytest.fixture(scope="module")
def root(tiny_slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A HEST folder to change, and an encoder that is loaded once."""
    folder = Path(shutil.copytree(tiny_slides, tmp_path_factory.mktemp("fuzz") / "hest"))
    with h5py.File(folder / "st/TINY1.h5ad", "r+") as file:  # also a column of symbols
        file["var"].create_dataset("gene_name", data=[f"S{i}" for i in range(30)])
    with pytest.MonkeyPatch.context() as patch:
        load = functools.cache(extract.encoders.registry.load_encoder)
        patch.setattr("extract.encoders.registry.load_encoder", load)
        patch.setattr("hist_cache.first_reading.READER_PATIENCE_S", 3)
        patch.setattr("extract.pipeline.crops_per_second", lambda pipeline: 1.0)
        patch.chdir(folder.parent)
        yield folder


def extract_slides(root: Path, *more: str) -> tuple[int, str]:
    return outcome(
        main, "--ids", "TINY1,TINY2", "--data-root", root, "--encoder", TINY_ENCODER, "--random-weights",
        "--precision", "fp32", *more,
    )  # fmt: skip


@pytest.mark.fuzz
@fuzz(120)
@given(st.lists(st.tuples(st.sampled_from(PARTS), changes), min_size=1, max_size=2))
def test_any_table(root: Path, changed: list[tuple[str, Change]]) -> None:
    check_table(root, changed, "--dry-run")


@pytest.mark.fuzz
@fuzz(5)
@given(st.lists(st.tuples(st.sampled_from(PARTS), changes), min_size=1, max_size=1))
def test_any_table_and_the_good_slide_is_extracted(root: Path, changed: list[tuple[str, Change]]) -> None:
    shutil.rmtree("cache", ignore_errors=True)
    check_table(root, changed)
    assert "TINY2" in open_cache("cache", "custom").slides


def check_table(root: Path, changed: list[tuple[str, Change]], *more: str) -> None:
    path = root / "st/TINY1.h5ad"
    whole = path.read_bytes()
    try:
        with h5py.File(path, "r+") as file:
            for name, change in changed:
                try:
                    change_table(file, name, change)
                except (TypeError, ValueError, OSError, RuntimeError, KeyError, UnicodeError):
                    continue  # HDF5 cannot hold it
        code, text = extract_slides(root, *more)
        assert code in (0, 1)
        assert "TINY2:" not in text
    finally:
        path.write_bytes(whole)


@pytest.mark.fuzz
@fuzz(60)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=20), st.floats(0.05, 1))
def test_any_bytes_of_a_table(root: Path, flips: list[tuple[float, int]], kept: float) -> None:
    path = root / "st/TINY1.h5ad"
    whole = path.read_bytes()
    damaged = bytearray(whole[: int(kept * len(whole)) if len(flips) > 10 else len(whole)])
    for place, byte in flips:
        damaged[int(place**3 * (len(damaged) - 1))] = byte  # most of them in the headers
    try:
        path.write_bytes(damaged)
        assert extract_slides(root, "--dry-run")[0] in (0, 1)
    finally:
        path.write_bytes(whole)


odd = st.recursive(
    st.one_of(st.none(), st.booleans(), st.sampled_from(NUMBERS), st.integers(), st.floats(), st.text(max_size=5),
              st.sampled_from([*TEXTS, "\ud800", "a\0b", "1e999", "-1", "0x10", "1_0", 10**400, 1e-300])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
KEYS = ("st_technology", "pixel_size_um_estimated", "pixel_size_um_embedded", "inter_spot_dist", "spot_diameter",
        "patient", "id")  # fmt: skip


@pytest.mark.fuzz
@fuzz(60)
@given(st.one_of(st.dictionaries(st.sampled_from(KEYS), odd, min_size=1, max_size=3), odd), st.booleans())
def test_any_metadata(root: Path, values: Any, is_file: bool) -> None:
    file = root / "metadata/TINY1.json"
    whole = file.read_text()
    if isinstance(values, dict) and not is_file:
        values = json.loads(whole) | values
    try:
        file.write_text(json.dumps(values, ensure_ascii=True))
        assert extract_slides(root, "--dry-run")[0] in (0, 1)
    finally:
        file.write_text(whole)


@pytest.mark.fuzz
@fuzz(40)
@given(st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda t: t.encode(errors="replace")),
                 st.lists(st.sampled_from([b"id", b"TINY1", b",", b"\n", b'"', b"\0", b"\xff", b"1", b"-1", b"\r",
                                           b"pixel_size_um_estimated", b"st_technology", b"Visium"]),
                          max_size=25).map(b"".join)), st.booleans())  # fmt: skip
def test_any_bytes_of_metadata(root: Path, content: bytes, is_table: bool) -> None:
    file, table = root / "metadata/TINY1.json", root / "HEST_v1.csv"
    whole = file.read_bytes()
    try:
        if is_table:
            file.unlink()
            table.write_bytes(content)
        else:
            file.write_bytes(content)
        assert extract_slides(root, "--dry-run")[0] in (0, 1)
    finally:
        table.unlink(missing_ok=True)
        file.write_bytes(whole)
