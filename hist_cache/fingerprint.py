"""What a cache file was made from: its identity, which is compared, and its provenance, which is only recorded."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import socket
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from hist_cache.errors import HistError
from hist_cache.passwords import mask_command
from hist_cache.stopping import STOP

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
    "zarr",
    "pylibCZIrw",
)
DIGEST_BLOCK = 8 << 20  # bytes that a file is read in
METADATA = "metadata"  # stamp of a slide's own file of metadata, of which there is no digest
LABELS = "labels"  # folder of segmentations in an OME-Zarr


# What training reads of the common identity; the rest is only compared.
COMMON_TYPES: dict[str, tuple[type, ...]] = {
    "encoder": (str,),
    "weights": (str,),
    "pretrained": (bool,),
    "lora": (str, type(None)),
    "precision": (str,),
    "crop_rule": (dict,),
}


@dataclass(frozen=True)
class CropRule:
    """How wide crops are, the same rule for all slides of a cache.

    A spot crop is as wide as the spot, but never narrower than `min_spot_um`. A niche crop of n rings is
    2 (n pitch + spot radius) wide, which no option changes.
    """

    min_spot_um: float = 0.0
    """Spot crops are at least this wide, um; 0 means that they always have the spot's diameter."""

    def __str__(self) -> str:
        """Say how wide spot crops are, for messages."""
        return "the spot's diameter" + (f", at least {self.min_spot_um:g} um" if self.min_spot_um else "")

    @classmethod
    def from_identity(cls, common: dict[str, Any]) -> CropRule:
        """Return the rule that the common identity of a cache states, in the form of any version."""
        return cls(**from_version_0_1(common)["crop_rule"])

    def as_dict(self) -> dict[str, float]:
        """Return the rule as the identity states it: six digits, because version 0.1 wrote no more."""
        return {"min_spot_um": float(f"{self.min_spot_um:g}")}


def is_tuned(common: Mapping[str, Any]) -> bool:
    """Tell whether a common identity is that of an encoder with an adapter."""
    return common.get("lora") is not None


def as_version_0_1(common: dict[str, Any]) -> dict[str, Any]:
    """Return a common identity in the form of version 0.1, where two sentences state the crop rule.

    Hashes are taken of this form, so folders of caches and runs keep the names that they have had since then.

    Args:
        common: A common identity in either form; one without a crop rule stays as it is.
    """
    if "crop_rule" not in common:
        return dict(common)
    min_spot_um = CropRule(**common["crop_rule"]).min_spot_um
    rest = {key: value for key, value in common.items() if key != "crop_rule"}
    spot = f"spot diameter, at least {min_spot_um:g}" if min_spot_um else "spot diameter"
    return {**rest, "spot_crop_um": spot, "niche_crop_um": "2 (m pitch + spot radius)"}


def from_version_0_1(common: dict[str, Any]) -> dict[str, Any]:
    """Return a common identity with a typed crop rule, read from the sentences that version 0.1 wrote.

    Args:
        common: A common identity in either form; one without such sentences stays as it is.
    """
    if "spot_crop_um" not in common:
        return dict(common)
    rest = {key: value for key, value in common.items() if key not in ("spot_crop_um", "niche_crop_um")}
    number = common["spot_crop_um"].partition("at least ")[2]
    return {**rest, "crop_rule": CropRule(float(number or 0)).as_dict()}


@dataclass(frozen=True)
class Fingerprint:
    """What a cache file was made from."""

    common: dict[str, Any]
    """The part of the identity that all slides of a folder share: encoder, weights, transform, crop rule."""
    slide: dict[str, Any]
    """The part of the identity that is this slide's own: digests of image and table, pixel size, reader."""
    provenance: dict[str, Any]
    """What is recorded but not compared: versions, date, command, device."""

    def to_json(self) -> str:
        """Return the text that a cache file holds."""
        return json.dumps(
            {"identity": {**self.common, "slide": self.slide}, "provenance": self.provenance}, sort_keys=True
        )

    @staticmethod
    def from_json(text: str) -> Fingerprint:
        """Read the text that a cache file of this version, or of version 0.1, holds."""
        data = json.loads(text)
        common = from_version_0_1(data["identity"])
        fingerprint = Fingerprint(common, common.pop("slide"), data["provenance"])
        if not isinstance(fingerprint.slide, dict) or not isinstance(fingerprint.provenance, dict):
            raise TypeError("the fingerprint's slide and provenance must be objects")
        return fingerprint

    @property
    def stamps(self) -> dict[str, Any]:
        """Size and time of the slide's files, by kind, when their digests were taken."""
        stamps = self.provenance.get("stamps")
        return stamps if isinstance(stamps, dict) else {}


def wrong_facts(common: dict[str, Any]) -> list[str]:
    """List the entries of a common identity that training reads and that are missing or of another type."""
    wrong = [name for name, types in COMMON_TYPES.items() if not isinstance(common.get(name, ...), types)]
    if "crop_rule" not in wrong and not isinstance(common["crop_rule"].get("min_spot_um"), (int, float)):
        wrong.append("crop_rule")
    return wrong


def identity_hash(common: dict[str, Any]) -> str:
    """Return the 8 hex digits that name the folder of a cache.

    Args:
        common: The common identity in either form; both have the same hash.
    """
    return short_hash(as_version_0_1(common))


def encoder_slug(name: str) -> str:
    """The name of an encoder as it begins the name of a cache's folder: `timm:vit_tiny` -> `timm-vit_tiny`."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)


def short_hash(settings: dict[str, Any]) -> str:
    """Return 8 hex digits that tell settings apart in the name of a folder."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Describe each key whose value is not the same, as `weights 1a2b3c4d5e6f -> 0f9e8d7c6b5a`.

    Args:
        old: One part of an identity; common identities may be in either form.
        new: The same part of another identity.

    Returns:
        One text per key; none where all values are equal. Crop rules are described by the sentences of version 0.1.
    """

    def describe(value: object) -> str:
        if isinstance(value, dict):
            return short_hash(value)
        return value[:12] if isinstance(value, str) and len(value) == 64 else json.dumps(value)

    if old == new:
        return []
    old, new = as_version_0_1(old), as_version_0_1(new)
    keys = [*old, *(key for key in new if key not in old)]
    return [f"{k} {describe(old.get(k))} -> {describe(new.get(k))}" for k in keys if old.get(k) != new.get(k)]


def same_origin(one: Fingerprint, other: Fingerprint) -> bool:
    """Whether two files were made from the same slide in the same way, whenever and wherever that was."""
    return not differences(one.common, other.common) and not differences(one.slide, other.slide)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as hex digits; of an image that is a folder, that of names and contents.

    Raises:
        HistError: The process is asked to stop: an image of some GB takes long.
    """
    if path.is_dir():
        return _folder_digest(path)
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(DIGEST_BLOCK):
            digest.update(block)
            if STOP.is_set():
                raise HistError(f"{path}: not read to its end: stopped")
    return digest.hexdigest()


def _folder_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name, file in folder_files(folder):
        digest.update(name.encode(errors="surrogateescape") + b"\0" + bytes.fromhex(file_digest(file)))
    return digest.hexdigest()


def folder_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the files of an image that is a folder, by their names below it, sorted.

    Left out is what is not part of the image: `labels`, where OME-Zarr keeps segmentations (those of bioformats2raw's
    image 0 are in `0/labels`), and what is no plain file.
    """
    names = []
    for root, folders, files in os.walk(folder):
        if folder in (Path(root), Path(root).parent):
            folders[:] = [name for name in folders if name != LABELS]
        names += [Path(root, name).relative_to(folder).as_posix() for name in files]
    for name in sorted(names):
        if (folder / name).is_file():
            yield name, folder / name


def array_digest(array: np.ndarray) -> str:
    """Return the SHA-256 of an array's type, shape and values, as hex digits; texts count as UTF-8."""
    digest = hashlib.sha256(f"{array.dtype.str if array.dtype != object else 'utf-8'} {array.shape}".encode())
    if array.dtype == object:
        for text in array.ravel():
            digest.update((text if isinstance(text, bytes) else str(text).encode()) + b"\0")
    else:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def file_stamp(path: Path) -> tuple[int, int]:
    """Return size (bytes) and modification time (ns); while both stay the same, the file's digest does too.

    Of a folder, the size of all its files, and a number made from their names, sizes and times.
    """
    status = os.stat(path)
    if not stat.S_ISDIR(status.st_mode):
        return status.st_size, status.st_mtime_ns
    files = {name: file_stamp(file) for name, file in folder_files(path)}
    return sum(size for size, _ in files.values()), int(short_hash(files), 16)


@cache  # it reads a file of each library, which takes a tenth of a tiny slide's or fold's time
def _versions() -> dict[str, str]:
    installed = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results depend on, by name."""
    return dict(_versions())


def provenance(**more: Any) -> dict[str, Any]:
    """Return by what command, with which versions, when and where a file is made, and `more` as it is given."""
    return {
        "versions": versions(),
        "host": socket.gethostname(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": mask_command([os.path.basename(sys.argv[0]), *sys.argv[1:]]),
        **more,
    }
