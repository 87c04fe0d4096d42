"""h5ad files: parts of one that somebody else has made, and the writing of one.

What is read has no links to other files, and is no larger than the memory holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hist_cache.errors import FileProblemError, slide_error
from hist_cache.files import atomic_file
from hist_cache.first_reading import first_reader
from hist_cache.interrupts import held_interrupts
from hist_cache.memory import free_memory
from hist_cache.slides import SlideFiles
from hist_cache.texts import bad_name

if TYPE_CHECKING:
    import anndata

MAX_OBJECTS = 100_000  # in a part of a file
TABLE_PARTS = ("X", "obs", "var", "obsm")  # of a table, that are read


class TableError(FileProblemError):
    """An h5ad file cannot be used."""


@contextmanager
def open_table(files: SlideFiles, only_shape: bool = False) -> Iterator[h5py.File]:
    """Open a slide's h5ad; whatever is raised while it is read becomes a `SlideError`.

    Args:
        files: The slide.
        only_shape: Whether no more of it is read than the shape of its counts, which takes no time.
    """
    parts = TABLE_PARTS[:1] if only_shape else TABLE_PARTS
    with open_parts(files.id, files.table, parts, values=not only_shape) as file:
        yield file


@contextmanager
def open_parts(slide: str, path: Path, parts: Sequence[str], values: bool = True) -> Iterator[h5py.File]:
    """Open an h5ad of which these parts will be read; whatever is raised meanwhile becomes a `SlideError`.

    Args:
        slide: ID of the slide.
        path: The file.
        parts: Names of groups or arrays.
        values: Whether their values are read, too.
    """
    try:
        if problem := first_reader().problem(path, parts, values=values):
            raise TableError(problem, "copy or download it again")
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except Exception as error:  # HDF5, h5py and anndata raise errors of almost any kind for a damaged file
        raise slide_error(slide, path, error, "cannot be read") from error


def table_part(file: h5py.File, *path: str) -> Any:
    """Return a group or an array of the file, with all that is in it.

    Raises:
        TableError: It is not there, lies in another file, or is larger than the memory.
    """
    name, part = "/".join(path), _follow(file, *path)
    n_bytes, waiting, seen = 0, [part], set()
    while waiting:
        item = waiting.pop()
        address = h5py.h5o.get_info(item.id).addr
        if address in seen:
            continue
        seen.add(address)
        if len(seen) > MAX_OBJECTS:
            raise TableError(f"more than {MAX_OBJECTS:,} objects in {name}")
        if isinstance(item, h5py.Group):
            waiting += [_follow(item, key) for key in item]
        elif isinstance(item, h5py.Dataset):
            if item.is_virtual or item.external:
                raise TableError(f"{name} lies in another file", "write the table as one file")
            n_bytes += (item.size or 0) * item.dtype.itemsize
    if n_bytes > free_memory() / 3:
        raise TableError(f"{name} takes {n_bytes / 1e9:,.1f} GB, more than a third of the free memory")
    return part


def _follow(item: Any, *path: str) -> Any:
    """Go down from a group by names; `TableError` where there is none, or a link by path to anywhere."""
    for key in path:
        if not isinstance(item, h5py.Group) or key not in item or "/" in key:
            raise TableError(f"no {'/'.join(path)}", "write the table with anndata (0.7 or later)")
        if not isinstance(item.get(key, getlink=True), h5py.HardLink):
            raise TableError(
                f"{'/'.join(path)} is a link to another place", "write the table as one file, without links"
            )
        item = item[key]
    return item


def has_column(file: h5py.File, frame: str, name: str) -> bool:
    """Tell whether `obs`, `var` or `obsm` has an entry of that name; asking an array would read all of it."""
    group = _follow(file, frame)
    if not isinstance(group, h5py.Group):
        raise TableError(f"no {frame}", "write the table with anndata (0.7 or later)")
    return name in group


def table_column(file: h5py.File, frame: str, name: str, n: int) -> NDArray[Any]:
    """Return a column of `obs` or `var`, (n,)."""
    import anndata

    item = table_part(file, frame, name)
    if "categories" in item.attrs:
        raise TableError(f"{frame}/{name} was written by an anndata before 0.7", "write the table again with a new one")
    values = np.asarray(anndata.io.read_elem(item), dtype=object)
    if values.shape != (n,):
        raise TableError(f"{frame}/{name} has shape {values.shape} for {n:,}")
    return values


def table_names(file: h5py.File, frame: str, n: int) -> list[str]:
    """Return the names of the rows of `obs` or `var`."""
    index = _follow(file, frame).attrs.get("_index", "_index")
    names = [v.decode() if isinstance(v, bytes) else str(v) for v in table_column(file, frame, str(index), n)]
    if problem := bad_name(names):
        raise TableError(f"{frame}_names have {problem}")
    return names


def name_pictures(file: h5py.File) -> None:
    """Give the pictures in `uns/spatial` the name that squidpy and scanpy look for, without storing them twice.

    Args:
        file: An h5ad, open for writing. A slide's `images/lowres` is then its `images/hires` too.
    """
    for slide in file["uns/spatial"].values() if "uns/spatial" in file else ():
        slide["images/hires"] = slide["images/lowres"]  # a link within the file


def write_h5ad(path: Path, table: anndata.AnnData) -> None:
    """Write a table of anndata, compressed, as its own `write_h5ad` does, with `atomic_file`. Interrupts wait.

    HDF5 that is left amid a file ends in a traceback as the process ends.
    """
    from anndata.io import write_elem

    table.strings_to_categoricals()
    with held_interrupts(), atomic_file(path) as raw, h5py.File(raw, "w") as file:
        write_elem(file, "/", table, dataset_kwargs={"compression": "gzip"})
        file.pop("raw", None)  # new versions of anndata write that there is none, which old ones cannot read
        name_pictures(file)
