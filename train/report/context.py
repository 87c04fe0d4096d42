"""What to know before believing a number: said first, in the report and on the terminal."""

from __future__ import annotations

import json
import tomllib
from typing import Any

from hist_cache.datasets import dataset_named
from hist_cache.splits import Split, patient_leaks
from train.experiments.protocols import TABLE as PROTOCOLS
from train.models.variants import TABLE as VARIANTS
from train.report.results import Results, RunResult
from train.report.table import Cell, Column, Row, Table


def caveats(results: Results) -> list[str]:
    """One sentence each, the gravest first."""
    said = [*random_weights(results), *leaks(results), *results.incomplete]
    for run in results.runs:
        said += undefined(run)
        said += own_warnings(run)
    said += choices(results)
    return list(dict.fromkeys(said))


def random_weights(results: Results) -> list[str]:
    encoders = {r.config["cache"]["encoder"] for r in results.runs if not r.config["cache"].get("pretrained", True)}
    what = "has random weights: metrics show that the method runs, not what it can do"
    return [f"encoder {name} {what}" for name in sorted(encoders)]


def leaks(results: Results) -> list[str]:
    """Patients in train and in test, by the datasets' tables or the metadata; said once for the same splits."""
    found: dict[tuple[str, str, str], list[int]] = {}
    unknown = set()
    for run in results.runs:
        dataset = str(run.settings["dataset"])
        for fold in run.folds:
            parts = fold.config["split"]
            patients = dataset_named(dataset).patients or fold.config.get("patients", {})
            if not patients:
                unknown.add(dataset)
            split = Split(tuple(parts["train"]), tuple(parts["val"]), tuple(parts["test"]), parts["name"])
            if shared := patient_leaks(split, patients):
                folds = found.setdefault((dataset, str(run.settings["split"]), ", ".join(shared)), [])
                folds += [fold.number] if fold.number not in folds else []
    said = [
        f"{dataset}, {kind} split, {_folds(folds)}: {shared} in train and test, so the metrics are optimistic "
        "(--split patient avoids it)"
        for (dataset, kind, shared), folds in found.items()
    ]
    return said + [
        f"{d}: its patients are not listed, whether train and test share any is unknown" for d in sorted(unknown)
    ]


def undefined(run: RunResult) -> list[str]:
    """Genes whose PCC is undefined, which count as 0."""
    folds = {fold.number: fold.metrics.get("n_undefined_genes", 0) for fold in run.folds}
    some = {i: n for i, n in folds.items() if n}
    if not some:
        return []
    counts = ", ".join(f"{n} in fold {i}" for i, n in some.items())
    return [f"{run.label}: genes without a PCC (constant in truth or prediction), counted as 0: {counts}"]


def own_warnings(run: RunResult) -> list[str]:
    """What the run itself warned of, such as a collapsed geometry."""
    folds: dict[str, list[int]] = {}
    for fold in run.folds:
        for text in fold.metrics.get("warnings", ()):
            folds.setdefault(text, []).append(fold.number)
    return [f"{run.label}, {_folds(numbers)}: {text}" for text, numbers in folds.items()]


def choices(results: Results) -> list[str]:
    """Choices of the protocol that let the test be seen, or that differ from the paper's."""
    said = []
    for run in results.runs:
        protocol = run.config["protocol"]
        who = f"protocol {protocol['name']}"
        if protocol.get("tested") == "last":
            said.append(f"{who}: the last epoch's weights are tested, not those of the best validation epoch")
        if protocol.get("panel_from") == "all":
            said.append(f"{who}: the gene panel was chosen on all slides, the test slides among them")
        if protocol.get("edge_spots") == "drop":
            said.append(f"{who}: spots without a complete niche were dropped, also from the test")
    return said


def _folds(numbers: list[int]) -> str:
    return f"fold{'s' * (len(numbers) > 1)} {', '.join(map(str, sorted(numbers)))}"


def configuration_table(results: Results) -> Table:
    """A row a setting; one column where all runs share it all, else one a run, those that differ first."""
    runs = results.runs
    rows: dict[str, list[str]] = {}
    for run in runs:
        for key, value in _facts(run).items():
            rows.setdefault(key, []).append(value)
    differ = [key for key, values in rows.items() if len(set(values)) > 1]
    columns = tuple(Column(run.label) for run in runs) if differ else (Column("all runs"),)
    ordered = [*differ, *(key for key in rows if key not in differ)]
    shown = [Row(key, "run", tuple(Cell(v) for v in rows[key][: len(columns)])) for key in ordered]
    return Table("configuration", "Settings", columns, tuple(shown), (), "setting")


def _facts(run: RunResult) -> dict[str, str]:
    settings = run.settings | {
        "slides": f"{len(run.settings['slides'])}",
        "panel": run.settings["panel"][:8] or "each fold's",
    }
    return {key.replace("_", " "): _text(value) for key, value in settings.items()}


def _text(value: Any) -> str:
    if value is None:
        return "–"
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def variant_lines(results: Results) -> list[tuple[str, str]]:
    """Each variant and each protocol that was run, with its line of description."""
    lines = []
    for file, names in (
        (VARIANTS, [run.variant for run in results.runs]),
        (PROTOCOLS, [f"{run.settings['protocol']}" for run in results.runs]),
    ):
        rows = tomllib.loads(file.read_text("utf-8"))
        kind = "" if file == VARIANTS else "protocol "
        lines += [(kind + name, rows.get(name, {}).get("description", "–")) for name in dict.fromkeys(names)]
    return lines


def cache_facts(results: Results) -> list[tuple[str, str]]:
    """The fingerprint of each cache that was trained on: its short hash, and all of it as JSON."""
    found = {run.settings["cache"]: run.config["cache"] for run in results.runs}
    return [(short, json.dumps(cache, indent=1, sort_keys=True)) for short, cache in found.items()]


def origin(run: RunResult) -> str:
    """When, by what command and with what versions the first fold was run."""
    made = run.config.get("provenance", {})
    versions = made.get("versions", {})
    with_what = ", ".join(f"{name} {versions[name]}" for name in ("hist-cache", "torch", "timm") if name in versions)
    return "; ".join(
        filter(None, [made.get("date", "")[:16].replace("T", " "), made.get("device"), with_what, made.get("command")])
    )
