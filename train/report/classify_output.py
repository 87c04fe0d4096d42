"""hist-report --classify: reads labels and expression, classifies, and writes numbers, a figure and a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import numpy as np

from hist_cache.files import write_json, write_text
from hist_cache.fingerprint import provenance
from train.report.classify import Classification, ClassifySettings
from train.report.classify_data import Cohort
from train.report.classify_plots import plot_classification
from train.report.classify_tables import auroc_csv, auroc_table, gene_importance_table, importance_csv, score_csv
from train.report.figures import picture
from train.report.page import Origin, Section, render_page
from train.report.table import Cell, Column, Row, Table

CLASSIFY_FOLDER = "classify"  # beside the first file, unless another folder is named
SCORES, AUROCS, IMPORTANCE, CLASSIFY_JSON = "scores.csv", "auroc.csv", "importance.csv", "classify.json"
ROC_FIGURE, CLASSIFY_PAGE = "roc.png", "classify.html"
SEED_RULE = (
    "numpy.random.SeedSequence([seed, purpose, permutation, repeat, ...]), purposes: 0 order of the patients before "
    "they are split, 1 forest (and fold), 2 shuffling of genes (and fold), 3 permutation of the labels, 4 draws of "
    "patients; permutation 0 is the real labels"
)


def classification_tables(cohort: Cohort, found: Sequence[Classification], settings: ClassifySettings) -> list[Table]:
    """The table of areas, then that of genes of each method."""
    return [auroc_table(cohort, found, settings), *(gene_importance_table(cohort, one) for one in found)]


def write_classification(
    folder: Path, cohort: Cohort, found: Sequence[Classification], settings: ClassifySettings, label_file: Path
) -> Path:
    """Write scores, areas, genes, settings, the figure and the page into a folder.

    Args:
        folder: made if it is not there.
        cohort: the slides.
        found: of each method.
        settings: how they were classified.
        label_file: the table of labels.

    Returns:
        Path of the page.
    """
    write_text(folder / SCORES, score_csv(cohort, found))
    write_text(folder / AUROCS, auroc_csv(cohort, found))
    write_text(folder / IMPORTANCE, importance_csv(cohort, found))
    made = provenance()
    made["versions"] |= {name: version(name) for name in ("scikit-learn", "scipy")}
    about = {
        "settings": asdict(settings),
        "seeds": SEED_RULE,
        "labels": str(label_file),
        "files": {name: str(file) for name, file in cohort.files.items()},
        "slides": len(cohort.slides),
        "patients": len(cohort.patient_names),
        "genes": len(cohort.genes),
        "classes": dict(zip(cohort.classes, map(int, np.bincount(cohort.labels)), strict=True)),
        "left_out": {why: list(of) for why, of in cohort.left_out.items()},
        "remarks": list(cohort.remarks),
        "warnings": list(cohort.warnings),
        "provenance": made,
    }
    write_json(folder / CLASSIFY_JSON, about)
    plot_classification(folder / ROC_FIGURE, cohort, found)
    page = folder / CLASSIFY_PAGE
    tables = classification_tables(cohort, found, settings)
    origins = [(name, str(file), "") for name, file in cohort.files.items()]
    origins.append(("labels", str(label_file), f"{made['date'][:16].replace('T', ' ')}; {made['command']}"))
    caption = (
        "Left: ROC curves of out-of-fold probabilities, mean over repeats within their range. Right: areas under them "
        "when the labels are permuted over patients, and with the real labels as lines."
    )
    alt = f"ROC curves and the control. {'; '.join(_sentence(cohort, one) for one in found)}."
    text = " ".join(f"{sentence[0].upper()}{sentence[1:]}." for sentence in cohort.remarks)
    sections = [
        Section("Classes", text, tables[:1], [picture(folder / ROC_FIGURE, "ROC curves", caption, alt)]),
        Section("Genes", tables=tables[1:]),
    ]
    subtitle = f"{len(cohort.slides)} slides of {len(cohort.patient_names)} patients"
    title = f"{', '.join(cohort.classes)} from predicted expression"
    facts = Origin(_settings_table(settings), origins=origins)
    write_text(page, render_page(title, subtitle, sections, cohort.warnings, facts))
    return page


def _sentence(cohort: Cohort, one: Classification) -> str:
    areas = [f"{name} {area:.3f}" for name, area in zip(cohort.classes, one.auroc.mean(0), strict=True)]
    return f"AUROC by {one.name}: {', '.join(areas)}"


def _settings_table(settings: ClassifySettings) -> Table:
    rows = [Row(name.replace("_", " "), "run", (Cell(f"{value}"),)) for name, value in asdict(settings).items()]
    return Table("settings", "Settings", (Column("value"),), tuple(rows), (SEED_RULE,), "setting")
