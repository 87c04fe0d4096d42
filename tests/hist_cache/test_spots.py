"""h5ad files that somebody else has made: read where they are sound, else refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pytest
from scipy.sparse import csc_matrix, csr_matrix

from hist_cache.errors import SlideError
from hist_cache.slides import find_slide
from hist_cache.spots import Spots, count_spots, read_spots

Spoil = Callable[[h5py.File], object]


def read(root: Path, any_scale: bool = False) -> Spots:
    return read_spots(find_slide(root, "TINY1"), any_scale)


def put(file: h5py.File, name: str, values: Any) -> None:
    """Replace an array, and keep its attributes."""
    attributes = dict(file[name].attrs)
    del file[name]
    file[name] = values
    file[name].attrs.update(attributes)


def put_at(file: h5py.File, name: str, index: Any, value: Any, dtype: Any = None) -> None:
    values = file[name][:] if dtype is None else file[name][:].astype(dtype)
    values[index] = value
    put(file, name, values)


def dense(file: h5py.File, values: Any) -> None:
    del file["X"]
    file["X"] = values
    file["X"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})


def elsewhere(file: h5py.File, name: str, link: Any) -> None:
    del file[name]
    file[name] = link


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(shape=(30, 2), dtype="f8")
    layout[:] = h5py.VirtualSource("/tmp/other.h5", "x", shape=(30, 2))
    del file["obsm/spatial"]
    file["obsm"].create_virtual_dataset("spatial", layout)


def external(file: h5py.File) -> None:
    del file["obsm/spatial"]
    file["obsm"].create_dataset("spatial", shape=(30, 2), dtype="f8", external=[("/etc/passwd", 0, 480)])


BAD: dict[str, tuple[Spoil, str]] = {
    "count above int32": (lambda f: put_at(f, "X/data", 0, 2.0**31, "f8"), "a count of 2.147e+09"),
    "count of infinity": (lambda f: put_at(f, "X/data", 0, np.inf), "1 counts are NaN or negative"),
    "sum of repeated entries above int32": (
        lambda f: dense_repeated(f, 2**31 - 1), "a count of 4.295e+09"),
    "index behind the table": (lambda f: put_at(f, "X/indices", 0, 30), "no valid sparse matrix"),
    "index below 0": (lambda f: put_at(f, "X/indices", 0, -1), "no valid sparse matrix"),
    "indptr goes back": (lambda f: put_at(f, "X/indptr", 3, 0), "no valid sparse matrix"),
    "indptr behind the data": (lambda f: put_at(f, "X/indptr", -1, 10**6), "X"),
    "indices of another length": (lambda f: put(f, "X/indices", f["X/indices"][:-5]), "X"),
    "sparse in another byte order": (
        lambda f: put(f, "X/data", f["X/data"][:].astype(f["X/data"].dtype.newbyteorder())), "another byte order"),
    "no data": (lambda f: f["X"].__delitem__("data"), "cannot be read"),
    "no shape": (lambda f: f["X"].attrs.__delitem__("shape"), "X states no number of spots"),
    "a scalar shape": (lambda f: f["X"].attrs.__setitem__("shape", 30), "X states no number of spots"),
    "a shape of three": (lambda f: f["X"].attrs.__setitem__("shape", [30, 30, 1]), "X states no number of spots"),
    "a shape of texts": (lambda f: f["X"].attrs.__setitem__("shape", ["a", "b"]), "X states no number of spots"),
    "a negative shape": (lambda f: f["X"].attrs.__setitem__("shape", [-1, 30]), "X has a size of -1"),
    "a huge shape": (lambda f: f["X"].attrs.__setitem__("shape", [30, 10**15]), "X has a size of 30 x 1,000,000"),
    "more genes than names": (lambda f: f["X"].attrs.__setitem__("shape", [30, 31]), "var/_index has shape (30,)"),
    "texts as counts": (lambda f: dense(f, np.full((30, 30), b"7")), "X holds"),
    "complex counts": (lambda f: dense(f, np.ones((30, 30), "c8")), "X holds complex64"),
    "all zero": (lambda f: dense(f, np.zeros((30, 30))), "all counts are 0"),
    "X is one number": (lambda f: dense(f, 7), "X states no number"),
    "X is one row": (lambda f: dense(f, np.ones(30)), "X states no number"),
    "more than the memory": (lambda f: huge(f), "more than a third of the free memory"),
    "no X": (lambda f: f.__delitem__("X"), "no X"),
    "no obs": (lambda f: f.__delitem__("obs"), "no obs"),
    "no var": (lambda f: f.__delitem__("var"), "no var"),
    "no obsm": (lambda f: f.__delitem__("obsm"), "no obsm['spatial']"),
    "obsm is an array": (lambda f: (f.__delitem__("obsm"), f.__setitem__("obsm", [1])), "no obsm"),
    "obsm is a huge array": (lambda f: instead(f, "obsm"), "no obsm"),
    "obs is a huge array": (lambda f: instead(f, "obs"), "no obs"),
    "no index": (lambda f: f["obs/_index"].parent.__delitem__("_index"), "no obs/_index"),
    "the index elsewhere": (lambda f: f["obs"].attrs.__setitem__("_index", "../X"), "no obs/../X"),
    "one column": (lambda f: put(f, "obsm/spatial", np.ones((30, 1))), "obsm['spatial'] has shape (30, 1)"),
    "one axis": (lambda f: put(f, "obsm/spatial", np.ones(30)), "obsm['spatial'] has shape (30,)"),
    "a row too few": (lambda f: put(f, "obsm/spatial", f["obsm/spatial"][:-1]), "obsm['spatial'] has shape (29, 2)"),
    "texts as positions": (lambda f: put(f, "obsm/spatial", np.full((30, 2), b"7")), "obsm['spatial'] "),
    "far away": (lambda f: put_at(f, "obsm/spatial", 0, 1e18), "1 spots lie at 1e+18 px"),
    "farther": (lambda f: put_at(f, "obsm/spatial", 0, 1e300), "1 spots lie at 1e+300 px"),
    "infinitely far": (lambda f: put_at(f, "obsm/spatial", 0, np.inf), "1 spots have no position"),
    "all in one place": (lambda f: put_at(f, "obsm/spatial", slice(None), 100), "spots lie 0 um apart"),
    "too close": (lambda f: put(f, "obsm/spatial", f["obsm/spatial"][:] / 10), "spots lie 10 um apart"),
    "too far from each other": (lambda f: put(f, "obsm/spatial", f["obsm/spatial"][:] * 64), "um apart, and inter"),
    "a line break in a gene": (lambda f: f["var/_index"].__setitem__(0, "A\nB"), "a name with control characters"),
    "a gene without a name": (lambda f: f["var/_index"].__setitem__(0, ""), "an empty name"),
    "a long gene": (lambda f: f["var/_index"].__setitem__(0, "A" * 5000), "a name of 5,000 characters"),
    "bytes as barcodes": (lambda f: put(f, "obs/_index", np.array([b"\xff%d" % i for i in range(30)])), "cannot be"),
    "another file": (lambda f: elsewhere(f, "X", h5py.ExternalLink("/etc/passwd", "X")), "X is a link"),
    "another place": (lambda f: elsewhere(f, "obs", h5py.SoftLink("/var")), "obs is a link"),
    "a circle": (lambda f: f["X"].__setitem__("again", f["X"]), None),
    "positions in another file": (virtual, "lies in another file"),
    "positions in any file": (external, "lies in another file"),
}  # fmt: skip


def dense_repeated(file: h5py.File, count: int) -> None:
    """Two entries for one spot and gene."""
    put_at(file, "X/indices", slice(0, 2), 0)
    put_at(file, "X/data", slice(0, 2), count, "i8")


def instead(file: h5py.File, name: str) -> None:
    """A huge array in place of a group: looking for a name in it would read it row by row."""
    del file[name]
    file.create_dataset(name, shape=(10**15,), dtype="f8", chunks=(1000,))


def huge(file: h5py.File) -> None:
    """A file of a few kB that states terabytes."""
    del file["X"]
    file.create_dataset("X", shape=(10**6, 10**6), dtype="f4", chunks=(1000, 1000))


@pytest.mark.parametrize("kind", BAD)
def test_bad_tables_end_in_one_line(hest_root: Path, kind: str) -> None:
    spoil, says = BAD[kind]
    path = hest_root / "st/TINY1.h5ad"
    with h5py.File(path, "r+") as file:
        spoil(file)
    if says is None:
        read(hest_root)
        return
    with pytest.raises(SlideError) as error:
        read(hest_root)
    assert says in str(error.value)
    assert str(error.value).startswith(f"TINY1: {path}: ")
    assert "\n" not in str(error.value)


def test_files_that_are_no_tables(hest_root: Path) -> None:
    path = hest_root / "st/TINY1.h5ad"
    files = find_slide(hest_root, "TINY1")
    whole = path.read_bytes()
    for content in (b"", b"encrypted" * 1000, whole[:2000], whole[: len(whole) // 2]):
        path.write_bytes(content)
        for reads in (count_spots, read_spots):
            with pytest.raises(SlideError, match=r"TINY1\.h5ad: cannot be read"):
                reads(files)


def test_pipes_are_not_waited_for(hest_root: Path) -> None:
    import os

    for file in ("st/TINY1.h5ad", "wsis/TINY1.tif", "metadata/TINY1.json"):
        kept = (hest_root / file).read_bytes()
        (hest_root / file).unlink()
        os.mkfifo(hest_root / file)
        with pytest.raises(SlideError, match="not a plain file"):
            find_slide(hest_root, "TINY1")
        (hest_root / file).unlink()
        (hest_root / file).write_bytes(kept)


@pytest.mark.parametrize("make", [csc_matrix, csr_matrix, np.asarray])
@pytest.mark.parametrize("kind", ["u1", "i8", "u8", "f8"])
def test_counts_in_every_form(hest_root: Path, make: Callable[[Any], Any], kind: str) -> None:
    path = hest_root / "st/TINY1.h5ad"
    table = anndata.read_h5ad(path)
    expected = np.minimum(table.X.toarray(), 200)
    table.X = make(expected.astype(kind))
    table.write_h5ad(path)
    counts = read(hest_root).counts
    assert counts.dtype == np.int32
    np.testing.assert_array_equal(counts.toarray(), expected)


def test_counts_in_half_precision(hest_root: Path) -> None:
    with h5py.File(hest_root / "st/TINY1.h5ad", "r+") as file:
        dense(file, np.arange(900, dtype="f2").reshape(30, 30))
    np.testing.assert_array_equal(read(hest_root).counts.toarray(), np.arange(900).reshape(30, 30))


def test_the_largest_count_is_kept(hest_root: Path) -> None:
    with h5py.File(hest_root / "st/TINY1.h5ad", "r+") as file:
        put_at(file, "X/data", 0, 2**31 - 1, "i8")
    assert read(hest_root).counts.max() == 2**31 - 1


def test_any_scale_takes_spots_that_lie_otherwise(hest_root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with h5py.File(hest_root / "st/TINY1.h5ad", "r+") as file:
        put_at(file, "obsm/spatial", slice(None), 100)
    with pytest.raises(SlideError, match="give --any-scale"):
        read(hest_root)
    assert len(read(hest_root, any_scale=True)) == 30
    assert "29 of 30 spots lie where another one does" in caplog.text


@pytest.mark.parametrize(
    ("values", "warns"),
    [
        (np.array([f"row {i}" for i in range(30)], dtype=object), True),
        (np.arange(30) + 0.5, True),
        (np.arange(30) * 1e12, True),
        (np.full(30, np.inf), True),
        (np.full(30, np.nan), False),
        (np.array([str(i) for i in range(30)], dtype=object), False),
    ],
)
def test_array_rows_that_are_none(
    hest_root: Path, caplog: pytest.LogCaptureFixture, values: np.ndarray, warns: bool
) -> None:
    path = hest_root / "st/TINY1.h5ad"
    table = anndata.read_h5ad(path)
    table.obs["array_row"] = values
    table.write_h5ad(path)
    array = read(hest_root).array
    assert ("are no whole numbers and are not used" in caplog.text) == warns
    if warns or values.dtype == float:
        assert (array == -1).all()


def test_made_unique_as_anndata_does(hest_root: Path) -> None:
    path = hest_root / "st/TINY1.h5ad"
    names = ["A", "A", "A-1", "A", "B", "B-1", "B", *[f"G{i}" for i in range(23)]]
    table = anndata.read_h5ad(path)
    table.var_names = names
    table.write_h5ad(path)
    table.var_names_make_unique()
    assert read(hest_root).genes == list(table.var_names)
    assert len(set(table.var_names)) == 30
