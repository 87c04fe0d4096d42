"""Token files, `<slide>.tokens<block>.h5`: activations that enter a block of the encoder (docs/cache-format.md).

`spot` and `niche/<size>` are (N, T, W) float16: for each of N spots the T tokens of its crop. A chunk is one crop,
uncompressed, so any crop is one read at a known place in the file; nothing is ever held but what is asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hist_cache.cache import SCHEMA, TOKEN_FILE, Cache, misplaced, neighborhoods, open_complete, read_fingerprint
from hist_cache.errors import HistError, InputError, StaleCacheError
from hist_cache.files import atomic_write
from hist_cache.fingerprint import Fingerprint, array_digest, differences

TYPE = np.dtype("<f2")
SPOT = "spot"


def token_path(folder: Path, slide: str, block: int) -> Path:
    return folder / f"{slide}.tokens{block}.h5"


def token_files(folder: Path) -> list[Path]:
    """The complete token files of a cache folder, sorted."""
    return sorted(p for p in folder.glob("*.h5") if TOKEN_FILE.fullmatch(p.name))


def dataset_names(sizes: Sequence[int]) -> list[str]:
    """`[6]` -> `["spot", "niche/6"]`."""
    return [SPOT, *(f"niche/{size}" for size in sizes)]


def token_bytes(crops: int, shape: tuple[int, int]) -> int:
    """Bytes on disk of that many crops of (T, W) tokens."""
    return crops * shape[0] * shape[1] * TYPE.itemsize


class TokenWriter:
    """Takes the tokens of crops in any order, and digests each as it comes."""

    def __init__(self, file: h5py.File, names: Sequence[str], crops: int, shape: tuple[int, int]) -> None:
        self._file, self._shape = file, (crops, *shape)
        self._sums = {name: np.zeros((crops, 32), dtype=np.uint8) for name in names}
        self._written = {name: np.zeros(crops, dtype=bool) for name in names}
        for name in names:
            file.create_dataset(name, self._shape, TYPE, chunks=(1, *shape))

    def put(self, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        """Write values (k, T, W) float16 as crops `rows` (k,) of `name`."""
        if values.dtype != TYPE or values.shape != (len(rows), *self._shape[1:]):
            raise HistError(f"{name}: tokens of {values.shape} {values.dtype} for {len(rows)} of {self._shape} crops")
        dataset, sums = self._file[name].id, self._sums[name]
        for row, crop in zip(rows.tolist(), np.ascontiguousarray(values), strict=True):
            dataset.write_direct_chunk((row, 0, 0), crop)
            sums[row] = np.frombuffer(hashlib.sha256(crop).digest(), dtype=np.uint8)
        self._written[name][rows] = True

    def digests(self) -> dict[str, str]:
        """Name -> digest; `HistError` where a crop was never written."""
        for name, written in self._written.items():
            if not written.all():
                raise HistError(f"{name}: {int((~written).sum())} of {len(written)} crops were not written")
        return {name: _digest(self._shape, sums) for name, sums in self._sums.items()}


def _digest(shape: tuple[int, ...], sums: np.ndarray) -> str:
    """sha256 over type, shape and the (N, 32) sha256 of every crop: can be had in any order of crops."""
    return hashlib.sha256(f"{TYPE.str} {shape}".encode() + sums.tobytes()).hexdigest()


@contextmanager
def written_tokens(
    path: Path,
    names: Sequence[str],
    barcodes: list[str],
    shape: tuple[int, int],
    fingerprint: Fingerprint,
    attributes: dict[str, Any],
) -> Iterator[TokenWriter]:
    """Write a token file aside: yields what takes the crops of `names`, and is renamed when all have come.

    What else a complete file of that name holds is copied over, not computed again.
    """
    with atomic_write(path) as aside, h5py.File(aside, "w", locking=False) as file:
        texts = np.array(barcodes, dtype=object)
        file.create_dataset("barcodes", data=texts, dtype=h5py.string_dtype("utf-8"))
        digests = {"barcodes": array_digest(texts)}
        if path.exists():
            with open_complete(path) as old:
                known = json.loads(old.attrs["digests"])
                for name in known.keys() - {"barcodes", *names}:
                    old.copy(old[name], file, name)
                    digests[name] = known[name]
        writer = TokenWriter(file, names, len(barcodes), shape)
        yield writer
        file.attrs.update(attributes)
        file.attrs["schema"] = SCHEMA
        file.attrs["fingerprint"] = fingerprint.to_json()
        file.attrs["digests"] = json.dumps(digests | writer.digests(), sort_keys=True)
        file.flush()
        file.attrs["complete"] = True


def verify_tokens(path: Path) -> list[str]:
    """Re-read every crop and compare the digests; returns what is wrong, nothing where all is well."""
    problems = []
    try:
        with open_complete(path) as file:
            fingerprint = Fingerprint.from_json(file.attrs["fingerprint"])
            for name, expected in json.loads(file.attrs["digests"]).items():
                try:
                    data = file[name]
                    if name == "barcodes":
                        found = array_digest(data[:])
                    else:
                        sums = [hashlib.sha256(data[row]).digest() for row in range(len(data))]
                        found = _digest(data.shape, np.frombuffer(b"".join(sums), dtype=np.uint8))
                    if found != expected:
                        problems.append(f"{name} has other values than when it was written")
                except KeyError:
                    problems.append(f"{name} is missing")
                except (OSError, RuntimeError) as error:
                    problems.append(f"{name} cannot be read ({error})")
    except HistError as error:
        return [str(error)]
    return problems + misplaced(path, fingerprint)


def stale_beside(path: Path) -> list[str]:
    """How a token file was made otherwise than its slide's embeddings; nothing where all is the same.

    Raises `HistError` where either cannot be read, which no token file is of use without.
    """
    match = TOKEN_FILE.fullmatch(path.name)
    beside = path.with_name(f"{match['slide'] if match else path.stem}.h5")
    found, known = read_fingerprint(path), read_fingerprint(beside)
    different = differences(found.common, known.common) + differences(found.slide, known.slide)
    return [f"stale beside {beside.name}: {'; '.join(different)}"] if different else []


class Tokens:
    """A slide's token file, open for reading; may be read from several threads at once."""

    def __init__(self, path: Path) -> None:
        """`HistError` where the file is unreadable or incomplete."""
        self.path = path
        self._places: dict[str, np.ndarray] = {}  # name -> (N,) byte in the file where each crop starts
        with open_complete(path) as file:
            self.block = int(file.attrs["block"])
            self.barcodes = [b.decode() for b in file["barcodes"][:]]
            self.sizes = sorted(int(size) for size in file.get("niche", {}))
            self.shape: tuple[int, int] = file[SPOT].shape[1:]
            for name in dataset_names(self.sizes):
                self._places[name] = _chunk_places(path, file[name])
        self._descriptor = os.open(path, os.O_RDONLY)

    def __len__(self) -> int:
        return len(self.barcodes)

    def read(self, name: str, rows: Any, out: Any = None) -> Any:
        """Crops `rows` (k,) of `spot` or `niche/<size>`, in that order: (k, T, W) float16.

        `out`, a numpy array or torch tensor (on the CPU, pinned for one) of that shape and type, is filled and
        returned where given; otherwise a new array is. Reads in the order of the file, without h5py and its lock.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if name not in self._places:
            raise InputError(f"{self.path}: no {name} tokens; it has {', '.join(self._places)}")
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise InputError(f"{self.path}: crops {rows.min()} to {rows.max()} asked for; it has {len(self)}")
        if out is None:
            out = np.empty((len(rows), *self.shape), dtype=TYPE)
        target = out if isinstance(out, np.ndarray) else out.numpy()
        if target.shape != (len(rows), *self.shape) or target.dtype != TYPE or not target.flags.c_contiguous:
            raise ValueError(f"a contiguous float16 buffer of {(len(rows), *self.shape)} is needed")
        places = self._places[name][rows]
        for i in np.argsort(places, kind="stable").tolist():
            self._fill(memoryview(target[i]).cast("B"), int(places[i]))
        return out

    def _fill(self, part: memoryview, place: int) -> None:
        while part:
            got = os.preadv(self._descriptor, [part], place)
            if not got:
                raise HistError(f"{self.path}: ends too early; delete it and extract again")
            part, place = part[got:], place + got

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> Tokens:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _chunk_places(path: Path, data: h5py.Dataset) -> np.ndarray:
    """(N,) where in the file each crop starts."""
    places = np.full(len(data), -1, dtype=np.int64)
    crop_bytes = token_bytes(1, data.shape[1:])
    if data.dtype == TYPE and data.chunks == (1, *data.shape[1:]):

        def note(chunk: Any) -> None:
            if chunk.size == crop_bytes and not chunk.filter_mask:
                places[chunk.chunk_offset[0]] = chunk.byte_offset

        data.id.chunk_iter(note)
    if (places < 0).any() or data.compression:
        raise HistError(f"{path}: {data.name} is not stored crop by crop; was the file repacked? extract again")
    return places


def open_tokens(cache: Cache, slide: str, block: int, sizes: Sequence[int] = (6,)) -> Tokens:
    """A slide's tokens, with the niches of these sizes, made from what the slide's embeddings were made from.

    Raises
    ------
    InputError
        There is no such file, or it lacks a size; names the command that makes it.
    StaleCacheError
        It was made from something else than `<slide>.h5`; the difference is spelled out.
    HistError
        It is incomplete or unreadable.
    """
    path = token_path(cache.folder, slide, block)
    command = extract_command(cache.dataset, read_fingerprint(cache.path(slide)), block, sizes)
    if not path.exists():
        raise InputError(f"{path}: no such file; run {command}")
    try:
        have, stale = neighborhoods(path), stale_beside(path)
    except HistError as error:
        raise HistError(f"{error}: {command}") from None
    if stale:
        raise StaleCacheError(f"{path}: {stale[0]}; delete it and run {command}")
    if lacking := sorted(set(sizes) - set(have)):
        raise InputError(f"{path}: no tokens of niches of {lacking[0]} neighbours; run {command}")
    tokens = Tokens(path)
    if tokens.block != block:
        tokens.close()
        raise StaleCacheError(f"{path}: holds tokens of block {tokens.block}; was it renamed? delete it, run {command}")
    return tokens


def extract_command(dataset: str, known: Fingerprint, block: int, sizes: Sequence[int]) -> str:
    """The hist-extract command that makes a cache's tokens."""
    encoder = f"--encoder {known.common.get('encoder')}"
    if not known.common.get("pretrained", True):
        encoder += " --random-weights"
    numbers = ",".join(str(size) for size in sizes)
    return f"hist-extract --dataset {dataset} {encoder} --neighbors {numbers} --tokens-at {block}"


def token_blocks(cache: Cache, slides: Sequence[str]) -> list[int]:
    """Blocks at which every one of these slides has a complete token file, sorted.

    Tokens at block b serve any adapter whose first block is b or later: the blocks between are run each time.
    """
    at: dict[int, set[str]] = {}
    for path in token_files(cache.folder):
        if match := TOKEN_FILE.fullmatch(path.name):
            at.setdefault(int(match["block"]), set()).add(match["slide"])
    return sorted(block for block, have in at.items() if have >= set(slides))
