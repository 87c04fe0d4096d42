"""Labels of slides, and which slide each belongs to: by name, or by the beginning of a TCGA barcode; and patients."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hist_cache.errors import InputError
from hist_cache.metadata import NOT_STATED
from hist_cache.texts import bad_name, first_names, read_csv, shortened

NO_LABEL = (*NOT_STATED, "na", "n/a")  # what tables have where a label is not known
PATIENT_COLUMNS = ("patient", "case")
BARCODE = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}(?=[-._]|$)")  # a patient of TCGA; slides go on behind it
N_NAMED = 10  # slides or patients that a line names


@dataclass(frozen=True)
class SlideLabel:
    """A row of the table of labels.

    Attributes:
        label: The class; None where it is not known.
        patient: None where the table has no column for it, empty where the column is.
    """

    label: str | None
    patient: str | None


def read_table_rows(file: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a CSV file; `InputError` where it cannot be read."""
    try:
        return read_csv(file)
    except ValueError as error:
        raise InputError(f"{file}: {error}; give a CSV file") from error


def read_slide_labels(file: Path) -> dict[str, SlideLabel]:
    """Read the table of labels: slide -> label and patient; `InputError` says what is wrong with it."""
    names, rows = read_table_rows(file)
    if missing := [name for name in ("slide", "label") if name not in names]:
        raise InputError(f"--classify {file}: no column {' and '.join(missing)}; it has {first_names(names) or 'none'}")
    column = next((name for name in PATIENT_COLUMNS if name in names), None)
    labels: dict[str, SlideLabel] = {}
    for row in rows:
        slide, label = row["slide"].strip(), row["label"].strip()
        patient = None if column is None else row[column].strip()
        if problem := bad_name([slide, label or "-", patient or "-"]):
            raise InputError(f"--classify {file}: there is {problem}")
        if slide in labels:
            raise InputError(f"--classify {file}: slide {slide} is there twice; leave one of them")
        labels[slide] = SlideLabel(None if label.lower() in NO_LABEL else label, patient)
    return labels


def match_slides(slides: Sequence[str], names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Find the row of each slide in the table of labels: by its name, else by the beginning of a TCGA barcode.

    Args:
        slides: names of the slides.
        names: those in the table.

    Returns:
        Slide -> name, of slides that have one; and names that fit several slides, or one of several that fit a slide,
        which are not used.
    """
    known = set(names)
    matches = {slide: slide for slide in slides if slide in known}
    by_patient: dict[str, list[str]] = {}
    for name in names:
        if name not in matches and (barcode := BARCODE.match(name)):
            by_patient.setdefault(barcode[0], []).append(name)
    fitting: dict[str, list[str]] = {}
    for slide in slides:
        if slide not in matches and (barcode := BARCODE.match(slide)):
            fitting[slide] = [name for name in by_patient.get(barcode[0], ()) if _begins(slide, name)]
    uses = Counter(name for of in fitting.values() for name in of)
    doubtful = {name for of in fitting.values() for name in of if len(of) > 1 or uses[name] > 1}
    matches |= {slide: of[0] for slide, of in fitting.items() if len(of) == 1 and of[0] not in doubtful}
    return matches, [name for name in names if name in doubtful]


def _begins(one: str, other: str) -> bool:
    """Whether the shorter of two barcodes is the beginning of the longer one, up to a mark between its parts."""
    short, long = sorted((one, other), key=len)
    return long.startswith(short) and long[len(short) : len(short) + 1] in ("", "-", ".", "_")


def label_patients(stated: Mapping[str, str | None], file: Path) -> tuple[list[str], list[str]]:
    """The patient of each slide, and what is to be said of how he was found.

    Args:
        stated: slide -> patient in the table of labels; None where it has no column for him.
        file: the table of labels.

    Raises:
        InputError: The table has a column, and the patient of a slide is missing there.
    """
    if missing := [slide for slide, patient in stated.items() if patient is not None and patient.lower() in NO_LABEL]:
        text = f"the patient of {len(missing)} slides is missing ({first_names(missing)})"
        raise InputError(f"--classify {file}: {text}; state it, or leave the whole column out")
    if all(patient is not None for patient in stated.values()):
        return [str(patient) for patient in stated.values()], []
    barcodes = {slide: match[0] for slide in stated if (match := BARCODE.match(slide))}
    n_others, remarks = len(stated) - len(barcodes), []
    if barcodes:
        remarks.append(f"{file}: no column patient: the first 12 characters of {len(barcodes)} TCGA names are taken")
    if n_others:
        remarks.append(f"{file}: no column patient: {n_others} slides are taken to be of a patient each")
    return [barcodes.get(slide, slide) for slide in stated], remarks


def check_classes(labels: Sequence[str], patients: Sequence[str], folds: int, file: Path) -> None:
    """`InputError` for less than two classes, or for a class with fewer patients than folds."""
    counts = Counter(label for label, _ in set(zip(labels, patients, strict=True)))
    if len(counts) < 2:
        raise InputError(
            f"--classify {file}: all {len(labels)} slides are {next(iter(counts))}; two classes are needed"
        )
    if few := [f"{shortened(label)} {n}" for label, n in sorted(counts.items()) if n < folds]:
        text = f"classes with too few patients for {folds} folds: {first_names(few)}"
        raise InputError(f"--classify {file}: {text}; label more of them, or leave the class out")


def mixed_patients(labels: Sequence[str], patients: Sequence[str]) -> list[str]:
    """A warning for patients whose slides have different labels."""
    counts = Counter(patient for _, patient in set(zip(labels, patients, strict=True)))
    mixed = sorted(patient for patient, n in counts.items() if n > 1)
    return [f"{len(mixed)} patients have slides of several classes: {first_names(mixed, N_NAMED)}"] if mixed else []
