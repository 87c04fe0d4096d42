"""What to know before believing a number: said first, in the report and on the terminal."""

from __future__ import annotations

from hist_cache.datasets import dataset_named
from hist_cache.splits import Split, patient_leaks
from train.results import Results, RunResult


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
