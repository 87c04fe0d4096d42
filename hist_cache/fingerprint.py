"""What a cache file was made from: the identity, which is compared, and the provenance, which is only recorded."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import socket
import sys
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

LIBRARIES = (
    "hist-cache",
    "torch",
    "timm",
    "numpy",
    "h5py",
    "tifffile",
    "imagecodecs",
    "openslide-python",
    "anndata",
)


@dataclass(frozen=True)
class Fingerprint:
    """common: the same for all slides of a cache folder, whose name carries its hash (encoder, weights, transform,
    crop rules); slide: this slide's own part (image and table digests, um_per_px, reader); provenance: not compared.
    """

    common: dict[str, Any]
    slide: dict[str, Any]
    provenance: dict[str, Any]

    def to_json(self) -> str:
        return json.dumps(
            {"identity": {**self.common, "slide": self.slide}, "provenance": self.provenance}, sort_keys=True
        )

    @staticmethod
    def from_json(text: str) -> Fingerprint:
        data = json.loads(text)
        common = dict(data["identity"])
        return Fingerprint(common, common.pop("slide"), data["provenance"])


def short_hash(settings: dict[str, Any]) -> str:
    """8 hex digits that tell settings apart in the name of a cache folder or a run."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def differences(cached: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """`weights 1a2b3c4d5e6f -> 0f9e8d7c6b5a` for every key whose value is not the same; empty where equal."""

    def show(value: Any) -> str:
        return value[:12] if isinstance(value, str) and len(value) == 64 else json.dumps(value)

    keys = [*cached, *(k for k in wanted if k not in cached)]
    return [f"{k} {show(cached.get(k))} -> {show(wanted.get(k))}" for k in keys if cached.get(k) != wanted.get(k)]


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def array_digest(array: np.ndarray) -> str:
    """sha256 of an array's type, shape and values, hex; text as UTF-8."""
    digest = hashlib.sha256(f"{array.dtype.str if array.dtype != object else 'utf-8'} {array.shape}".encode())
    if array.dtype == object:
        for text in array.ravel():
            digest.update((text if isinstance(text, bytes) else str(text).encode()) + b"\0")
    else:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def file_stamp(path: Path) -> list[int]:
    """Size and modification time: while these stay, a digest taken before still holds."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that shape results."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def provenance(**more: Any) -> dict[str, Any]:
    """Who made this, with what, when and how."""
    return {
        "versions": versions(),
        "host": socket.gethostname(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]]),
        **more,
    }
