"""Which slides train, validate and test: published, drawn by seed, leave-one-slide-out, or from files."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hist_cache.console import say
from hist_cache.datasets import dataset_named
from hist_cache.errors import InputError

PUBLISHED = Path(__file__).with_name("published_splits.json")
KINDS = ("slide", "patient", "loso")
PARTS = ("train", "val", "test")
DRAWS = 5  # as many as are published
HELD_OUT = 0.1  # share of the slides in val, and again in test
FEWEST_TO_DRAW = 5  # below this a random draw leaves too little to train on


@dataclass(frozen=True)
class Split:
    """Slide ids of the three parts: none empty, none shared. `InputError` otherwise."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for part in PARTS:
            ids = getattr(self, part)
            if not ids:
                raise InputError(f"split {self.name}: no slides in {part}; each of train, val and test needs one")
            twice = sorted(seen.intersection(ids)) or sorted({i for i in ids if ids.count(i) > 1})
            if twice:
                raise InputError(f"split {self.name}: {', '.join(twice)} listed twice; a slide belongs to one part")
            seen.update(ids)

    @property
    def ids(self) -> tuple[str, ...]:
        """All its slides, train first."""
        return self.train + self.val + self.test


def make_splits(
    dataset: str,
    ids: Collection[str],
    patients: Mapping[str, str],
    kind: str | Path | None = None,
    folds: int | None = None,
    seed: int = 42,
) -> list[Split]:
    """The splits that `--split kind` means for the slides `ids` of `dataset`.

    kind: slide or patient (published where they are, seeded draws elsewhere), loso, or a file or folder of
    splits; without it the published slide splits, else the dataset's default.
    folds: the first so many; without it all there are, or 5 draws.
    `InputError` where a slide that a split names is not among `ids`, or there are too few slides or patients.
    """
    if folds is not None and folds < 1:
        raise InputError(f"--folds {folds}: at least 1")
    if kind is None:
        kind = _default_kind(dataset, ids, patients)
    if kind not in KINDS:
        splits = _from_path(Path(kind))
    elif kind == "loso":
        splits = leave_one_slide_out(ids)
    elif found := published(dataset, str(kind)):
        splits = found
    elif kind == "patient":
        return seeded_patient_splits(ids, patients, folds or DRAWS, seed)
    elif len(ids) < FEWEST_TO_DRAW:
        say(f"{dataset} has only {len(ids)} slides: leaving one slide out in turn instead of drawing splits")
        splits = leave_one_slide_out(ids)
    else:
        return seeded_slide_splits(ids, folds or DRAWS, seed)
    _check_available(dataset, splits, ids)
    if folds is not None and folds > len(splits):
        say(f"{len(splits)} splits, not the {folds} asked for: there are no more of this kind")
    return splits[:folds]


def _default_kind(dataset: str, ids: Collection[str], patients: Mapping[str, str]) -> str:
    if published(dataset, "slide"):
        return "slide"
    kind = dataset_named(dataset).split
    few_patients = len({patients.get(i) for i in ids} - {None}) < 3  # some slides of the dataset only
    return "slide" if kind == "patient" and few_patients else kind


def _check_available(dataset: str, splits: Iterable[Split], ids: Collection[str]) -> None:
    missing = sorted({i for split in splits for i in split.ids} - set(ids))
    if missing:
        raise InputError(
            f"{dataset}: the splits name {len(missing)} slides that the cache lacks: {', '.join(missing)}; "
            "extract them, or give --split loso or a file of splits for the slides there are"
        )


def published(dataset: str, kind: str) -> list[Split] | None:
    """The five splits published for the dataset (kind: slide or patient); None where there are none.

    They are independent draws, not folds: a slide may be tested several times or never.
    """
    rows = _published_file()["splits"].get(dataset, {}).get(kind)
    return None if rows is None else [_split(row, f"published-{kind}-{i}") for i, row in enumerate(rows)]


@cache
def _published_file() -> dict[str, Any]:
    return json.loads(PUBLISHED.read_text(encoding="utf-8"))


def seeded_slide_splits(ids: Collection[str], n: int, seed: int) -> list[Split]:
    """`n` independent draws of 80/10/10 percent of the slides, at least one in val and in test.

    Draw i depends on the set of ids, the seed and i alone. `InputError` for fewer than three slides.
    """
    slides = sorted(set(ids))
    if len(slides) < 3:
        raise InputError(f"{len(slides)} slides cannot be split into train, val and test; at least 3 are needed")
    held_out = max(1, round(HELD_OUT * len(slides)))
    splits = []
    for i in range(n):
        drawn = [slides[j] for j in np.random.default_rng([seed, i]).permutation(len(slides))]
        test, val, train = drawn[:held_out], drawn[held_out : 2 * held_out], drawn[2 * held_out :]
        splits.append(_split({"train": train, "val": val, "test": test}, f"slide-seed{seed}-{i}"))
    return splits


def seeded_patient_splits(ids: Collection[str], patients: Mapping[str, str], n: int, seed: int) -> list[Split]:
    """`n` independent draws of whole patients, val and test as near to 10 percent of slides as these allow.

    patients: slide id -> patient. `InputError` where one is unknown or there are fewer than three.
    """
    unknown = sorted(i for i in set(ids) if i not in patients)
    if unknown:
        raise InputError(
            f"the patient of {', '.join(unknown)} is not known; give --split slide, loso or a file of splits"
        )
    slides_of: dict[str, list[str]] = {}
    for slide in sorted(set(ids)):
        slides_of.setdefault(patients[slide], []).append(slide)
    if len(slides_of) < 3:
        raise InputError(
            f"{len(slides_of)} patients ({', '.join(sorted(slides_of))}) cannot be split into train, val "
            "and test; at least 3 are needed, or give --split slide or loso"
        )
    target = max(1, round(HELD_OUT * len(set(ids))))
    names = sorted(slides_of)
    splits = []
    for i in range(n):
        drawn = [slides_of[names[j]] for j in np.random.default_rng([seed, i]).permutation(len(names))]
        test = _take(drawn, target, leave=2)
        val = _take(drawn, target, leave=1)
        splits.append(
            _split(
                {"train": [s for slides in drawn for s in slides], "val": val, "test": test},
                f"patient-seed{seed}-{i}",
            )
        )
    return splits


def _take(groups: list[list[str]], target: int, leave: int) -> list[str]:
    """Move groups off the front while that brings their size nearer to `target`; at least `leave` stay."""
    taken = groups.pop(0)
    while len(groups) > leave and abs(len(taken) + len(groups[0]) - target) < abs(len(taken) - target):
        taken = taken + groups.pop(0)
    return taken


def leave_one_slide_out(ids: Collection[str]) -> list[Split]:
    """Fold i tests the i-th slide (sorted), validates on the next and trains on the rest.

    `InputError` below three slides.
    """
    slides = sorted(set(ids))
    if len(slides) < 3:
        raise InputError(f"leaving one slide out needs at least 3 slides, not {len(slides)}: {', '.join(slides)}")
    splits = []
    for i, test in enumerate(slides):
        val = slides[(i + 1) % len(slides)]
        train = [s for s in slides if s not in (test, val)]
        splits.append(_split({"train": train, "val": [val], "test": [test]}, f"loso-{test}"))
    return splits


def from_csv_folder(folder: Path) -> list[Split]:
    """HEST-bench's `train_i.csv` and `test_i.csv` (column sample_id), in `folder` or its `splits/`.

    val comes from `val_i.csv` where there is one, else it is the last train slide in sorted order.
    """
    inner = folder / "splits"
    home = inner if inner.is_dir() else folder
    numbers = sorted(int(f.stem[6:]) for f in home.glob("train_*.csv") if f.stem[6:].isdecimal())
    if not numbers:
        raise InputError(f"{folder}: no train_0.csv, train_1.csv, ... here; give a folder with HEST-bench splits")
    splits = []
    for i in numbers:
        row = {part: _sample_ids(home / f"{part}_{i}.csv") for part in ("train", "test")}
        if (home / f"val_{i}.csv").exists():
            row["val"] = _sample_ids(home / f"val_{i}.csv")
        splits.append(_split(row, f"{folder.name}-{i}"))
    return splits


def _sample_ids(file: Path) -> list[str]:
    if not file.is_file():
        raise InputError(f"{file}: not there; every train_i.csv needs its test_i.csv")
    with file.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.DictReader(lines)
        if "sample_id" not in (rows.fieldnames or []):
            raise InputError(f"{file}: no column sample_id; its columns are {', '.join(rows.fieldnames or ['none'])}")
        return list(dict.fromkeys(row["sample_id"] for row in rows))


def from_json(file: Path) -> list[Split]:
    """A list of `{"train": [...], "val": [...], "test": [...]}`; without val it is the last train slide."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file}: not JSON ({error})") from error
    wanted = f'{file}: give a list of {{"train": [ids], "val": [ids], "test": [ids]}}'
    if not isinstance(rows, list) or not rows:
        raise InputError(wanted)
    for row in rows:
        if not isinstance(row, dict) or not {"train", "test"} <= set(row) <= set(PARTS):
            raise InputError(wanted)
        if not all(isinstance(ids, list) and all(isinstance(i, str) for i in ids) for ids in row.values()):
            raise InputError(wanted)
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


def patient_leaks(split: Split, patients: Mapping[str, str]) -> list[str]:
    """Patients with slides both in test and in train or val, sorted; unknown patients are passed over."""
    seen = {patients[i] for i in split.train + split.val if i in patients}
    return sorted(seen.intersection(patients[i] for i in split.test if i in patients))


def _split(row: Mapping[str, Sequence[str]], name: str) -> Split:
    train, val = sorted(row["train"]), sorted(row.get("val", ()))
    if "val" not in row:
        train, val = train[:-1], train[-1:]
    return Split(tuple(train), tuple(val), tuple(sorted(row["test"])), name)
