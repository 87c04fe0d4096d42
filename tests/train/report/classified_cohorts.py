"""Made-up cohorts of slides with a class, and their files as hist-predict and a hospital would leave them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from train.report.classify_data import Cohort


def make_cohort(labels: np.ndarray, patients: np.ndarray, *values: np.ndarray) -> Cohort:
    names = tuple(["first", "second", "third"][: len(values)])
    return Cohort(
        slides=tuple(f"S{i}" for i in range(len(labels))),
        labels=labels,
        classes=tuple(f"C{c}" for c in range(labels.max() + 1)),
        patients=patients,
        patient_names=tuple(f"P{p}" for p in range(patients.max() + 1)),
        genes=tuple(f"GENE{g}" for g in range(values[0].shape[1])),
        values={name: of.astype(np.float32) for name, of in zip(names, values, strict=True)},
        files={name: Path(f"{name}/pseudobulk.csv") for name in names},
        left_out={},
        remarks=(),
        warnings=(),
    )


def planted(n: int = 60, genes: int = 20, shift: float = 2.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, a third of class 1, and expression whose first three genes are higher there."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation((np.arange(n) % 3 == 0).astype(int))
    values = rng.normal(size=(n, genes))
    values[:, :3] += shift * labels[:, None]
    return labels, values


def write_pseudobulk(folder: Path, slides: Sequence[str], values: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [[slide, *map(float, row.round(4))] for slide, row in zip(slides, values, strict=True)]
    return write_csv(folder / "pseudobulk.csv", [["slide", *(f"GENE{g}" for g in range(values.shape[1]))], *rows])


def write_csv(file: Path, rows: Sequence[Sequence[object]]) -> Path:
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    return file
