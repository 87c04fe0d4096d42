"""What came of classifying slides, as tables: beside the paper's table 2, for the terminal, and as plain numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np

from train.report.auroc import interval_95, p_of_control
from train.report.classify import Classification, ClassifySettings, auroc_difference
from train.report.classify_data import Cohort
from train.report.published import published_status
from train.report.table import HIGHER, METHOD, Cell, Column, Row, Table, number_cell, p_text, slug

STATUS_NAMES = {  # of a class, as people write it -> what was published of it
    **dict.fromkeys(("msi-h", "msih", "msi", "msi-high", "msimut"), "auroc_msi_h"),
    "mss": "auroc_mss",
}
N_GENES_NAMED = 20  # the genes that matter most
STATUS_NOTE = (
    "published: table 2 of the paper, slides of TCGA-COADREAD and models trained on colorectum; other slides, labels "
    "and folds than these, so that they stand beside and are no test. What their ± is over is not stated"
)
GENES_NOTE = (
    "decrease of the AUROC, mean over classes, when a gene is shuffled among the test slides of each fold; ± over "
    "repeats. Genes that say the same share it: each can be shuffled at little cost, as the others still say it"
)


def auroc_table(cohort: Cohort, found: Sequence[Classification], settings: ClassifySettings) -> Table:
    """AUROC of every class by every method, with intervals, controls and differences; published numbers below.

    Args:
        cohort: the slides.
        found: of each method; the others are compared with the first.
        settings: how they were classified.
    """
    classes = range(len(cohort.classes))
    columns = (*(Column(f"{name}, AUROC", HIGHER) for name in cohort.classes), Column("balanced accuracy", HIGHER))
    nothing = Cell("–")
    rows = []
    for one in found:
        spread = len(one.auroc) > 1
        cells = [_mean_and_std(one.auroc[:, c], spread) for c in classes]
        rows.append(Row(one.name, "run", (*cells, _mean_and_std(one.balanced_accuracy, spread))))
        low, high = interval_95(one.drawn)
        of_rows = {
            "95 % interval": [Cell(_between(low[c], high[c])) for c in classes],
            "average precision": [number_cell(float(one.average_precision[:, c].mean())) for c in classes],
            "labels permuted": [_mean_and_std(one.permuted[:, c], len(one.permuted) > 1) for c in classes],
            "p, labels permuted": [_p_cell(p_of_control(one.auroc[:, c].mean(), one.permuted[:, c])) for c in classes],
        }
        if one is not found[0]:
            differences = [auroc_difference(one, found[0], c) for c in classes]
            against = f"minus {found[0].name}"
            of_rows[against] = [Cell(f"{d.mean:+.3f}, {_between(d.low, d.high, '+.3f')}", d.mean) for d in differences]
            of_rows[f"p against {found[0].name}"] = [_p_cell(d.p) for d in differences]
        rows += [Row(label, "p", (*of, nothing)) for label, of in of_rows.items()]
    published = _published_rows(cohort)
    notes = [*_notes(cohort, settings), *_compared_notes(found)] + ([STATUS_NOTE] if published else [])
    return Table("classify", "Classes from predicted expression", columns, (*rows, *published), tuple(notes))


def _mean_and_std(values: np.ndarray, spread: bool) -> Cell:
    return number_cell(float(values.mean()), float(values.std(ddof=1)) if spread else None)


def _p_cell(p: float) -> Cell:
    return Cell(p_text(p), p)


def _between(low: float, high: float, form: str = ".3f") -> str:
    return f"{low:{form}} to {high:{form}}"


def _published_rows(cohort: Cohort) -> list[Row]:
    """Rows of table 2 where the classes are those of microsatellites; none where they are others."""
    keys = [STATUS_NAMES.get(slug(name)) for name in cohort.classes]
    if not any(keys):
        return []
    rows = []
    for method, numbers in published_status().items():
        cells = [number_cell(*numbers.get(key or "", (None, None))) for key in keys]
        rows.append(Row(f"{method}, published", METHOD, (*cells, Cell("–"))))
    return rows


def _notes(cohort: Cohort, settings: ClassifySettings) -> list[str]:
    counts = np.bincount(cohort.labels)
    patients = [len(np.unique(cohort.patients[cohort.labels == c])) for c in range(len(cohort.classes))]
    of_classes = [f"{name} {n} of {m}" for name, n, m in zip(cohort.classes, counts, patients, strict=True)]
    return [
        f"{len(cohort.slides)} slides of {len(cohort.patient_names)} patients ({', '.join(of_classes)}), "
        f"{len(cohort.genes)} genes. Out-of-fold probabilities of random forests of {settings.trees} trees: AUROC of a "
        f"class against the others, mean ± std over {settings.repeats} repeats of {settings.folds} folds by patient",
        f"95 % interval: percentiles over {settings.draws:,} draws of patients with replacement, of the mean over "
        "repeats. It has the chance of which patients were tested, not that of which the forests were trained on",
        f"labels permuted: mean ± std over {settings.permutations} permutations over patients, one repeat each, "
        f"forests of {settings.control_trees} trees; p counts the real labels as one of them, so that "
        f"{1 / (1 + settings.permutations):.3f} is the smallest there is",
        "average precision: by chance a class's share of the slides, "
        + ", ".join(f"{name} {n / len(cohort.slides):.3f}" for name, n in zip(cohort.classes, counts, strict=True)),
    ]


def _compared_notes(found: Sequence[Classification]) -> list[str]:
    if len(found) < 2:
        return []
    return [
        "differences: on the same slides, folds and draws of patients, with a 95 % interval; p: two-sided, twice the "
        "share of draws on the other side of 0; not corrected for the number of comparisons"
    ]


def importance_order(one: Classification) -> np.ndarray:
    """All genes by how much they matter, the most first: indices."""
    return np.argsort(-one.importance.mean(0), kind="stable")


def gene_importance_table(cohort: Cohort, one: Classification) -> Table:
    """The genes that matter most for one method.

    Args:
        cohort: names the genes.
        one: the method.
    """
    rows = []
    for i in importance_order(one)[:N_GENES_NAMED]:
        rows.append(Row(cohort.genes[i], "run", (_importance_cell(one.importance[:, i]),)))
    title = f"Genes by which classes are told apart, {one.name}"
    columns = (Column("decrease of AUROC"),)
    return Table(slug(f"classify genes {one.name}"), title, columns, tuple(rows), (GENES_NOTE,), "gene")


def _importance_cell(values: np.ndarray) -> Cell:
    return number_cell(float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None, 4)


def auroc_csv(cohort: Cohort, found: Sequence[Classification]) -> str:
    """A method's class a row, with all that is known of it, in full precision."""
    rows: list[Sequence[object]] = [
        (
            *("run", "class", "slides", "patients", "auroc", "std_over_repeats", "low", "high", "average_precision"),
            *("balanced_accuracy", "permuted_mean", "permuted_std", "p_permuted"),
            *("against", "difference", "difference_low", "difference_high", "p_difference"),
        )
    ]
    for one in found:
        low, high = interval_95(one.drawn)
        for c, name in enumerate(cohort.classes):
            own = cohort.labels == c
            areas, permuted = one.auroc[:, c], one.permuted[:, c]
            row = [one.name, name, int(own.sum()), len(np.unique(cohort.patients[own])), areas.mean()]
            row += [_std(areas), low[c], high[c], one.average_precision[:, c].mean(), one.balanced_accuracy.mean()]
            row += [permuted.mean(), _std(permuted), p_of_control(areas.mean(), permuted)]
            if one is not found[0]:
                d = auroc_difference(one, found[0], c)
                row += [found[0].name, d.mean, d.low, d.high, d.p]
            rows.append(row + [""] * (len(rows[0]) - len(row)))
    return csv_text(rows)


def score_csv(cohort: Cohort, found: Sequence[Classification]) -> str:
    """A method's slide a row: its patient, its label, and the out-of-fold probability of each class over repeats."""
    rows: list[Sequence[object]] = [
        ("run", "slide", "patient", "label", *(f"probability {name}" for name in cohort.classes))
    ]
    for one in found:
        means = one.probabilities.mean(0)
        for i, slide in enumerate(cohort.slides):
            patient, label = cohort.patient_names[cohort.patients[i]], cohort.classes[cohort.labels[i]]
            rows.append((one.name, slide, patient, label, *means[i].round(6)))
    return csv_text(rows)


def importance_csv(cohort: Cohort, found: Sequence[Classification]) -> str:
    """A method's gene a row, all genes, those that matter most first."""
    rows: list[Sequence[object]] = [("run", "gene", "decrease_of_auroc", "std_over_repeats")]
    for one in found:
        mean = one.importance.mean(0)
        rows += [(one.name, cohort.genes[i], mean[i], _std(one.importance[:, i])) for i in importance_order(one)]
    return csv_text(rows)


def _std(values: np.ndarray) -> float | str:
    return float(values.std(ddof=1)) if len(values) > 1 else ""


def csv_text(rows: Sequence[Sequence[object]]) -> str:
    """Rows as CSV, numbers as Python writes them."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
