"""The cache: one HDF5 file per slide with its embeddings, neighbours and counts (docs/cache-format.md).

`<cache>/<dataset>/<encoder>-<8 hex of fingerprint>/<slide>.h5`. A file is written aside and renamed when whole, so
one that has the right name is whole; `complete` and a digest of every array say so again. Beside it there may be
`<slide>.tokens<block>.h5` (`hist_cache.token_files`), which has the same fingerprint and is no slide of its own.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
from filelock import FileLock
from scipy.sparse import csr_matrix

from hist_cache.errors import HistError, InputError, StaleCacheError
from hist_cache.files import PARTIAL, atomic_write, write_json
from hist_cache.fingerprint import Fingerprint, array_digest, differences, short_hash

SCHEMA = 1
LAST = "last.json"  # which dataset was extracted last
TOKEN_FILE = re.compile(r"(?P<slide>.+)\.tokens(?P<block>\d+)\.h5")


@dataclass
class CachedSlide:
    """One slide's arrays, N spots in the order of its h5ad.

    embeddings (N, D) float16; niches: neighbourhood size -> (N, D) float16; neighbors: size -> (N, K) int32, -1 where
    there is none; coords (N, 2) float64 level-0 px; array (N, 2) int32; counts (N, G) raw, sparse; thumbnail
    (h, w, 3) uint8, the whole slide (attribute thumbnail_downsample: level-0 px per thumbnail px).
    """

    barcodes: list[str]
    coords: np.ndarray
    array: np.ndarray
    embeddings: np.ndarray
    counts: csr_matrix
    genes: list[str]
    thumbnail: np.ndarray
    niches: dict[int, np.ndarray] = field(default_factory=dict)
    neighbors: dict[int, np.ndarray] = field(default_factory=dict)
    attributes: dict[str, str | float | int] = field(default_factory=dict)  # lattice, um_per_px, sides, patient

    def __len__(self) -> int:
        return len(self.barcodes)


def write_slide(path: Path, slide: CachedSlide, fingerprint: Fingerprint) -> None:
    """Write one complete cache file; nothing of that name is ever half-written."""
    arrays: dict[str, np.ndarray] = {
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
    with atomic_write(path) as aside, h5py.File(aside, "w", locking=False) as file:
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
    """Open a file of a cache for reading; `HistError` where it is unreadable, incomplete or of another format."""
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
    with open_complete(path) as file:
        return Fingerprint.from_json(file.attrs["fingerprint"])


def neighborhoods(path: Path) -> list[int]:
    """The neighbourhood sizes a file holds."""
    with open_complete(path) as file:
        return _sizes(file)


def _sizes(file: h5py.File) -> list[int]:
    return sorted(int(k) for k in file.get("niche", {}))


def read_slide(path: Path, sizes: list[int] | None = None) -> CachedSlide:
    """Read a slide with the given neighbourhood sizes (default: all it has)."""
    with open_complete(path) as file:
        have = _sizes(file)
        for size in sizes or []:
            if size not in have:
                raise InputError(f"{path}: no niches of {size} neighbours; run hist-extract --neighbors {size}")
        sizes = have if sizes is None else sizes
        genes = [g.decode() for g in file["genes"][:]]
        counts = csr_matrix(
            (file["counts/data"][:], file["counts/indices"][:], file["counts/indptr"][:]),
            shape=(len(file["barcodes"]), len(genes)),
        )
        known = ("schema", "fingerprint", "digests", "complete")
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
            attributes={k: v for k, v in file.attrs.items() if k not in known},
        )


def verify_slide(path: Path) -> list[str]:
    """Re-read every array and compare its digest; returns what is wrong, nothing where all is well."""
    try:
        with open_complete(path) as file:
            expected = json.loads(file.attrs["digests"])
            found: list[str] = []
            file.visititems(lambda name, node: found.append(name) if isinstance(node, h5py.Dataset) else None)
            problems = [f"{name} is missing" for name in expected if name not in found]
            problems += [f"{name} is not listed" for name in found if name not in expected]
            for name in found:
                try:
                    if name in expected and array_digest(file[name][:]) != expected[name]:
                        problems.append(f"{name} has other values than when it was written")
                except OSError as error:
                    problems.append(f"{name} cannot be read ({error})")
            fingerprint = Fingerprint.from_json(file.attrs["fingerprint"])
    except HistError as error:
        return [str(error)]
    return problems + misplaced(path, fingerprint)


def misplaced(path: Path, fingerprint: Fingerprint) -> list[str]:
    """What is wrong with the folder that a file lies in: nothing, where its name has the hash of the identity."""
    if path.parent.name.endswith(found := short_hash(fingerprint.common)):
        return []
    return [f"its identity is {found}, but the folder is {path.parent.name}"]


@dataclass(frozen=True)
class Cache:
    """A folder of cache files of one dataset and encoder; `open_cache` finds it."""

    folder: Path

    @property
    def dataset(self) -> str:
        return self.folder.parent.name

    @property
    def slides(self) -> list[str]:
        """IDs of the complete slides, sorted."""
        return [p.stem for p in slide_files(self.folder)]

    def path(self, slide: str) -> Path:
        return self.folder / f"{slide}.h5"

    def read(self, slide: str, sizes: list[int] | None = None) -> CachedSlide:
        return read_slide(self.path(slide), sizes)

    def fingerprint(self) -> Fingerprint:
        """The common identity; `StaleCacheError` where a file does not belong into this folder."""
        first: Fingerprint | None = None
        for slide in self.slides:
            found = read_fingerprint(self.path(slide))
            first = first or found
            if different := differences(first.common, found.common):
                raise StaleCacheError(f"{self.path(slide)}: made otherwise than the rest: {'; '.join(different)}")
        if first is None:
            raise InputError(f"{self.folder}: no cache files; run hist-extract")
        if not self.folder.name.endswith(short_hash(first.common)):
            raise StaleCacheError(
                f"{self.folder}: its files were made as {short_hash(first.common)}; "
                "was the folder renamed, or a file copied in?"
            )
        return first


def open_cache(path: str | Path, dataset: str | None = None, encoder: str | None = None) -> Cache:
    """Open a cache: one encoder's folder, or the root, a dataset (default: extracted last) and an encoder's name.

    Raises `InputError` where there is none, or several encoders and no choice.
    """
    path = Path(path)
    if slide_files(path):
        return Cache(path)
    dataset = dataset or last_dataset(path)
    folders = cache_folders(path, dataset)
    if encoder is not None:
        folders = [f for f in folders if f.name.rsplit("-", 1)[0] == encoder or f.name == encoder]
    if not folders:
        what = f"{dataset} with {encoder}" if encoder else dataset
        raise InputError(f"{path}: no cache of {what}; run hist-extract --dataset {dataset}")
    last = read_last(path)
    if len(folders) > 1 and last.get("dataset") == dataset:
        folders = [f for f in folders if f.name == last.get("folder")] or folders
    if len(folders) > 1:
        names = ", ".join(f.name for f in folders)
        raise InputError(f"{path / dataset}: several caches ({names}); choose one with --encoder")
    return Cache(folders[0])


def slide_files(folder: Path) -> list[Path]:
    """The complete slides' files, sorted by slide; token files are none."""
    return sorted((p for p in folder.glob("*.h5") if not TOKEN_FILE.fullmatch(p.name)), key=lambda p: p.stem)


def cache_folders(root: Path, dataset: str) -> list[Path]:
    """A dataset's cache folders that hold at least one complete slide."""
    return sorted(f for f in (root / dataset).glob("*") if f.is_dir() and slide_files(f))


def read_last(root: Path) -> dict[str, str]:
    try:
        return json.loads((root / LAST).read_text())
    except (OSError, json.JSONDecodeError):
        return {}


def last_dataset(root: Path) -> str:
    """The dataset extracted last; `InputError` where none was."""
    if name := read_last(root).get("dataset"):
        return name
    raise InputError(f"{root}: nothing extracted here yet; run hist-extract --dataset NAME first, or give --cache")


def remember_last(root: Path, cache: Cache) -> None:
    with FileLock(root / f".{LAST}.lock"):  # two extractions may end at once
        write_json(root / LAST, {"dataset": cache.dataset, "folder": cache.folder.name})


def partial_files(folder: Path) -> list[Path]:
    """Left by a run that is still going, or was killed."""
    return sorted(folder.glob(f"*.h5{PARTIAL}"))
