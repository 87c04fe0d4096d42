"""What slides are classified by: predicted pseudo-bulk expression, their labels, and the patients they are of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hist_cache.errors import InputError
from hist_cache.texts import bad_name, first_names, shortened
from hist_cache.values import LARGEST
from train.report.classify_labels import (
    N_NAMED,
    SlideLabel,
    check_classes,
    label_patients,
    match_slides,
    mixed_patients,
    read_slide_labels,
    read_table_rows,
)

PSEUDOBULK_FILE = "pseudobulk.csv"  # in the folder that hist-predict --pseudobulk writes to


@dataclass(frozen=True)
class Pseudobulk:
    """The expression of slides, as a file has it.

    Attributes:
        file: The file.
        slides: Their names.
        genes: Names of the genes.
        values: (slides, genes) float64, mean predicted expression of each slide.
    """

    file: Path
    slides: list[str]
    genes: list[str]
    values: np.ndarray


@dataclass(frozen=True)
class Cohort:
    """Labelled slides, with the expression that each method predicts of them.

    Attributes:
        slides: Names of the n slides.
        labels: (n,) the index of each slide's class.
        classes: Names of the classes.
        patients: (n,) the index of each slide's patient.
        patient_names: Names of the patients.
        genes: Names of the G genes.
        values: Name of a method -> (n, G) float32.
        files: Name of a method -> its file.
        left_out: Why slides and labels are left out -> their names.
        remarks: What was decided without being asked, a sentence each.
        warnings: What makes the result doubtful, a sentence each.
    """

    slides: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    patients: np.ndarray
    patient_names: tuple[str, ...]
    genes: tuple[str, ...]
    values: dict[str, np.ndarray]
    files: dict[str, Path]
    left_out: dict[str, tuple[str, ...]]
    remarks: tuple[str, ...]
    warnings: tuple[str, ...]


def read_cohort(label_file: Path, paths: Sequence[Path], folds: int) -> Cohort:
    """Read labels and expression, and put the slides together that have both.

    Args:
        label_file: CSV with the columns slide and label, and patient or case where they are known.
        paths: CSV files of `hist-predict --pseudobulk`, or folders that hold one.
        folds: that patients will be split into: every class needs as many patients.

    Raises:
        InputError: A file cannot be used, the files have other genes, or a class has too few patients.
    """
    labels = read_slide_labels(label_file)
    tables = [read_pseudobulk(pseudobulk_path(path)) for path in paths]
    names, first = method_names([table.file for table in tables]), tables[0]
    check_same_genes(tables)
    counts = Counter(slide for table in tables for slide in table.slides)
    slides = [slide for slide in first.slides if counts[slide] == len(tables)]
    matches, doubtful = match_slides(slides, list(labels))
    labelled = [slide for slide in slides if slide in matches and labels[matches[slide]].label is not None]
    if not labelled:
        raise InputError(f"--classify {label_file}: labels none of the {len(slides)} slides of {first.file}")
    patients, remarks = label_patients({slide: labels[matches[slide]].patient for slide in labelled}, label_file)
    left_out = _left_out(counts, slides, labelled, labels, set(matches.values()) | set(doubtful))
    left_out |= {"barcodes that fit several slides, or one of several that fit a slide": tuple(doubtful)}
    left_out = {why: of for why, of in left_out.items() if of}
    if by_barcode := [slide for slide in labelled if matches[slide] != slide]:
        text = f"{matches[by_barcode[0]]} for {by_barcode[0]}"
        remarks.insert(0, f"{len(by_barcode)} labels found by the beginning of a TCGA barcode, such as {text}")
    remarks += [f"left out: {len(of)} {why}: {first_names(of, N_NAMED)}" for why, of in left_out.items()]
    label_names = [str(labels[matches[slide]].label) for slide in labelled]
    check_classes(label_names, patients, folds, label_file)
    classes, label_codes = np.unique(label_names, return_inverse=True)
    patient_names, patient_codes = np.unique(patients, return_inverse=True)
    values = {name: _rows(table, labelled, first.genes) for name, table in zip(names, tables, strict=True)}
    return Cohort(
        slides=tuple(labelled),
        labels=label_codes,
        classes=tuple(map(str, classes)),
        patients=patient_codes,
        patient_names=tuple(map(str, patient_names)),
        genes=tuple(first.genes),
        values=values,
        files=dict(zip(names, (table.file for table in tables), strict=True)),
        left_out=left_out,
        remarks=tuple(remarks),
        warnings=(*equal_slides(values, labelled, patients), *mixed_patients(label_names, patients)),
    )


def _left_out(
    counts: Mapping[str, int],
    slides: Sequence[str],
    labelled: Sequence[str],
    labels: Mapping[str, SlideLabel],
    used: Collection[str],
) -> dict[str, tuple[str, ...]]:
    """Why slides and labels are left out, and their names."""
    in_all, with_label = set(slides), set(labelled)
    return {
        "slides that are not in all files": tuple(slide for slide in counts if slide not in in_all),
        "slides without a label": tuple(slide for slide in slides if slide not in with_label),
        "labels without a slide": tuple(name for name in labels if name not in used),
    }


def pseudobulk_path(path: Path) -> Path:
    """The file of that name, or the one that a folder holds; `InputError` where there is none."""
    file = path / PSEUDOBULK_FILE if path.is_dir() else path
    if not file.exists():
        raise InputError(f"{file}: no such file; hist-predict --pseudobulk writes one")
    return file


def read_pseudobulk(file: Path) -> Pseudobulk:
    """Read a table of slides x genes; `InputError` says what is wrong with it."""
    names, rows = read_table_rows(file)
    if names[:1] != ["slide"] or len(names) < 2:
        first = f"its first column is {shortened(names[0])!r}" if names else "it is empty"
        advice = "give a CSV file of hist-predict --pseudobulk: slide, then a column a gene"
        raise InputError(f"{file}: {first if names[:1] != ['slide'] else 'it has no genes'}; {advice}")
    genes, slides = names[1:], [row["slide"].strip() for row in rows]
    for what, of in (("gene", genes), ("slide", slides)):
        if problem := bad_name(of):
            raise InputError(f"{file}: the name of a {what} is {problem}")
        if twice := [name for name, count in Counter(of).items() if count > 1]:
            raise InputError(f"{file}: {what} {first_names(twice)} is there twice; leave one of them")
    if not slides:
        raise InputError(f"{file}: it has no slides")
    return Pseudobulk(file, slides, genes, _numbers(file, rows, slides, genes))


def _numbers(file: Path, rows: list[dict[str, str]], slides: list[str], genes: list[str]) -> np.ndarray:
    texts = [[row[gene] for gene in genes] for row in rows]
    values = np.empty((len(slides), len(genes)))
    for i, row in enumerate(texts):
        for j, text in enumerate(row):
            try:
                values[i, j] = float(text)
            except ValueError:
                values[i, j] = np.nan
    if len(bad := np.argwhere(~(np.abs(values) < LARGEST))):
        i, j = bad[0]
        text = shortened(texts[i][j]) or "nothing"
        more = f" ({len(bad)} such values)" if len(bad) > 1 else ""
        raise InputError(f"{file}: slide {slides[i]}, {genes[j]}: {text} is no number that can be used{more}")
    return values


def _rows(table: Pseudobulk, slides: Sequence[str], genes: Sequence[str]) -> np.ndarray:
    row = {slide: i for i, slide in enumerate(table.slides)}
    column = {gene: j for j, gene in enumerate(table.genes)}
    return table.values[np.ix_([row[s] for s in slides], [column[g] for g in genes])].astype(np.float32)


def method_names(files: Sequence[Path]) -> list[str]:
    """A name for each file, by which tables tell them apart: its folder's, with as much more as it takes.

    Raises:
        InputError: A file is there twice.
    """
    paths = [file.resolve() for file in files]
    if len(set(paths)) < len(paths):
        twice = next(file for i, file in enumerate(files) if paths[i] in paths[:i])
        raise InputError(f"{twice}: is given twice; leave one of them")
    for names in (
        [path.parent.name for path in paths],
        [path.stem for path in paths],
        ["/".join(path.parts[-3:-1]) for path in paths],
    ):
        if len(set(names)) == len(names) and all(names):
            return names
    return list(map(str, paths))


def check_same_genes(tables: Sequence[Pseudobulk]) -> None:
    """`InputError` where a table has other genes than the first: a difference could then be that of the genes."""
    for table in tables[1:]:
        if other := sorted(set(table.genes) ^ set(tables[0].genes)):
            text = f"{len(other)} genes are in one of them only ({first_names(other)})"
            raise InputError(
                f"{table.file}: {tables[0].file} has other genes, {text}; compare predictions of one panel"
            )


def equal_slides(values: Mapping[str, np.ndarray], slides: Sequence[str], patients: Sequence[str]) -> list[str]:
    """A warning for slides with the same expression under several names, which may be in train and in test."""
    first = next(iter(values.values()))
    groups: dict[bytes, list[int]] = {}
    for i, row in enumerate(first):
        groups.setdefault(row.tobytes(), []).append(i)
    warnings = []
    for rows in (of for of in groups.values() if len(of) > 1):
        names, whose = [slides[i] for i in rows], sorted({patients[i] for i in rows})
        effect = f"of {len(whose)} patients: train and test share it" if len(whose) > 1 else f"of patient {whose[0]}"
        warnings.append(f"{first_names(names)} have the same expression: one slide under several names? ({effect})")
    return warnings
