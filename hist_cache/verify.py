"""Verify the files of a cache: read every array again and compare its digest with the one in the file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import h5py
import numpy as np

from hist_cache.cache import open_complete
from hist_cache.errors import HistError
from hist_cache.fingerprint import Fingerprint, array_digest, identity_hash
from hist_cache.token_writer import crops_digest


def verify_slide(path: Path) -> list[str]:
    """Verify the cache file of a slide.

    Returns:
        One text for each problem; an empty list if the file is sound.
    """
    try:
        with open_complete(path) as file:
            expected = json.loads(file.attrs["digests"])
            names: list[str] = []
            file.visititems(lambda name, node: names.append(name) if isinstance(node, h5py.Dataset) else None)
            problems = [f"{name} is missing" for name in expected if name not in names]
            problems += [f"{name} is not listed" for name in names if name not in expected]
            for name in names:
                try:
                    if name in expected and array_digest(file[name][:]) != expected[name]:
                        problems.append(f"{name} has other values than when it was written")
                except OSError as error:
                    problems.append(f"{name} cannot be read ({error})")
            fingerprint = Fingerprint.from_json(file.attrs["fingerprint"])
    except HistError as error:
        return [str(error)]
    return problems + _folder_problems(path, fingerprint)


def verify_tokens(path: Path) -> list[str]:
    """Verify a token file, crop by crop.

    Returns:
        One text for each problem; an empty list if the file is sound.
    """
    problems = []
    try:
        with open_complete(path) as file:
            fingerprint = Fingerprint.from_json(file.attrs["fingerprint"])
            for name, expected in json.loads(file.attrs["digests"]).items():
                try:
                    if _token_digest(file[name], name) != expected:
                        problems.append(f"{name} has other values than when it was written")
                except KeyError:
                    problems.append(f"{name} is missing")
                except (OSError, RuntimeError) as error:
                    problems.append(f"{name} cannot be read ({error})")
    except HistError as error:
        return [str(error)]
    return problems + _folder_problems(path, fingerprint)


def _token_digest(data: h5py.Dataset, name: str) -> str:
    if name == "barcodes":
        return array_digest(data[:])
    digests = [hashlib.sha256(data[row]).digest() for row in range(len(data))]
    return crops_digest(data.shape, np.frombuffer(b"".join(digests), dtype=np.uint8))


def _folder_problems(path: Path, fingerprint: Fingerprint) -> list[str]:
    """Check that the name of a file's folder ends with the hash of the file's identity."""
    identity = identity_hash(fingerprint.common)
    if path.parent.name.endswith(identity):
        return []
    return [f"its identity is {identity}, but the folder is {path.parent.name}"]
