"""Runs laid out as the paper lays them out: metrics with p-values, published numbers and baselines; cost."""

from __future__ import annotations

from collections.abc import Sequence

from train.experiments.grid import table_row
from train.expression import UNITS
from train.models.registry import DEFAULT_MODEL
from train.report.alike import comparison_label, comparison_notes, same_tests
from train.report.baseline_rows import baseline_rows, has_leak
from train.report.comparable import layers_of, may_compare, published_notes
from train.report.published import (
    END_TO_END,
    METHOD_ENCODERS,
    METHODS,
    Numbers,
    published_cost,
    published_method_costs,
    published_methods,
    published_numbers,
    published_status,
)
from train.report.results import COST_KEYS, Results, RunResult
from train.report.run_settings import WITHIN_SLICES
from train.report.seeds import over_seeds, seed_row, seed_spread_notes
from train.report.significance import P_NOTE, REFERENCE, compare, references, without_reference
from train.report.table import (
    CENTERED_MSE,
    HIGHER,
    LOWER,
    METHOD,
    Cell,
    Column,
    Row,
    Table,
    mark_best,
    mean_cells,
    metric_columns,
    number_cell,
    ordered_metrics,
    p_text,
    slug,
)

COST_TABLE = 5  # the paper's table without metrics
COST_TITLES = ("peak memory, GB", "s/epoch", "inference, s", "numbers kept, M")  # of COST_KEYS
SCOPES = {
    "pooled": "pooled over test spots",
    "slide_mean": "slide by slide, then their mean",
    "complete_niches": "spots with a complete niche",
}
CENTERED_NOTE = (
    "MSE, centred: of prediction and truth less each gene's mean over the slide: the error that remains where a "
    "slide's level is known. The MSE beside it counts the level too"
)
BEST_NOTE = "bold: the best of the column, runs and baselines alike"
NO_BEST_NOTE = "no best is marked: the runs are tested on other slides, spots or genes"
NOT_COMPARABLE = "not comparable"  # in the label of a published row whose setting is not the run's
PUBLISHED_NOTE = (
    "published, LoRA 11: trained end to end; LoRA 0: a frozen encoder (table 14). Other methods: as published, with an "
    "encoder of their own that is trained, or with frozen ones (Stem: UNI and CONCH). Their ± is as printed, over the "
    "units evaluated, which need not be the splits"
)
STATUS_COLUMNS = {"auroc_msi_h": "MSI-H, AUROC", "auroc_mss": "MSS, AUROC"}  # of table 2


def results_tables(
    results: Results, reference: str | None = None, table: int | None = None, scope: str = "pooled"
) -> list[Table]:
    """The metrics, a table for each dataset that is predicted; also the cost, where the paper's table has it.

    Args:
        results: the runs.
        reference: method or label of the run to test the others against (default: full).
        table: number of a table of the paper, for the title and the published numbers.
        scope: one of `SCOPES`.

    Raises:
        InputError: The reference is not among the runs, or there is no such table.
    """
    row = table_row(table) if table is not None else {}
    title = f"Table {table}: {row['title']}" if table is not None else ""
    tables = []
    if table != COST_TABLE:
        tables += [metrics_table(results, runs, title, reference, table, scope) for runs in run_groups(results)]
    if row.get("cost"):
        tables += [cost_table(results, table)]
    return tables


def run_groups(results: Results) -> list[list[RunResult]]:
    """The runs in groups that fit into one table: they predict the same dataset in the same unit.

    Runs on embeddings of an encoder that was fine-tuned before have tables of their own, apart from a frozen one's, and
    so have runs within slices, whose numbers are of slides that were trained on.
    """
    groups: dict[tuple[str, ...], list[RunResult]] = {}
    for run in results.runs:
        key = tuple(str(run.settings[k]) for k in ("dataset", "test_dataset", "transform"))
        key += ("tuned",) * run.is_tuned + (WITHIN_SLICES,) * run.is_within
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def group_name(run: RunResult) -> str:
    """Name of the run's group: `kidney`, `kidney, tested on kidney_papilla`, `kidney, within slices`."""
    setting = run.setting
    parts = [setting.dataset, f"tested on {setting.test_dataset}" if setting.test_dataset else ""]
    parts += [WITHIN_SLICES if run.is_within else ""]
    parts += [setting.transform if setting.transform != "log2" else "", "tuned cache" if run.is_tuned else ""]
    return ", ".join(filter(None, parts))


def metrics_table(
    results: Results,
    runs: list[RunResult],
    title: str = "",
    reference: str | None = None,
    table: int | None = None,
    scope: str = "pooled",
) -> Table:
    """Mean and standard deviation over folds, with p-values and published numbers under each run; then baselines.

    Runs that differ by their seed alone are one row, with the standard deviation over seeds below.

    Args:
        results: all runs; references are chosen among them.
        runs: those in the table, one of the `run_groups`.
        title: before the group's name (default: "Metrics").
        reference: method or label of the run to test the others against (default: full).
        table: number of a table of the paper, whose published numbers are preferred.
        scope: one of `SCOPES`; published numbers and baselines are pooled only.

    Raises:
        InputError: The reference is not among the runs.
    """
    if reference is None or reference in {run.method for run in results.runs}:  # else one of the seeds is asked for
        results, runs = over_seeds(results, runs)
    frame = results.metrics[results.metrics["scope"] == scope]
    frame = frame[frame["run"].isin([r.label for r in runs])]
    metrics = ordered_metrics(set(frame["metric"]))
    metrics += [CENTERED_MSE] if scope == "pooled" and _all_centered(runs) else []
    columns = metric_columns(metrics)
    chosen = references(results, reference)
    rows = []
    for run in runs:
        rows.append(Row(run.label, "run", mean_cells(frame[frame["run"] == run.label], metrics)))
        rows += [row for row in [seed_row(run, metrics, scope)] if row is not None]
        if run.label in chosen:
            rows.append(_p_row(results, run, chosen[run.label], metrics, scope))
        if scope == "pooled":
            rows += _published_rows(run, metrics, table)
    p_cells = [cell for row in rows if row.kind == "p" for cell in row.cells]
    baselines = baseline_rows(results, runs, metrics) if scope == "pooled" else []
    rows += baselines
    if marks := same_tests(runs):
        leaking = [run.label for run in runs if run.leaks] + [row.label for row in baselines if has_leak(row)]
        rows = mark_best(rows, columns, leaking)
    rows += _method_rows(runs, metrics, table) if scope == "pooled" else []
    notes = [f"mean ± std over {_fold_counts(runs)} folds, {SCOPES[scope]}; MSE and MAE in {unit_of(runs[0])}"]
    notes += seed_spread_notes(runs)
    notes += [CENTERED_NOTE] if CENTERED_MSE in metrics else []
    notes += [P_NOTE] if any(cell.value is not None for cell in p_cells) else []
    notes += without_reference(results, runs, reference)
    notes += [BEST_NOTE] if any(cell.best for row in rows for cell in row.cells) else []
    notes += [] if marks else [NO_BEST_NOTE]
    notes += dict.fromkeys(n for run in runs if run.label in chosen for n in comparison_notes(run, chosen[run.label]))
    notes += [PUBLISHED_NOTE] if any(row.kind in ("published", METHOD) for row in rows) else []
    notes += published_notes(runs) if scope == "pooled" else []
    notes += sampling_notes(runs)
    notes += [f"LEAK: {run.label}: {leak}" for run in runs for leak in run.leaks]
    doubts = [*results.incomplete, *results.meaningless]
    notes += [text for text in doubts if any(text.startswith(f"{run.label}: ") for run in runs)]
    group = group_name(runs[0])
    of_scope = "" if scope == "pooled" else f", {SCOPES[scope]}"
    heading = f"{title or 'Metrics'}, {group}{of_scope}"
    return Table(slug(f"metrics {scope} {group}"), heading, columns, tuple(rows), tuple(notes))


def _all_centered(runs: list[RunResult]) -> bool:
    """Whether all folds of all runs have metrics without the slides' levels."""
    return all("mse" in fold.metrics.get("centered", {}) for run in runs for fold in run.folds)


def _fold_counts(runs: list[RunResult]) -> str:
    return " or ".join(map(str, sorted({len(run.folds) for run in runs})))


def unit_of(run: RunResult) -> str:
    """The unit of the expression that a run predicts."""
    return UNITS[run.setting.transform]


def _p_row(results: Results, run: RunResult, reference: RunResult, metrics: list[str], scope: str) -> Row:
    p = [compare(results, run, reference, metric, scope).p_t for metric in metrics]
    return Row(f"p against {comparison_label(run, reference)}", "p", tuple(Cell(p_text(v), v) for v in p))


def _published_rows(run: RunResult, metrics: list[str], table: int | None) -> list[Row]:
    own = f"published, LoRA {layers_of(run)}" if may_compare(run) else ""
    return [
        Row(
            label if label == own else f"{label}, {NOT_COMPARABLE}",
            "published",
            tuple(number_cell(*numbers.get(m, (None, None))) for m in metrics),
        )
        for label, numbers in published_of_run(run, table)
    ]


def _method_rows(runs: list[RunResult], metrics: list[str], table: int | None) -> list[Row]:
    """Other methods as published on the data of the runs; the data are named where they differ."""
    keys = {
        (s.dataset, s.genes, s.n_genes, "slide" if s.split == "default" else s.split, s.test_dataset)
        for s in (run.setting for run in runs)
        if s.transform == "log2"
    }
    rows = []
    for key in sorted(keys, key=str):
        data = f", {key[1]} {key[2]}, {key[3]} split" if len(keys) > 1 else ""
        own = {METHODS.get(run.model) for run in runs}  # which stand below the runs
        for method, numbers in published_methods(*key, table).items():
            if method in own and len(keys) == 1:
                continue
            cells = tuple(number_cell(*numbers.get(m, (None, None))) for m in metrics)
            rows.append(Row(f"{method}, published{data}", METHOD, cells))
    return rows


def published_of_run(run: RunResult, table: int | None) -> list[tuple[str, Numbers]]:
    """What was published for a run's setting.

    Args:
        run: of any model.
        table: number of a table of the paper, preferred where tables disagree.

    Returns:
        Labels and numbers: of HiST first for as many fine-tuned blocks as the run has, then for training end to end; of
        another method those of its own encoder. Empty where nothing was published.
    """
    s = run.setting
    if s.transform != "log2" or run.is_tuned:
        return []
    if run.variant is None:
        method = METHODS.get(run.model, "")
        numbers = published_methods(s.dataset, s.genes, s.n_genes, s.split, s.test_dataset, table).get(method)
        return [(f"published, {METHOD_ENCODERS[method]}", numbers)] if numbers else []
    published = []
    for layers in dict.fromkeys((layers_of(run), END_TO_END)):
        numbers = published_numbers(
            s.dataset, run.variant, s.genes, s.n_genes, s.split, s.neighbors, s.test_dataset, table, layers
        )
        published += [(f"published, LoRA {layers}", numbers)] if numbers else []
    return published


def sampling_notes(runs: Sequence[RunResult]) -> list[str]:
    """How the predictions of a model that draws them were drawn: another number of draws has other errors."""
    return [f"{run.label}: {text}" for run in runs if (text := run.setting.model.sampling)]


def cost_table(results: Results, table: int | None = None) -> Table:
    """Memory, seconds for an epoch and seconds of inference, with the published numbers (table 5).

    Args:
        results: the runs.
        table: number of a table of the paper, whose published numbers are preferred.
    """
    rows = []
    for run in results.runs:
        frame = results.cost[results.cost["run"] == run.label]
        rows.append(Row(run.label, "run", mean_cells(frame, list(COST_KEYS))))
        is_published = run.model == DEFAULT_MODEL and run.variant == REFERENCE and not run.is_within
        numbers = published_cost(run.setting.dataset, run.setting.n_genes, table) if is_published else {}
        if numbers:
            cells = tuple(number_cell(*numbers.get(m, (None, None))) for m in COST_KEYS)
            rows.append(Row("published, end to end", "published", cells))
    across = [run.setting for run in results.runs if not run.is_within]
    for dataset, n_genes in dict.fromkeys((setting.dataset, setting.n_genes) for setting in across):
        for method, numbers in published_method_costs(dataset, n_genes).items():
            cells = tuple(number_cell(*numbers.get(m, (None, None))) for m in COST_KEYS)
            rows.append(Row(f"{method}, published", METHOD, cells))
    machines = {
        f"{c['device']}, {c['threads']} thread{'s' * (c['threads'] > 1)}"
        for run in results.runs
        for c in (fold.cost for fold in run.folds)
        if "device" in c
    }
    notes = [
        f"mean ± std over folds; on {'; '.join(sorted(machines)) or 'an unknown device'}. Memory is the device's on a "
        "GPU and the whole process's on a CPU; an epoch includes its validation; inference is of all test spots, from "
        "cached embeddings. Folds trained side by side slow each other down. Numbers kept: weights, and what else "
        "is in a model's file, such as a bank of train spots"
    ]
    notes += sampling_notes(results.runs)
    if any(row.kind in ("published", METHOD) for row in rows):
        notes.append("published: the encoder is trained and run too, on an RTX 4090, from images")
    columns = tuple(Column(title, LOWER) for title in COST_TITLES)
    return Table("cost", "Memory and time", columns, tuple(rows), tuple(notes))


def status_table() -> Table:
    """Table 2 as it is published: microsatellite status of other slides from predicted expression."""
    rows = [
        Row(f"{method}, published", METHOD, tuple(number_cell(*numbers.get(k, (None, None))) for k in STATUS_COLUMNS))
        for method, numbers in published_status().items()
    ]
    columns = tuple(Column(title, HIGHER) for title in STATUS_COLUMNS.values())
    notes = (
        "published numbers alone: no run of hist-cache is one of these, whose slides (TCGA) have no expression; "
        "hist-report --classify gives the same of slides that hist-predict has predicted",
    )
    return Table("status", "Table 2: Microsatellite status from predicted expression", columns, tuple(rows), notes)
