"""Splits into train, val and test: published, drawn at random, leave-one-slide-out, within slices, or from files."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hist_cache.datasets import dataset_named
from hist_cache.errors import InputError
from hist_cache.slide_parts import ROLES, WITHIN, within_rows
from hist_cache.split_files import csv_rows, json_rows
from hist_cache.texts import bad_name, did_you_mean, first_names
from hist_cache.validation_slides import ValidateOn, validation_slides

log = logging.getLogger(__name__)

PUBLISHED_FILE = Path(__file__).with_name("published_splits.json")
KINDS = ("slide", "patient", "loso", WITHIN)
LOSO_ALIKE = "loso alike"  # what results call loso with validation slides like the test slide
SPLIT_PARTS = ROLES
DRAWS = 5  # as many as are published per dataset
HELD_OUT_SHARE = 0.1  # share of the slides in val, and the same in test
MIN_SLIDES_TO_DRAW = 5  # with fewer slides a random draw leaves too few to train on
MIN_GROUPS = 3  # slides or patients: one each for train, val and test


@dataclass(frozen=True)
class Split:
    """The slide IDs of the three parts.

    Attributes:
        train: IDs of the slides to train on.
        val: IDs of the slides to validate on during training.
        test: IDs of the slides to test on.
        name: Name of the split, for messages and results.

    Raises:
        InputError: A part is empty, or a slide is listed twice.
    """

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        earlier: set[str] = set()
        for part in SPLIT_PARTS:
            ids = getattr(self, part)
            if problem := bad_name(ids):
                raise InputError(f"split {self.name}: {problem} in {part}; give the IDs of slides")
            if not ids:
                raise InputError(f"split {self.name}: no slides in {part}; each of train, val and test needs one")
            repeats = sorted(earlier.intersection(ids)) or sorted(i for i, times in Counter(ids).items() if times > 1)
            if repeats:
                raise InputError(
                    f"split {self.name}: {', '.join(repeats[:6])} listed twice; a slide belongs to one part"
                )
            earlier.update(ids)

    @property
    def ids(self) -> tuple[str, ...]:
        """All slides, train first."""
        return self.train + self.val + self.test


def make_splits(
    dataset: str,
    ids: Collection[str],
    patients: Mapping[str, str],
    kind: str | Path | None = None,
    folds: int | None = None,
    seed: int = 42,
    validate_on: ValidateOn = "next",
) -> list[Split]:
    """Make the splits that `--split kind` stands for.

    Args:
        dataset: Name of the dataset.
        ids: Slide IDs in the cache.
        patients: Slide ID -> patient.
        kind: slide or patient (published splits if there are any, else random draws), loso, within (parts of every
            slide, see `hist_cache.slide_parts`), or a file or folder of splits. None means the published slide splits
            or, without those, the default of the dataset.
        folds: Return only the first `folds` splits, 1 or more. None means all of them, or 5 random draws.
        seed: Seed of the random draws.
        validate_on: Where one slide is left out in turn: the rule that chooses the validation slides.

    Raises:
        InputError: A split names a slide that is not in `ids`, or there are too few slides or patients.
    """
    if folds is not None and folds < 1:
        raise InputError(f"--folds {folds}: at least 1")
    kind = _default_kind(dataset, ids, patients) if kind is None else kind
    in_use = kind_in_use(dataset, ids, patients, kind)
    if in_use not in KINDS:
        splits = from_files(Path(in_use))
    elif in_use == "loso":
        if kind != "loso":
            log.info(f"{dataset} has only {len(ids)} slides: leaving one slide out in turn instead of drawing splits")
        splits = leave_one_slide_out(ids, patients, validate_on)
    elif in_use == WITHIN:
        splits = [_split(row, name) for name, row in within_rows(ids)]
    elif published := published_splits(dataset, str(in_use)):
        splits = published
    elif in_use == "patient":
        return seeded_patient_splits(ids, patients, folds or DRAWS, seed)
    else:
        return seeded_slide_splits(ids, folds or DRAWS, seed)
    if in_use != WITHIN:  # which names parts of the slides there are
        _check_available(dataset, splits, ids)
    if folds is not None and folds > len(splits):
        log.info(f"{len(splits)} splits, not the {folds} asked for: there are no more of this kind")
    return splits[:folds]


def kind_in_use(dataset: str, ids: Collection[str], patients: Mapping[str, str], kind: str | Path | None) -> str | Path:
    """Return the kind of splits that `make_splits` makes: one of `KINDS`, or a file or folder.

    None is the dataset's own kind. Instead of drawing from a few slides, one slide is left out in turn (loso).
    """
    kind = _default_kind(dataset, ids, patients) if kind is None else kind
    draws = kind == "slide" and not published_splits(dataset, "slide")
    return "loso" if draws and len(ids) < MIN_SLIDES_TO_DRAW else kind


def are_drawn(dataset: str, ids: Collection[str], patients: Mapping[str, str], kind: str | Path | None) -> bool:
    """Tell whether `make_splits` draws this kind of splits, so that a seed changes them."""
    in_use = kind_in_use(dataset, ids, patients, kind)
    return in_use in ("slide", "patient") and not published_splits(dataset, str(in_use))


def _default_kind(dataset: str, ids: Collection[str], patients: Mapping[str, str]) -> str:
    if published_splits(dataset, "slide"):
        return "slide"
    kind = dataset_named(dataset).split
    # A dataset that is split by patient by default may have only some of its slides in the cache.
    few_patients = len({patients.get(i) for i in ids} - {None}) < MIN_GROUPS
    return "slide" if kind == "patient" and few_patients else kind


def _check_available(dataset: str, splits: Iterable[Split], ids: Collection[str]) -> None:
    missing = sorted({i for split in splits for i in split.ids} - set(ids))
    if missing:
        raise InputError(
            f"{dataset}: the splits name {len(missing)} slides that the cache lacks: {first_names(missing, 25)}; "
            "extract them, or give --split loso or a file of splits for the slides there are"
        )


def published_splits(dataset: str, kind: str) -> list[Split] | None:
    """Return the five published splits of a dataset.

    They are independent draws, not folds: a slide may be tested several times or never.

    Args:
        dataset: Name of the dataset.
        kind: slide or patient.

    Returns:
        The splits, or None if none are published for the dataset.
    """
    rows = _published_file()["splits"].get(dataset, {}).get(kind)
    return None if rows is None else [_split(row, f"published-{kind}-{i}") for i, row in enumerate(rows)]


@cache
def _published_file() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(PUBLISHED_FILE.read_text(encoding="utf-8"))
    return content


def seeded_slide_splits(ids: Collection[str], n: int, seed: int) -> list[Split]:
    """Draw `n` independent splits with 80, 10 and 10 percent of the slides, at least one in val and in test.

    Draw i depends only on the set of IDs, the seed and i.

    Raises:
        InputError: There are fewer than three slides.
    """
    slides = sorted(set(ids))
    if len(slides) < MIN_GROUPS:
        raise InputError(f"{len(slides)} slides cannot be split into train, val and test; at least 3 are needed")
    n_test = max(1, round(HELD_OUT_SHARE * len(slides)))
    splits = []
    for i in range(n):
        order = [slides[j] for j in np.random.default_rng([seed, i]).permutation(len(slides))]
        test, val, train = order[:n_test], order[n_test : 2 * n_test], order[2 * n_test :]
        splits.append(_split({"train": train, "val": val, "test": test}, f"slide-seed{seed}-{i}"))
    return splits


def seeded_patient_splits(ids: Collection[str], patients: Mapping[str, str], n: int, seed: int) -> list[Split]:
    """Draw `n` independent splits of whole patients, with val and test as near to 10 percent of the slides as possible.

    Args:
        ids: Slide IDs.
        patients: Slide ID -> patient.
        n: Number of splits.
        seed: Seed of the draws. Draw i depends only on the slides, their patients, the seed and i.

    Raises:
        InputError: The patient of a slide is not known, or there are fewer than three patients.
    """
    unknown = sorted(i for i in set(ids) if i not in patients)
    if unknown:
        raise InputError(
            f"the patient of {', '.join(unknown)} is not known; give --split slide, loso or a file of splits"
        )
    slides_of: dict[str, list[str]] = {}
    for slide in sorted(set(ids)):
        slides_of.setdefault(patients[slide], []).append(slide)
    if len(slides_of) < MIN_GROUPS:
        raise InputError(
            f"{len(slides_of)} patients ({', '.join(sorted(slides_of))}) cannot be split into train, val "
            "and test; at least 3 are needed, or give --split slide or loso"
        )
    target = max(1, round(HELD_OUT_SHARE * len(set(ids))))
    names = sorted(slides_of)
    splits = []
    for i in range(n):
        groups = [slides_of[names[j]] for j in np.random.default_rng([seed, i]).permutation(len(names))]
        test = _take(groups, target, leave=2)
        val = _take(groups, target, leave=1)
        train = [slide for group in groups for slide in group]
        splits.append(_split({"train": train, "val": val, "test": test}, f"patient-seed{seed}-{i}"))
    return splits


def _take(groups: list[list[str]], target: int, leave: int) -> list[str]:
    """Remove groups from the front while that brings the number of slides nearer to `target`; at least `leave` stay."""
    slides = groups.pop(0)
    while len(groups) > leave and abs(len(slides) + len(groups[0]) - target) < abs(len(slides) - target):
        slides = slides + groups.pop(0)
    return slides


def leave_one_slide_out(
    ids: Collection[str], patients: Mapping[str, str] | None = None, validate_on: ValidateOn = "next"
) -> list[Split]:
    """Make one split per slide: it tests on that slide, validates on others and trains on the rest.

    Args:
        ids: Slide IDs.
        patients: Slide ID -> patient, which only "alike" reads; None where they are not known.
        validate_on: "next" validates on the slide after the test slide, "alike" on slides like it
            (`hist_cache.validation_slides`).

    Raises:
        InputError: There are fewer than three slides.
    """
    slides = sorted(set(ids))
    if len(slides) < MIN_GROUPS:
        raise InputError(f"leaving one slide out needs at least 3 slides, not {len(slides)}: {', '.join(slides)}")
    splits = []
    for test in slides:
        val = validation_slides(test, slides, patients or {}, validate_on)
        train = [s for s in slides if s != test and s not in val]
        name = f"loso-{test}" if validate_on == "next" else f"loso-{test}-{validate_on}"
        splits.append(_split({"train": train, "val": val, "test": [test]}, name))
    return splits


def from_files(path: Path) -> list[Split]:
    """Read splits from a folder with CSVs or from a JSON file (`hist_cache.split_files`).

    Where a split names no val slides, val is the last train slide in sorted order.

    Raises:
        InputError: There is no such folder or file, it holds no splits, or a split is not valid.
    """
    if not path.is_dir() and not path.is_file():
        raise InputError(
            f"--split {path}: neither {', '.join(KINDS)} nor a file that is there{did_you_mean(str(path), KINDS)}; "
            "give one of these, a JSON file or a folder of CSVs"
        )
    rows = csv_rows(path) if path.is_dir() else json_rows(path)
    return [_split(row, name) for name, row in rows]


def shared_patients(split: Split, patients: Mapping[str, str]) -> list[str]:
    """List the patients with slides both in test and in train or val, sorted; slides without a patient are ignored."""
    train_patients = {patients[i] for i in split.train + split.val if i in patients}
    return sorted(train_patients.intersection(patients[i] for i in split.test if i in patients))


def _split(row: Mapping[str, Sequence[str]], name: str) -> Split:
    train, val = sorted(row["train"]), sorted(row.get("val", ()))
    if "val" not in row:
        train, val = train[:-1], train[-1:]
    return Split(tuple(train), tuple(val), tuple(sorted(row["test"])), name)
