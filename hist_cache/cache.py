"""The cache: one HDF5 file per slide with its embeddings, neighbours and counts (docs/cache-format.md).

A file is `<cache>/<dataset>/<encoder>-<8 hex digits of the fingerprint>/<slide>.h5`. It is renamed to this name when it
is complete; the attribute `complete` and a digest of every array allow a second check. The same folder may have
`<slide>.tokens<block>.h5` (`hist_cache.token_files`), which has the same fingerprint and is not a slide of its own.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from hist_cache.errors import HistError, InputError, StaleCacheError
from hist_cache.files import PARTIAL, atomic_file, write_json
from hist_cache.fingerprint import Fingerprint, array_digest, differences, identity_hash

SCHEMA = 1  # version of the file format
LAST = "last.json"  # name of the file that says which dataset was extracted last
TOKEN_FILE = re.compile(r"(?P<slide>.+)\.tokens(?P<block>\d+)\.h5")
FORMAT_ATTRIBUTES = ("schema", "fingerprint", "digests", "complete")  # attributes that do not describe the slide


@dataclass
class CachedSlide:
    """The arrays of one slide, with N spots in the order of its h5ad file.

    Attributes:
        barcodes: (N,) barcodes.
        coords: (N, 2) spot centres in level-0 px, x then y.
        array: (N, 2) array row and array column; -1 where they are not known.
        embeddings: (N, D) embeddings of the spot crops, float16 in the file.
        counts: (N, G) raw counts.
        genes: (G,) gene symbols.
        thumbnail: (h, w, 3) RGB image of the whole slide; attributes["thumbnail_downsample"] is the number of level-0
            px per px of the thumbnail.
        niches: Neighbourhood size -> (N, D) embeddings of the niche crops, float16 in the file.
        neighbors: Neighbourhood size -> (N, K) rows of the neighbours, -1 where there is none.
        attributes: Facts about the slide: lattice, um_per_px, side lengths of the crops, patient and others.
    """

    barcodes: list[str]
    coords: NDArray[np.float64]
    array: NDArray[np.int32]
    embeddings: NDArray[np.floating[Any]]
    counts: csr_matrix
    genes: list[str]
    thumbnail: NDArray[np.uint8]
    niches: dict[int, NDArray[np.floating[Any]]] = field(default_factory=dict)
    neighbors: dict[int, NDArray[np.int32]] = field(default_factory=dict)
    attributes: dict[str, str | float | int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.barcodes)


def write_slide(path: Path, slide: CachedSlide, fingerprint: Fingerprint) -> None:
    """Write one complete cache file.

    Args:
        path: The file; there is never an incomplete file of this name.
        slide: The arrays to write.
        fingerprint: What the slide was made from.

    Raises:
        HistError: An array has another number of rows than there are spots.
        WriteError: The disk is full, or nothing can be written there for another reason.
    """
    arrays: dict[str, NDArray[Any]] = {
        "barcodes": np.array(slide.barcodes, dtype=object),
        "coords": slide.coords.astype(np.float64),
        "array": slide.array.astype(np.int32),
        "embeddings": slide.embeddings.astype(np.float16),
        "counts/data": slide.counts.data.astype(np.int32),
        "counts/indices": slide.counts.indices.astype(np.int32),
        "counts/indptr": slide.counts.indptr.astype(np.int64),
        "genes": np.array(slide.genes, dtype=object),
        "thumbnail": slide.thumbnail,
    }
    for size, niche in sorted(slide.niches.items()):
        arrays[f"niche/{size}"] = niche.astype(np.float16)
    for size, rows in sorted(slide.neighbors.items()):
        arrays[f"neighbors/{size}"] = rows.astype(np.int32)
    n = len(slide.barcodes)
    for name, array in arrays.items():
        if not name.startswith(("counts/", "genes", "thumbnail")) and len(array) != n:
            raise HistError(f"{path}: {name} has {len(array)} rows for {n} spots")
    with atomic_file(path) as raw, h5py.File(raw, "w") as file:
        for name, array in arrays.items():
            if array.dtype == object:
                file.create_dataset(name, data=array, dtype=h5py.string_dtype("utf-8"))
            else:
                packed = array.size and name.startswith(("counts/", "thumbnail"))
                compression = {"compression": "gzip", "compression_opts": 1, "shuffle": True} if packed else {}
                file.create_dataset(name, data=array, **compression)
        for size, rows in slide.neighbors.items():
            file[f"neighbors/{size}"].attrs["K"] = rows.shape[1]
        file.attrs.update(slide.attributes)
        file.attrs["schema"] = SCHEMA
        file.attrs["fingerprint"] = fingerprint.to_json()
        file.attrs["digests"] = json.dumps({name: array_digest(array) for name, array in arrays.items()})
        file.flush()
        file.attrs["complete"] = True


def open_complete(path: Path) -> h5py.File:
    """Open a file of a cache for reading.

    Raises:
        HistError: The file is not readable, is not complete or has another format.
    """
    try:
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise HistError(f"{path}: not a readable cache file ({error}); delete it and extract again") from None
    if not file.attrs.get("complete", False):
        file.close()
        raise HistError(f"{path}: incomplete; delete it and extract again")
    if (schema := int(file.attrs.get("schema", 0))) != SCHEMA:
        file.close()
        raise HistError(f"{path}: cache format {schema}, this version reads {SCHEMA}; extract again")
    return file


def read_fingerprint(path: Path) -> Fingerprint:
    """Read what a file of a cache was made from."""
    with open_complete(path) as file:
        return Fingerprint.from_json(file.attrs["fingerprint"])


def neighborhoods(path: Path) -> list[int]:
    """List the neighbourhood sizes of a file of a cache, sorted."""
    with open_complete(path) as file:
        return _sizes(file)


def _sizes(file: h5py.File) -> list[int]:
    return sorted(int(k) for k in file.get("niche", {}))


def read_slide(path: Path, sizes: list[int] | None = None) -> CachedSlide:
    """Read a slide from its cache file.

    Args:
        path: The cache file.
        sizes: Neighbourhood sizes to read; None means all that the file has.

    Raises:
        InputError: The file has no niches of one of the sizes.
        HistError: The file is not readable, is not complete or has another format.
    """
    with open_complete(path) as file:
        sizes_in_file = _sizes(file)
        for size in sizes or []:
            if size not in sizes_in_file:
                raise InputError(f"{path}: no niches of {size} neighbours; run hist-extract --neighbors {size}")
        sizes = sizes_in_file if sizes is None else sizes
        genes = [g.decode() for g in file["genes"][:]]
        counts = csr_matrix(
            (file["counts/data"][:], file["counts/indices"][:], file["counts/indptr"][:]),
            shape=(len(file["barcodes"]), len(genes)),
        )
        return CachedSlide(
            barcodes=[b.decode() for b in file["barcodes"][:]],
            coords=file["coords"][:],
            array=file["array"][:],
            embeddings=file["embeddings"][:],
            counts=counts,
            genes=genes,
            thumbnail=file["thumbnail"][:],
            niches={k: file[f"niche/{k}"][:] for k in sizes},
            neighbors={k: file[f"neighbors/{k}"][:] for k in sizes},
            attributes={k: v for k, v in file.attrs.items() if k not in FORMAT_ATTRIBUTES},
        )


@dataclass(frozen=True)
class Cache:
    """The cache files of one dataset and encoder, as found by `open_cache`.

    Attributes:
        folder: The folder of the files.
    """

    folder: Path

    @property
    def dataset(self) -> str:
        """Name of the dataset."""
        return self.folder.parent.name

    @property
    def slides(self) -> list[str]:
        """IDs of the complete slides, sorted."""
        return [p.stem for p in slide_files(self.folder)]

    def path(self, slide: str) -> Path:
        """Return the cache file of a slide, which may not exist."""
        return self.folder / f"{slide}.h5"

    def read(self, slide: str, sizes: list[int] | None = None) -> CachedSlide:
        """Read a slide with the given neighbourhood sizes (see `read_slide`)."""
        return read_slide(self.path(slide), sizes)

    def fingerprint(self) -> Fingerprint:
        """Return the fingerprint of the first slide, whose common part is the same for all slides.

        Raises:
            InputError: The folder has no cache files.
            StaleCacheError: A file was made in another way than the rest, or does not fit the name of the folder.
        """
        first: Fingerprint | None = None
        for slide in self.slides:
            fingerprint = read_fingerprint(self.path(slide))
            first = first or fingerprint
            if changes := differences(first.common, fingerprint.common):
                raise StaleCacheError(f"{self.path(slide)}: made otherwise than the rest: {'; '.join(changes)}")
        if first is None:
            raise InputError(f"{self.folder}: no cache files; run hist-extract")
        identity = identity_hash(first.common)
        if not self.folder.name.endswith(identity):
            raise StaleCacheError(
                f"{self.folder}: its files were made as {identity}; was the folder renamed, or a file copied in?"
            )
        return first


def open_cache(path: str | Path, dataset: str | None = None, encoder: str | None = None) -> Cache:
    """Open a cache.

    Args:
        path: The folder of one encoder, or the root of the cache.
        dataset: Name of the dataset in the root; None means the one extracted last.
        encoder: Name of the encoder, or of its folder; None means the only one, or the one extracted last. A cache of a
            fine-tuned encoder is opened by the name of its folder only.

    Raises:
        InputError: There is no such cache, or there are several and the choice is not clear.
    """
    path = Path(path)
    if slide_files(path):
        return Cache(path)
    dataset = dataset or last_dataset(path)
    folders = cache_folders(path, dataset)
    if encoder is not None:
        if exact := [f for f in folders if f.name == encoder]:
            return Cache(exact[0])
        folders = [f for f in folders if f.name.rsplit("-", 1)[0] == encoder]
    if not folders:
        what = f"{dataset} with {encoder}" if encoder else dataset
        raise InputError(f"{path}: no cache of {what}; run hist-extract --dataset {dataset}")
    plain = [f for f in folders if not has_adapter(f)]
    if not plain:
        names = ", ".join(f.name for f in folders)
        raise InputError(
            f"{path / dataset}: only caches of encoders that were fine-tuned ({names}); choose one with --encoder, by "
            "the name of its folder"
        )
    last = read_last(path)
    if len(plain) > 1 and last.get("dataset") == dataset:
        plain = [f for f in plain if f.name == last.get("folder")] or plain
    if len(plain) > 1:
        names = ", ".join(f.name for f in plain)
        raise InputError(f"{path / dataset}: several caches ({names}); choose one with --encoder")
    return Cache(plain[0])


def has_adapter(folder: Path) -> bool:
    """Whether a cache folder holds embeddings of an encoder with an adapter; one that cannot be read counts as not."""
    try:
        return read_fingerprint(slide_files(folder)[0]).common.get("lora") is not None
    except (HistError, ValueError, KeyError):
        return False


def slide_files(folder: Path) -> list[Path]:
    """List the files of complete slides, without token files, sorted by slide."""
    return sorted((p for p in folder.glob("*.h5") if not TOKEN_FILE.fullmatch(p.name)), key=lambda p: p.stem)


def cache_folders(root: Path, dataset: str) -> list[Path]:
    """List the cache folders of a dataset that have at least one complete slide, sorted."""
    return sorted(f for f in (root / dataset).glob("*") if f.is_dir() and slide_files(f))


def read_last(root: Path) -> dict[str, str]:
    """Read the dataset and the folder that were extracted last; an empty dict if there are none."""
    try:
        last: dict[str, str] = json.loads((root / LAST).read_text())
    except (OSError, json.JSONDecodeError):
        return {}
    return last


def last_dataset(root: Path) -> str:
    """Return the dataset that was extracted last.

    Raises:
        InputError: Nothing was extracted to this root.
    """
    if name := read_last(root).get("dataset"):
        return name
    raise InputError(f"{root}: nothing extracted here yet; run hist-extract --dataset NAME first, or give --cache")


def remember_last(root: Path, cache: Cache) -> None:
    """Write which dataset and folder were extracted last, for `read_last`, unless it says so already.

    A cache of a fine-tuned encoder does not become what is opened by default; where there is nothing else, its dataset
    does.
    """
    before = read_last(root)
    last = {"dataset": cache.dataset, "folder": cache.folder.name}
    if has_adapter(cache.folder):
        last = before or {"dataset": cache.dataset}
    if last != before:
        write_json(root / LAST, last)


def partial_files(folder: Path) -> list[Path]:
    """List the files that are not complete, because their extraction is still running or was killed."""
    return sorted(folder.glob(f"*.h5*{PARTIAL}"))
