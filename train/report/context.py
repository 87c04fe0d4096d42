"""What a reader must know to judge the numbers: warnings, settings, and how the runs were made."""

from __future__ import annotations

import json
import tomllib
from typing import Any

from hist_cache.datasets import dataset_named
from hist_cache.fingerprint import as_version_0_1
from hist_cache.splits import shared_patients
from train.experiments.protocols import PROTOCOLS_FILE
from train.experiments.within import NOTHING_OF_NEW_SLIDES
from train.models.registry import model_entries
from train.models.variants import load_variants
from train.report.results import Results, RunResult
from train.report.run_settings import WITHIN_SLICES
from train.report.table import Cell, Column, Row, Table

ABSENT = "–"
PROTOCOL_WARNINGS = (  # a protocol's option, its value, and what that means for the numbers
    ("tested", "last", "the last epoch's weights are tested, not those of the best validation epoch"),
    ("panel_from", "all", "the gene panel was chosen on all slides, the test slides among them"),
    ("edge_spots", "drop", "spots without a complete niche were dropped, also from the test"),
)


def result_warnings(results: Results) -> list[str]:
    """What makes numbers doubtful or hard to compare, a sentence each, the most serious first."""
    warnings = [*adapter_warnings(results), *weight_warnings(results), *within_warnings(results)]
    warnings += patient_warnings(results)
    warnings += [*results.incomplete, *results.meaningless]
    for run in results.runs:
        warnings += run_warnings(run)
    warnings += protocol_warnings(results)
    return list(dict.fromkeys(warnings))


def adapter_warnings(results: Results) -> list[str]:
    """Runs that were tested on slides that the adapter of their embeddings has seen."""
    return [f"LEAK: {run.label}: {leak}: this says nothing of new slides" for run in results.runs for leak in run.leaks]


def weight_warnings(results: Results) -> list[str]:
    """Encoders whose weights were never trained."""
    caches = [run.setting.cache for run in results.runs]
    encoders = {cache["encoder"] for cache in caches if not cache.get("pretrained", True)}
    text = "has random weights: metrics show that the method runs, not what it can do"
    return [f"encoder {name} {text}" for name in sorted(encoders)]


def within_warnings(results: Results) -> list[str]:
    """Datasets with runs within slices."""
    datasets = dict.fromkeys(run.setting.dataset for run in results.runs if run.is_within)
    return [f"{dataset}, {WITHIN_SLICES}: {NOTHING_OF_NEW_SLIDES}" for dataset in datasets]


def patient_warnings(results: Results) -> list[str]:
    """Patients whose slides are both in train and in test, by the datasets' tables or the slides' metadata."""
    folds_by_patients: dict[tuple[str, str, str], list[int]] = {}
    unknown = set()
    for run in results.runs:
        if run.is_within:
            continue  # its slides are shared, which `within_warnings` says
        dataset = run.setting.dataset
        for fold in run.folds:
            patients = dataset_named(dataset).patients or fold.patients
            if not patients:
                unknown.add(dataset)
            if shared := shared_patients(fold.split, patients):
                key = (dataset, run.setting.split, ", ".join(shared))
                numbers = folds_by_patients.setdefault(key, [])
                numbers += [fold.number] if fold.number not in numbers else []
    warnings = [
        f"{dataset}, {kind} split, {_fold_names(numbers)}: {shared} in train and test, so the metrics are optimistic "
        "(--split patient avoids it)"
        for (dataset, kind, shared), numbers in folds_by_patients.items()
    ]
    return warnings + [
        f"{d}: its patients are not listed, whether train and test share any is unknown" for d in sorted(unknown)
    ]


def run_warnings(run: RunResult) -> list[str]:
    """The warnings in a run's own metrics.json, such as a collapsed geometry; that it diverged comes first."""
    folds: dict[str, list[int]] = {}
    for fold in run.folds:
        diverged = [f"diverged: {text}" for text in fold.diverged]
        told = (*fold.diverged, *(w for w in fold.metrics.get("warnings", ()) if w.startswith("LEAK")))
        for text in [*diverged, *(w for w in fold.metrics.get("warnings", ()) if w not in told)]:
            folds.setdefault(text, []).append(fold.number)
    return [f"{run.label}, {_fold_names(numbers)}: {text}" for text, numbers in folds.items()]


def protocol_warnings(results: Results) -> list[str]:
    """Choices of a protocol that let training see the test slides, or that differ from the paper's."""
    protocols = [run.setting.protocol for run in results.runs]
    return [
        f"protocol {protocol.name}: {text}"
        for protocol in protocols
        for option, value, text in PROTOCOL_WARNINGS
        if getattr(protocol, option) == value
    ]


def _fold_names(numbers: list[int]) -> str:
    return f"fold{'s' * (len(numbers) > 1)} {', '.join(map(str, sorted(numbers)))}"


def configuration_table(results: Results) -> Table:
    """A setting a row; one column where the runs share all settings, else one for each run, differences first."""
    texts = [setting_texts(run) for run in results.runs]
    rows = {key: [of_run.get(key, ABSENT) for of_run in texts] for key in dict.fromkeys(k for t in texts for k in t)}
    differing = [key for key, values in rows.items() if len(set(values)) > 1]
    columns = tuple(Column(run.label) for run in results.runs) if differing else (Column("all runs"),)
    ordered = [*differing, *(key for key in rows if key not in differing)]
    table_rows = [Row(key, "run", tuple(Cell(v) for v in rows[key][: len(columns)])) for key in ordered]
    return Table("configuration", "Settings", columns, tuple(table_rows), (), "setting")


def setting_texts(run: RunResult) -> dict[str, str]:
    """The settings of a run as texts, by name."""
    settings = run.settings | {
        "slides": f"{len(run.setting.slides)}",
        "panel": run.setting.panel[:8] or "each fold's",
    }
    return {key.replace("_", " "): _text(value) for key, value in settings.items()}


def _text(value: Any) -> str:
    if value is None:
        return ABSENT
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def descriptions(results: Results) -> list[tuple[str, str]]:
    """Names and descriptions of what was run: variants of HiST, other models, protocols."""
    protocols = tomllib.loads(PROTOCOLS_FILE.read_text("utf-8"))
    lines = {name: variant.description for name, variant in load_variants().items()}
    lines |= {entry.name: entry.title for entry in model_entries()}
    lines |= {f"protocol {name}": row["description"] for name, row in protocols.items()}
    names = [run.method for run in results.runs] + [f"protocol {run.setting.protocol.name}" for run in results.runs]
    return [(name, lines.get(name, ABSENT)) for name in dict.fromkeys(names)]


def cache_fingerprints(results: Results) -> list[tuple[str, str]]:
    """The fingerprint of each cache that was trained on: its short hash, and as JSON all that the hash is taken of."""
    caches = {run.settings["cache"]: as_version_0_1(run.setting.cache) for run in results.runs}
    return [(short, json.dumps(cache, indent=1, sort_keys=True)) for short, cache in caches.items()]


def origin(run: RunResult) -> str:
    """When, on what, with what versions and by what command the first fold was run."""
    provenance = run.folds[0].provenance
    versions = provenance.versions
    packages = ", ".join(f"{name} {versions[name]}" for name in ("hist-cache", "torch", "timm") if name in versions)
    date = provenance.date[:16].replace("T", " ")
    return "; ".join(filter(None, [date, provenance.device, packages, provenance.command]))
