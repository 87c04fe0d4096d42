"""Verify the files of a cache: read every array again, compare its digest, and check what it must mean."""

from __future__ import annotations

from pathlib import Path

import h5py

from hist_cache.cache_file import CacheFile, open_complete
from hist_cache.errors import DamagedCacheError, HistError
from hist_cache.fingerprint import Fingerprint, identity_hash
from hist_cache.slide_file import read_slide
from hist_cache.token_files import CROP_DIGESTS, Tokens


def verify_slide(path: Path) -> list[str]:
    """Verify the cache file of a slide.

    Returns:
        One text for each problem; an empty list if the file is sound.
    """
    try:
        with open_complete(path) as file:
            problems = _unlisted(file) + [p for name in file.digests for p in _array_problems(file, name)]
            fingerprint = file.fingerprint
        if not problems:
            read_slide(path)
    except HistError as error:
        return [problem_of(error, path)]
    return problems + _folder_problems(path, fingerprint)


def verify_tokens(path: Path) -> list[str]:
    """Verify a token file, crop by crop.

    Returns:
        One text for each problem; an empty list if the file is sound.
    """
    try:
        with open_complete(path) as file:
            problems, fingerprint = _unlisted(file), file.fingerprint
        with Tokens(path, whole=True) as tokens:
            for name in tokens.names:
                try:
                    for row in range(len(tokens)):
                        tokens.read(name, [row])
                except DamagedCacheError as error:
                    problems.append(error.problem)
    except HistError as error:
        return [problem_of(error, path)]
    return problems + _folder_problems(path, fingerprint)


def problem_of(error: HistError, path: Path) -> str:
    """Return what is wrong with a file, without its name and without advice where these can be told apart."""
    return error.problem if isinstance(error, DamagedCacheError) else str(error).removeprefix(f"{path}: ")


def _unlisted(file: CacheFile) -> list[str]:
    """Find arrays without a digest."""
    names: list[str] = []
    file.hdf5.visititems(lambda name, node: names.append(name) if isinstance(node, h5py.Dataset) else None)
    return [f"{n} is not listed" for n in names if n not in file.digests and not n.startswith(f"{CROP_DIGESTS}/")]


def _array_problems(file: CacheFile, name: str) -> list[str]:
    try:
        file.array(name)
    except DamagedCacheError as error:
        return [error.problem]
    return []


def _folder_problems(path: Path, fingerprint: Fingerprint) -> list[str]:
    """Check that the name of a file's folder ends with the hash of the file's identity."""
    identity = identity_hash(fingerprint.common)
    if path.parent.name.endswith(identity):
        return []
    return [f"its identity is {identity}, but the folder is {path.parent.name}"]
