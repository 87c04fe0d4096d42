"""Token files, `<slide>.tokens<block>.h5`: activations that enter a block of the encoder (docs/cache-format.md).

`spot` and `niche/<size>` are (N, T, W) float16: for each of N spots the T tokens of its crop, W values each. A chunk of
the file is one crop without compression, so any crop is one read at a known place, and a file is never read as a whole.
The file has a digest of each crop, and a crop is compared with it when it is read for the first time.
`hist_cache.token_writer` writes these files.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hist_cache.cache import Cache
from hist_cache.cache_file import TOKEN_FILE, CacheFile, open_complete
from hist_cache.cached_slide import not_finite
from hist_cache.errors import DamagedCacheError, HistError, InputError, StaleCacheError
from hist_cache.fingerprint import Fingerprint, differences
from hist_cache.slide_file import read_fingerprint, read_header

TOKEN_TYPE = np.dtype("<f2")  # float16, little-endian
SPOT = "spot"  # name of the tokens of spot crops
CROP_DIGESTS = "crop_digests"  # group of the digests of single crops; 0.1 wrote none

log = logging.getLogger(__name__)


def token_path(folder: Path, slide: str, block: int) -> Path:
    """Return the token file of a slide and a block, which may not exist."""
    return folder / f"{slide}.tokens{block}.h5"


def token_files(folder: Path) -> list[Path]:
    """List the complete token files of a cache folder, sorted."""
    return sorted(p for p in folder.glob("*.h5") if TOKEN_FILE.fullmatch(p.name))


def token_names(sizes: Sequence[int]) -> list[str]:
    """List the names of the tokens in a file with niches of these sizes: `[6]` gives `["spot", "niche/6"]`."""
    return [SPOT, *(f"niche/{size}" for size in sizes)]


def token_bytes(crops: int, shape: tuple[int, int]) -> int:
    """Return the size on disk, in bytes, of the tokens of that many crops.

    Args:
        crops: Number of crops.
        shape: (T, W), tokens of a crop and values of a token.
    """
    return crops * shape[0] * shape[1] * TOKEN_TYPE.itemsize


def stale_reasons(path: Path) -> list[str]:
    """Compare what a token file and the embeddings of the same slide were made from.

    Returns:
        A list with one text if there are differences, else an empty list.

    Raises:
        HistError: One of the two files cannot be read.
    """
    match = TOKEN_FILE.fullmatch(path.name)
    slide_file = path.with_name(f"{match['slide'] if match else path.stem}.h5")
    return _stale_reasons(read_fingerprint(path), read_fingerprint(slide_file), slide_file)


def _stale_reasons(own: Fingerprint, expected: Fingerprint, slide_file: Path) -> list[str]:
    changes = differences(own.common, expected.common) + differences(own.slide, expected.slide)
    return [f"stale beside {slide_file.name}: {'; '.join(changes)}"] if changes else []


class Tokens:
    """The token file of a slide, open for reading, also from several threads at the same time.

    Attributes:
        path: The file.
        block: Index of the encoder block whose input the tokens are.
        barcodes: (N,) barcodes of the spots.
        sizes: Neighbourhood sizes of the niches in the file, sorted.
        shape: (T, W), tokens of a crop and values of a token.
    """

    def __init__(self, path: Path, whole: bool = False) -> None:
        """Open a file.

        Args:
            path: The file.
            whole: Read all crops of a file of version 0.1 now, to compare them with its digest; they are not compared
                otherwise, because such a file has one digest for all of them.

        Raises:
            HistError: The file is not readable, is not complete or was repacked by another program.
        """
        self.path = path
        self._offsets: dict[str, NDArray[np.int64]] = {}  # name -> (N,) byte offsets of the crops in the file
        self._digests: dict[str, NDArray[np.uint8]] = {}  # name -> (N, 32) digests of the crops; 0.1 wrote none
        self._checked: dict[str, NDArray[np.bool_]] = {}  # name -> (N,) whether a crop was compared with its digest
        with open_complete(path) as file:
            self.block = int(file.attributes["block"])
            self.barcodes = file.texts("barcodes")
            self.sizes = file.sizes
            self.shape: tuple[int, int] = file.dataset(SPOT).shape[1:]
            for name in self.names:
                dataset = file.dataset(name)
                if dataset.shape != (len(self), *self.shape):
                    raise DamagedCacheError(path, f"{name} has the shape {dataset.shape} for {len(self)} spots")
                self._offsets[name] = _chunk_offsets(path, dataset)
                if f"{CROP_DIGESTS}/{name}" in file.hdf5 or whole:
                    self._digests[name] = _crop_digests(file, name)
                else:
                    _note_unchecked(path.parent)
                self._checked[name] = np.zeros(len(self), dtype=bool)
        self._descriptor = os.open(path, os.O_RDONLY)

    @property
    def names(self) -> list[str]:
        """Names of the tokens in the file."""
        return token_names(self.sizes)

    def __len__(self) -> int:
        return len(self.barcodes)

    def read(self, name: str, rows: Any, out: Any = None) -> Any:
        """Read the tokens of some crops, in the order of the file and without h5py, whose lock would block threads.

        Args:
            name: `spot` or `niche/<size>`.
            rows: (k,) rows of the crops, as an array, a tensor or a list.
            out: A numpy array or a torch tensor on the CPU, (k, T, W) float16, to read into; None makes a new array.

        Returns:
            `out` or the new array, (k, T, W) float16, in the order of `rows`.

        Raises:
            InputError: The file has no such tokens or no such crops.
            DamagedCacheError: The file ends too early, or a crop is not what was written.
            ValueError: `out` has another shape or type, or is not contiguous.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if name not in self._offsets:
            raise InputError(f"{self.path}: no {name} tokens; it has {', '.join(self._offsets)}")
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise InputError(f"{self.path}: crops {rows.min()} to {rows.max()} asked for; it has {len(self)}")
        if out is None:
            out = np.empty((len(rows), *self.shape), dtype=TOKEN_TYPE)
        target = out if isinstance(out, np.ndarray) else out.numpy()
        if target.shape != (len(rows), *self.shape) or target.dtype != TOKEN_TYPE or not target.flags.c_contiguous:
            raise ValueError(f"a contiguous float16 buffer of {(len(rows), *self.shape)} is needed")
        offsets = self._offsets[name][rows]
        for i in np.argsort(offsets, kind="stable").tolist():
            self._fill(memoryview(target[i]).cast("B"), int(offsets[i]))
            if not self._checked[name][rows[i]]:
                self._check(name, int(rows[i]), target[i])
        return out

    def _check(self, name: str, row: int, crop: NDArray[np.float16]) -> None:
        stated = self._digests.get(name)
        if stated is not None and hashlib.sha256(crop.data).digest() != stated[row].tobytes():
            raise DamagedCacheError(self.path, f"{name} has other values than when it was written (crop {row})")
        if not_finite(crop).any():
            raise DamagedCacheError(self.path, f"{name} has NaN or infinite tokens (crop {row})")
        self._checked[name][row] = True

    def _fill(self, part: memoryview, offset: int) -> None:
        while part:
            n_bytes = os.preadv(self._descriptor, [part], offset)
            if not n_bytes:
                raise DamagedCacheError(self.path, "ends too early")
            part, offset = part[n_bytes:], offset + n_bytes

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def __enter__(self) -> Tokens:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _chunk_offsets(path: Path, data: h5py.Dataset) -> NDArray[np.int64]:
    """Return the (N,) byte offsets of the crops in the file."""
    offsets = np.full(len(data), -1, dtype=np.int64)
    crop_bytes = token_bytes(1, data.shape[1:])
    if data.dtype == TOKEN_TYPE and data.chunks == (1, *data.shape[1:]):

        def add_offset(chunk: Any) -> None:
            if chunk.size == crop_bytes and not chunk.filter_mask:
                offsets[chunk.chunk_offset[0]] = chunk.byte_offset

        data.id.chunk_iter(add_offset)
    if (offsets < 0).any() or data.compression:
        raise HistError(f"{path}: {data.name} is not stored crop by crop; was the file repacked? extract again")
    return offsets


@cache
def _note_unchecked(folder: Path) -> None:
    """Warn, once for a folder."""
    log.warning(
        f"{folder}: tokens of version 0.1 have no digests of single crops, so they are used without a check; "
        "hist-extract --verify checks them"
    )


def _crop_digests(file: CacheFile, name: str) -> NDArray[np.uint8]:
    """Return the (N, 32) digests of the crops; for a file of version 0.1 they are taken now, of all that it holds.

    Raises:
        DamagedCacheError: They are not those that the digest of all crops was made of.
    """
    tokens = file.dataset(name)
    stored = f"{CROP_DIGESTS}/{name}"
    if stored in file.hdf5:
        sums: NDArray[np.uint8] = file.dataset(stored)[:]
    else:
        sums = np.stack([np.frombuffer(hashlib.sha256(crop).digest(), dtype=np.uint8) for crop in tokens])
    if crops_digest(tokens.shape, sums) != file.digests.get(name):
        raise DamagedCacheError(file.path, f"{name} has other values than when it was written")
    return sums


def crops_digest(shape: tuple[int, ...], sums: NDArray[np.uint8]) -> str:
    """Return one SHA-256 for all crops, made from the digests of single crops, which can be computed in any order.

    Args:
        shape: (N, T, W) of the tokens.
        sums: (N, 32) SHA-256 of each crop.
    """
    return hashlib.sha256(f"{TOKEN_TYPE.str} {shape}".encode() + sums.tobytes()).hexdigest()


def open_tokens(cache: Cache, slide: str, block: int, sizes: Sequence[int] = (6,)) -> Tokens:
    """Open the token file of a slide and check that it fits the embeddings of the slide.

    Args:
        cache: The cache of the slide.
        slide: Slide ID.
        block: Index of the encoder block whose input the tokens are.
        sizes: Neighbourhood sizes that the file must have.

    Raises:
        InputError: There is no such file, or it lacks a size. The message has the command that makes it.
        StaleCacheError: The tokens were made from something else than the embeddings. The message has the differences.
        HistError: The file is not complete or not readable.
    """
    path = token_path(cache.folder, slide, block)
    slide_file = cache.path(slide)
    expected = read_fingerprint(slide_file)
    command = extract_command(cache.dataset, expected, block, sizes)
    if not path.exists():
        raise InputError(f"{path}: no such file; run {command}")
    try:
        header = read_header(path)
        reasons = _stale_reasons(header.fingerprint, expected, slide_file)
    except HistError as error:
        raise HistError(f"{error}: {command}") from None
    if reasons:
        raise StaleCacheError(f"{path}: {reasons[0]}; delete it and run {command}")
    if missing := sorted(set(sizes) - set(header.sizes)):
        raise InputError(f"{path}: no tokens of niches of {missing[0]} neighbours; run {command}")
    tokens = Tokens(path)
    if problem := _misfit(tokens, slide_file, block):
        tokens.close()
        raise StaleCacheError(f"{path}: {problem}; delete it, run {command}")
    return tokens


def _misfit(tokens: Tokens, slide_file: Path, block: int) -> str:
    """Return why tokens cannot be used beside the embeddings of a slide; empty where they can."""
    if tokens.block != block:
        return f"holds tokens of block {tokens.block}; was it renamed?"
    with open_complete(slide_file) as file:
        same = file.texts("barcodes") == tokens.barcodes
    return "" if same else f"its spots are not those of {slide_file.name}"


def extract_command(dataset: str, fingerprint: Fingerprint, block: int, sizes: Sequence[int]) -> str:
    """Return the hist-extract command that makes the tokens of a cache.

    Args:
        dataset: Name of the dataset.
        fingerprint: The fingerprint of the cache's embeddings.
        block: Index of the encoder block whose input the tokens are.
        sizes: Neighbourhood sizes.
    """
    encoder = f"--encoder {fingerprint.common.get('encoder')}"
    if not fingerprint.common.get("pretrained", True):
        encoder += " --random-weights"
    numbers = ",".join(str(size) for size in sizes)
    return f"hist-extract --dataset {dataset} {encoder} --neighbors {numbers} --tokens-at {block}"


def token_blocks(cache: Cache, slides: Sequence[str]) -> list[int]:
    """List the blocks for which each of these slides has a complete token file, sorted.

    Tokens of block b suit any adapter whose first block is b or later, because the blocks between can be run each time.
    """
    slides_at: dict[int, set[str]] = {}
    for path in token_files(cache.folder):
        if match := TOKEN_FILE.fullmatch(path.name):
            slides_at.setdefault(int(match["block"]), set()).add(match["slide"])
    return sorted(block for block, slides_with_file in slides_at.items() if slides_with_file >= set(slides))
