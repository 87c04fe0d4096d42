"""Splits of slides into train, val and test: published, drawn at random, leave-one-slide-out, or read from files."""

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
from hist_cache.texts import bad_name, read_csv, read_json

log = logging.getLogger(__name__)

PUBLISHED_FILE = Path(__file__).with_name("published_splits.json")
KINDS = ("slide", "patient", "loso")
SPLIT_PARTS = ("train", "val", "test")
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
) -> list[Split]:
    """Make the splits that `--split kind` stands for.

    Args:
        dataset: Name of the dataset.
        ids: Slide IDs in the cache.
        patients: Slide ID -> patient.
        kind: slide or patient (published splits if there are any, else random draws), loso, or a file or folder of
            splits. None means the published slide splits or, without those, the default of the dataset.
        folds: Return only the first `folds` splits, 1 or more. None means all of them, or 5 random draws.
        seed: Seed of the random draws.

    Raises:
        InputError: A split names a slide that is not in `ids`, or there are too few slides or patients.
    """
    if folds is not None and folds < 1:
        raise InputError(f"--folds {folds}: at least 1")
    if kind is None:
        kind = _default_kind(dataset, ids, patients)
    if kind not in KINDS:
        splits = _from_path(Path(kind))
    elif kind == "loso":
        splits = leave_one_slide_out(ids)
    elif published := published_splits(dataset, str(kind)):
        splits = published
    elif kind == "patient":
        return seeded_patient_splits(ids, patients, folds or DRAWS, seed)
    elif len(ids) < MIN_SLIDES_TO_DRAW:
        log.info(f"{dataset} has only {len(ids)} slides: leaving one slide out in turn instead of drawing splits")
        splits = leave_one_slide_out(ids)
    else:
        return seeded_slide_splits(ids, folds or DRAWS, seed)
    _check_available(dataset, splits, ids)
    if folds is not None and folds > len(splits):
        log.info(f"{len(splits)} splits, not the {folds} asked for: there are no more of this kind")
    return splits[:folds]


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
            f"{dataset}: the splits name {len(missing)} slides that the cache lacks: {_first(missing)}; "
            "extract them, or give --split loso or a file of splits for the slides there are"
        )


def _first(names: Sequence[str], most: int = 25) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


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


def leave_one_slide_out(ids: Collection[str]) -> list[Split]:
    """Make one split per slide: it tests on that slide, validates on the next one and trains on the rest.

    Raises:
        InputError: There are fewer than three slides.
    """
    slides = sorted(set(ids))
    if len(slides) < MIN_GROUPS:
        raise InputError(f"leaving one slide out needs at least 3 slides, not {len(slides)}: {', '.join(slides)}")
    splits = []
    for i, test in enumerate(slides):
        val = slides[(i + 1) % len(slides)]
        train = [s for s in slides if s not in (test, val)]
        splits.append(_split({"train": train, "val": [val], "test": [test]}, f"loso-{test}"))
    return splits


def from_csv_folder(folder: Path) -> list[Split]:
    """Read splits in the format of HEST-bench: `train_i.csv` and `test_i.csv` with a column sample_id.

    The val slides come from `val_i.csv`; without that file, val is the last train slide in sorted order.

    Args:
        folder: The folder of the files, or the folder above their folder `splits`.

    Raises:
        InputError: A file is missing or has no column sample_id, or a split is not valid.
    """
    csv_folder = folder / "splits" if (folder / "splits").is_dir() else folder
    stems = [file.stem.removeprefix("train_") for file in csv_folder.glob("train_*.csv")]
    numbers = sorted(int(stem) for stem in stems if stem.isdecimal())
    if not numbers:
        raise InputError(f"{folder}: no train_0.csv, train_1.csv, ... here; give a folder with HEST-bench splits")
    splits = []
    for i in numbers:
        row = {part: _sample_ids(csv_folder / f"{part}_{i}.csv") for part in ("train", "test")}
        if (csv_folder / f"val_{i}.csv").exists():
            row["val"] = _sample_ids(csv_folder / f"val_{i}.csv")
        splits.append(_split(row, f"{folder.name}-{i}"))
    return splits


def _sample_ids(file: Path) -> list[str]:
    if not file.is_file():
        raise InputError(f"{file}: not there; every train_i.csv needs its test_i.csv")
    try:
        names, rows = read_csv(file)
    except ValueError as error:
        raise InputError(f"{file}: {error}") from error
    if "sample_id" not in names:
        raise InputError(f"{file}: no column sample_id; its columns are {_first(names) or 'none'}")
    return list(dict.fromkeys(row["sample_id"] for row in rows))


def from_json(file: Path) -> list[Split]:
    """Read splits from a JSON list of `{"train": [...], "val": [...], "test": [...]}`.

    Without "val", val is the last train slide in sorted order.

    Raises:
        InputError: The file is not such a list, or a split is not valid.
    """
    try:
        rows = read_json(file)
    except ValueError as error:
        raise InputError(f"{file}: {error}") from error
    format_error = InputError(f'{file}: give a list of {{"train": [ids], "val": [ids], "test": [ids]}}')
    if not isinstance(rows, list) or not rows:
        raise format_error
    for row in rows:
        if not isinstance(row, dict) or not {"train", "test"} <= set(row) <= set(SPLIT_PARTS):
            raise format_error
        if not all(isinstance(ids, list) and all(isinstance(i, str) for i in ids) for ids in row.values()):
            raise format_error
    return [_split(row, f"{file.stem}-{i}") for i, row in enumerate(rows)]


def _from_path(path: Path) -> list[Split]:
    if path.is_dir():
        return from_csv_folder(path)
    if path.is_file():
        return from_json(path)
    raise InputError(
        f"--split {path}: neither {', '.join(KINDS)} nor a file that is there; give one of these, a JSON "
        "file or a folder of CSVs"
    )


def shared_patients(split: Split, patients: Mapping[str, str]) -> list[str]:
    """List the patients with slides both in test and in train or val, sorted; slides without a patient are ignored."""
    train_patients = {patients[i] for i in split.train + split.val if i in patients}
    return sorted(train_patients.intersection(patients[i] for i in split.test if i in patients))


def _split(row: Mapping[str, Sequence[str]], name: str) -> Split:
    train, val = sorted(row["train"]), sorted(row.get("val", ()))
    if "val" not in row:
        train, val = train[:-1], train[-1:]
    return Split(tuple(train), tuple(val), tuple(sorted(row["test"])), name)
