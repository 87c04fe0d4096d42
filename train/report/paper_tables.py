"""Runs laid out as the paper lays them out: plain tables, which train/render.py turns into text."""

from __future__ import annotations

from train.report.published import END_TO_END, FROZEN, Numbers, published, published_cost
from train.report.results import Results, RunResult
from train.report.run_settings import DATA
from train.report.significance import NOTE, REFERENCE, compare, references
from train.report.table import (
    HIGHER,
    LOWER,
    Cell,
    Column,
    Row,
    Table,
    metric_order,
    number,
    over_folds,
    p_text,
    slug,
    with_best,
)

COST_ALONE = 5  # the paper's table that has no metrics
COST_COLUMNS = {"peak_memory_gb": "peak memory, GB", "train_s_per_epoch": "s/epoch", "inference_s": "inference, s"}
CONTROLS = {"ridge": "ridge, PCA-256", "train_mean": "train mean", "permuted": "permuted"}
SCOPES = {
    "pooled": "pooled over test spots",
    "slide_mean": "slide by slide, then their mean",
    "complete_niches": "spots with a complete niche",
}
PUBLISHED_NOTE = (
    "published, LoRA 11: trained end to end; LoRA 0: a frozen encoder (table 14), which is what cached embeddings "
    "compare with. Their ± is as printed, over the units evaluated, which need not be the splits"
)


def results_tables(
    results: Results, reference: str | None = None, table: int | None = None, scope: str = "pooled"
) -> list[Table]:
    """The metrics, a table for each dataset that is predicted; also the cost, where the paper's table has it.

    reference: the variant or run to test against (default: full). table: the paper's number, for the title and the
    numbers beside. `InputError` for a reference that is not among the runs.
    """
    from train.experiments.grid import table_row

    row = table_row(table) if table is not None else {}
    title = f"Table {table}: {row['title']}" if table is not None else ""
    tables = []
    if table != COST_ALONE:
        tables += [metrics_table(results, runs, title, reference, table, scope) for runs in grouped(results)]
    if row.get("cost"):
        tables += [cost_table(results, table)]
    return tables


def grouped(results: Results) -> list[list[RunResult]]:
    """Runs whose numbers can stand in one table: the same dataset is predicted, in the same unit."""
    groups: dict[tuple[str, ...], list[RunResult]] = {}
    for run in results.runs:
        key = tuple(str(run.settings[k]) for k in ("dataset", "test_dataset", "transform"))
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def group_name(run: RunResult) -> str:
    """`kidney`, `kidney, tested on kidney_papilla`, `kidney, ln_cp10k`."""
    s = run.settings
    parts = [s["dataset"], f"tested on {s['test_dataset']}" if s["test_dataset"] else ""]
    return ", ".join(filter(None, [*parts, s["transform"] if s["transform"] != "log2" else ""]))


def metrics_table(
    results: Results,
    runs: list[RunResult],
    title: str = "",
    reference: str | None = None,
    table: int | None = None,
    scope: str = "pooled",
) -> Table:
    """Runs that predict one dataset: mean ± std over folds, p, published numbers; then what a model must beat."""
    frame = results.metrics[results.metrics["scope"] == scope]
    frame = frame[frame["run"].isin([r.label for r in runs])]
    metrics = metric_order(set(frame["metric"]))
    columns = tuple(Column(m.upper(), HIGHER if m.startswith("pcc") else LOWER) for m in metrics)
    chosen = references(results, reference)
    rows = []
    any_published = any_p = False
    for run in runs:
        rows.append(Row(run.label, "run", over_folds(frame[frame["run"] == run.label], metrics)))
        if run.label in chosen:
            other = chosen[run.label]
            p = [compare(results, run, other, m, scope).p_t for m in metrics]
            any_p = any_p or any(v is not None for v in p)
            rows.append(Row(f"p against {other.label}", "p", tuple(Cell(p_text(v), v) for v in p)))
        for label, numbers in beside(run, table) if scope == "pooled" else ():
            any_published = True
            rows.append(Row(label, "published", tuple(number(*numbers.get(m, (None, None))) for m in metrics)))
    if all(run.shares(runs[0], ("genes", "n_genes", "panel")) for run in runs):
        rows = with_best(rows, columns)
    if scope == "pooled":
        rows += control_rows(results, runs, metrics)
    folds = sorted({len(run.folds) for run in runs})
    where = title or "Metrics"
    unit = "log2(1 + count)" if runs[0].settings["transform"] == "log2" else "ln(1 + count per 10,000)"
    notes = [f"mean ± std over {' or '.join(map(str, folds))} folds, {SCOPES[scope]}; MSE and MAE in {unit}"]
    notes += [NOTE] if any_p else []
    if not chosen and len(runs) > 1:
        notes.append(f"no p: no run of {reference or REFERENCE} that predicts the same to test against")
    notes += [PUBLISHED_NOTE] if any_published else []
    labels = {run.label for run in runs}
    notes += [text for text in results.incomplete if any(text.startswith(f"{label}: ") for label in labels)]
    group = group_name(runs[0])
    return Table(slug(f"metrics {scope} {group}"), f"{where}, {group}", columns, tuple(rows), tuple(notes))


def cost_table(results: Results, table: int | None = None) -> Table:
    """Table 5: memory, seconds an epoch, seconds of inference, beside the published."""
    columns = tuple(Column(title, LOWER) for title in COST_COLUMNS.values())
    rows = []
    any_published = False
    for run in results.runs:
        frame = results.cost[results.cost["run"] == run.label]
        rows.append(Row(run.label, "run", over_folds(frame, list(COST_COLUMNS))))
        s = run.settings
        numbers = published_cost(s["dataset"], s["n_genes"], table) if run.variant == REFERENCE else {}
        if numbers:
            any_published = True
            cells = tuple(number(*numbers.get(m, (None, None))) for m in COST_COLUMNS)
            rows.append(Row("published, end to end", "published", cells))
    machines = {
        f"{c['device']}, {c['threads']} thread{'s' * (c['threads'] > 1)}"
        for run in results.runs
        for c in (fold.cost for fold in run.folds)
        if "device" in c
    }
    notes = [
        f"mean ± std over folds; on {'; '.join(sorted(machines)) or 'an unknown device'}. Memory is the device's on a "
        "GPU and the whole process's on a CPU; an epoch includes its validation; inference is of all test spots, from "
        "cached embeddings. Folds trained side by side slow each other down"
    ]
    if any_published:
        notes.append("published: the encoder is trained and run too, on an RTX 4090, from images")
    return Table("cost", "Memory and time", columns, tuple(rows), tuple(notes))


def beside(run: RunResult, table: int | None) -> list[tuple[str, Numbers]]:
    """The published numbers for a run, with their labels, the like of it first; none where nothing was published."""
    s = run.settings
    if s["transform"] != "log2":
        return []
    setting = (
        s["dataset"],
        run.variant,
        s["genes"],
        s["n_genes"],
        s["split"],
        s["neighbors"],
        s["test_dataset"],
        table,
    )
    tuned = s["lora_layers"]
    found = [
        (layers, published(*setting, lora_layers=layers)) for layers in dict.fromkeys((tuned or FROZEN, END_TO_END))
    ]
    return [(f"published, LoRA {layers}", numbers) for layers, numbers in found if numbers]


def control_rows(results: Results, runs: list[RunResult], metrics: list[str]) -> list[Row]:
    """Controls, once for each data setting; permuted is that of `full`, or of the setting's first run."""
    groups: list[list[RunResult]] = []
    for run in runs:
        known = next((g for g in groups if run.shares(g[0], DATA)), None)
        if known is None:
            groups.append([run])
        else:
            known.append(run)
    rows = []
    for control, name in CONTROLS.items():
        found: dict[tuple[float | None, ...], Row] = {}
        for group in groups:
            shown = next((r for r in group if r.variant == REFERENCE), group[0])
            if control != "permuted":
                shown = max(group, key=lambda r: len(r.folds))
            frame = results.controls[
                (results.controls["run"] == shown.label) & (results.controls["control"] == control)
            ]
            cells = over_folds(frame, metrics)
            label = f"{shown.label}, permuted" if control == "permuted" else name
            if control != "permuted" and shown.data_label:
                label += f", {shown.data_label}"
            found.setdefault(tuple(c.value for c in cells), Row(label, "control", cells))
        one = len(found) == 1 and control != "permuted"  # train means are the same for any neighbourhood
        rows += [Row(name, row.kind, row.cells) if one else row for row in found.values()]
    return [row for row in rows if any(c.value is not None for c in row.cells)]
