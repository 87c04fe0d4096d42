"""Datasets by name: their slides, the patients of these, and default options.

The facts are in datasets.toml, and in a file of the user's own (`hist_cache.own_file`).
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from hist_cache.errors import InputError
from hist_cache.own_tables import own_rows
from hist_cache.texts import did_you_mean, first_names, shortened

PRESETS = Path(__file__).with_name("datasets.toml")
RANGE = re.compile(r"([A-Za-z_]+)([0-9]+)-([A-Za-z_]*)([0-9]+)")
MAX_NAME_BYTES = 120  # of 255 in most file systems: endings such as that of a file being written come after it
MAX_RANGE_LENGTH = 1_000_000  # no collection has more slides, so a longer range is a typing error
HEST_RANGE = re.compile(r"(INT|MEND|MISC|NCBI|SPA|TENX|ZEN)[0-9]+-([A-Z]*)[0-9]+")
MAX_DIGITS = 100  # of both ends; Python refuses to read numbers of thousands


@dataclass(frozen=True)
class Dataset:
    """Slides that belong together.

    Attributes:
        name: Name of the dataset, and of its folder in the cache.
        ids: Slide IDs.
        title: Title of the study.
        reference: The publication, such as `Lake 2023`.
        encoder: Name of the encoder that extraction uses by default.
        split: Kind of split that training uses by default: slide, patient or loso.
        patients: Slide ID -> patient, either for all slides or, where patients are not known, for none.
        training: Option name -> default for training.
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


def check_own_dataset(name: str, row: Mapping[str, Any], place: str) -> None:
    """Check a dataset of the user's own, whose keys have the right types.

    Args:
        name: Its name.
        row: In the form of datasets.toml.
        place: Where it stands, for messages.

    Raises:
        InputError: A slide's name cannot name files, or the patients are not those of its slides.
    """
    try:
        check_dataset_name(name)
        slides = _own_ids(row["ids"])
        for slide in slides:
            check_slide_name(slide)
        listed = [slide for ids in row.get("patients", {}).values() for slide in _own_ids(ids)]
    except InputError as error:
        raise InputError(f"{place}: {error}") from None
    if not slides:
        raise InputError(f"{place}: ids is empty")
    for problem, wrong in (
        ("patients has slides that ids lacks", set(listed) - set(slides)),
        ("patients has slides twice", {slide for slide, count in Counter(listed).items() if count > 1}),
        ("patients lacks slides of ids", set(slides) - set(listed) if listed else set()),
    ):
        if wrong:
            raise InputError(f"{place}: {problem}: {first_names(sorted(wrong))}")


def _own_ids(ids: list[str]) -> list[str]:
    """Slide IDs of a user's dataset. Only slides of HEST-1k are read as ranges: another may be called `A1-2`."""
    return [slide for part in ids for slide in (_expand([part]) if HEST_RANGE.fullmatch(part) else [part])]


def _own_datasets() -> dict[str, Dataset]:
    """The user's datasets. One of slides of presets has their patients where it names none."""
    default = tomllib.loads(PRESETS.read_text(encoding="utf-8"))["default"] | {"training": {}}
    datasets = {}
    for name, row in own_rows("datasets").items():
        slides = list(dict.fromkeys(_own_ids(row["ids"])))
        patients = {slide: patient for patient, ids in row.get("patients", {}).items() for slide in _own_ids(ids)}
        known = _patients_of_presets()
        if not patients and all(slide in known for slide in slides):
            patients = {slide: known[slide] for slide in slides}
        datasets[name] = Dataset(**(default | row | {"name": name, "ids": tuple(slides), "patients": patients}))
    return datasets


def _all_datasets() -> dict[str, Dataset]:
    return _presets() | _own_datasets()


def dataset_names() -> list[str]:
    """List the names of the datasets: those of datasets.toml in its order, then the user's own."""
    return list(_all_datasets())


def get_dataset(name: str) -> Dataset:
    """Return a copy of the dataset of that name.

    Raises:
        InputError: There is no such dataset. The message lists all names and the most similar one.
    """
    if dataset := _all_datasets().get(name):
        return replace(dataset, patients=dict(dataset.patients), training=dict(dataset.training))
    names = dataset_names()
    raise InputError(
        f"no dataset {name!r}{did_you_mean(name, names)}; there are {', '.join(names)}; other slides are named by "
        "--ids, or by a dataset of your own in hist.toml"
    )


def dataset_named(name: str) -> Dataset:
    """Return the dataset of that name, or an empty one: no slides, no patients, general defaults."""
    return get_dataset(name) if name in dataset_names() else Dataset(name, ())


def custom_dataset(ids: Iterable[str], name: str = "custom") -> Dataset:
    """Make a dataset of any slides.

    Args:
        ids: Slide IDs; repeats are dropped.
        name: A name chosen by the user, or the name of a preset, whose defaults are then used.

    Returns:
        The dataset. It has patients only if the presets know the patient of every slide.

    Raises:
        InputError: There are no IDs, or a name cannot be that of a file or folder.
    """
    slides = tuple(dict.fromkeys(ids))
    if not slides:
        raise InputError(f"dataset {name!r} has no slides: give at least one id, such as --ids SPA138")
    check_dataset_name(name)
    for slide in slides:
        check_slide_name(slide)
    base = dataset_named(name)
    patient_of = _patients_of_presets() | base.patients
    patients = {slide: patient_of[slide] for slide in slides if slide in patient_of}
    return replace(base, ids=slides, patients=patients if len(patients) == len(slides) else {})


@cache
def _patients_of_presets() -> dict[str, str]:
    """Slide ID -> patient. Two presets may both have a "Patient 1", so the preset's name is part of the patient's."""
    return {
        slide: f"{preset.name} {patient}"
        for preset in _presets().values()
        for slide, patient in preset.patients.items()
    }


def patient_names(dataset: str, patients: Mapping[str, str | None]) -> dict[str, str]:
    """Name patients so that those of different datasets can be compared: `kidney Patient 1`.

    Args:
        dataset: Name of the dataset of the slides.
        patients: Slide ID -> patient, as the dataset calls him; None where he is unknown. A slide of a preset has the
            preset's patient instead.

    Returns:
        Slide ID -> name, without slides of unknown patients.
    """
    named = {slide: f"{dataset} {patient}" for slide, patient in patients.items() if patient is not None}
    return named | {slide: name for slide, name in _patients_of_presets().items() if slide in patients}


def check_dataset_name(name: str) -> str:
    """Return the name of a dataset, which is that of a folder and never leads out of the folder above it.

    Raises:
        InputError: It is no name of a folder.
    """
    if not re.fullmatch(r"\w[\w.-]*", name) or len(name.encode()) > MAX_NAME_BYTES:
        raise InputError(
            f"dataset name {shortened(name)!r}: use letters, digits, '_', '-' and '.' ({MAX_NAME_BYTES} bytes at "
            "most), since it names a folder"
        )
    return name


def check_slide_name(name: str) -> str:
    """Return the name of a slide, which begins the names of its files and never leads out of their folder.

    Raises:
        InputError: It is no name of a file, or would be that of a token file.
    """
    wrong_characters = not re.fullmatch(r"\w[\w .+-]*", name) or len(name.encode()) > MAX_NAME_BYTES
    if wrong_characters or re.fullmatch(r".+\.tokens\d+", name):
        raise InputError(
            f"slide {shortened(name)!r}: use letters, digits, '_', '-', '+', '.' and spaces ({MAX_NAME_BYTES} bytes at "
            "most, and no .tokens<number> at the end), since it names files"
        )
    return name


def parse_ids(text: str, existing_ids: Collection[str] = ()) -> list[str]:
    """Read slide IDs as typed by the user: `SPA138-141,NCBI563` gives five IDs.

    Args:
        text: IDs and ranges of IDs, separated by commas.
        existing_ids: Slides of a folder. A name among them is never read as a range.

    Returns:
        The IDs in the order of the text, without repeats.

    Raises:
        InputError: The list is empty, or a range runs from the larger number to the smaller.
    """
    ids = _expand((part.strip() for part in text.split(",") if part.strip()), existing_ids)
    if not ids:
        raise InputError("--ids is empty: give slide ids, such as SPA138,SPA139 or NCBI692-714")
    return ids


def _expand(parts: Iterable[str], existing_ids: Collection[str] = ()) -> list[str]:
    ids: list[str] = []
    for part in parts:
        match = None if part in existing_ids else RANGE.fullmatch(part)
        if match is None or match[3] not in ("", match[1]):
            ids.append(part)
            continue
        prefix, first, last = match[1], match[2], match[4]
        if len(first + last) > MAX_DIGITS or not 0 <= int(last) - int(first) < MAX_RANGE_LENGTH:
            raise InputError(f"slides {part}: a range runs from the smaller number to the larger, such as SPA138-141")
        ids += [f"{prefix}{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)]
    return list(dict.fromkeys(ids))
