"""Datasets by name: which slides, whose, and the defaults that go with them (facts in datasets.toml)."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from hist_cache.errors import InputError

PRESETS = Path(__file__).with_name("datasets.toml")
RANGE = re.compile(r"([A-Za-z_]+)(\d+)-([A-Za-z_]*)(\d+)")
MOST_IN_A_RANGE = 10_000  # more than there are slides anywhere: a typing error


@dataclass(frozen=True)
class Dataset:
    """Slides that belong together.

    `patients` maps slide id to patient, for all slides or (unknown) for none; `training` holds defaults by
    option name.
    """

    name: str
    ids: tuple[str, ...]
    title: str = ""
    reference: str = ""
    encoder: str = "uni"
    split: str = "slide"
    patients: dict[str, str] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


@cache
def _presets() -> dict[str, Dataset]:
    rows = tomllib.loads(PRESETS.read_text(encoding="utf-8"))
    default = rows.pop("default")
    return {name: _dataset(name, default | row) for name, row in rows.items()}


def _dataset(name: str, row: dict[str, Any]) -> Dataset:
    patients = {slide: patient for patient, ids in row["patients"].items() for slide in _expand(ids)}
    return Dataset(**(row | {"name": name, "ids": tuple(_expand(row["ids"])), "patients": patients}))


def dataset_names() -> list[str]:
    """The presets' names, as listed in datasets.toml."""
    return list(_presets())


def get_dataset(name: str) -> Dataset:
    """The preset of that name; `InputError` with the names there are and the nearest one."""
    if name in _presets():
        found = _presets()[name]
        return replace(found, patients=dict(found.patients), training=dict(found.training))
    near = difflib.get_close_matches(name.lower(), dataset_names(), n=1)
    raise InputError(
        f"no dataset {name!r}"
        + (f", did you mean {near[0]}?" if near else "")
        + f" There are {', '.join(dataset_names())};"
        " other slides are named by --ids"
    )


def dataset_named(name: str) -> Dataset:
    """The preset of that name, or a dataset of which nothing is known: no slides, no patients, no defaults."""
    return get_dataset(name) if name in _presets() else Dataset(name, ())


def custom_dataset(ids: Iterable[str], name: str = "custom") -> Dataset:
    """Any slides under a name of one's own, or slides under a preset's name and with its defaults.

    Patients are taken from the presets where these know all the slides. `InputError` for no ids, or for a
    name that cannot be a folder's.
    """
    slides = tuple(dict.fromkeys(ids))
    if not slides:
        raise InputError(f"dataset {name!r} has no slides: give at least one id, such as --ids SPA138")
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise InputError(f"dataset name {name!r}: use letters, digits, '_', '-' and '.', since it names a folder")
    base = dataset_named(name)
    known = {
        slide: f"{preset.name} {patient}"
        for preset in _presets().values()
        for slide, patient in preset.patients.items()
    }
    known |= base.patients
    patients = {slide: known[slide] for slide in slides if slide in known}
    return replace(base, ids=slides, patients=patients if len(patients) == len(slides) else {})


def parse_ids(text: str, known: Collection[str] = ()) -> list[str]:
    """`SPA138-141,NCBI563` -> the five ids, each once.

    A name in `known` (the slides of a folder) is never read as a range.
    `InputError` for an empty list or a range that runs backwards.
    """
    ids = _expand((part.strip() for part in text.split(",") if part.strip()), known)
    if not ids:
        raise InputError("--ids is empty: give slide ids, such as SPA138,SPA139 or NCBI692-714")
    return ids


def _expand(parts: Iterable[str], known: Collection[str] = ()) -> list[str]:
    ids: list[str] = []
    for part in parts:
        match = None if part in known else RANGE.fullmatch(part)
        if match is None or match[3] not in ("", match[1]):
            ids.append(part)
            continue
        prefix, first, last = match[1], match[2], match[4]
        if not 0 <= int(last) - int(first) < MOST_IN_A_RANGE:
            raise InputError(f"slides {part}: a range runs from the smaller number to the larger, such as SPA138-141")
        ids += [f"{prefix}{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)]
    return list(dict.fromkeys(ids))
