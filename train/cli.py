"""hist-train: HiST and its variants on cached embeddings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hist_cache.console import fail, out, progress, say, warn
from hist_cache.errors import HistError, InputError
from hist_cache.options import folder_option, option, parse, run

if TYPE_CHECKING:
    import torch

    from train.plan import Job
    from train.workspace import Workspace

DESCRIPTION = """Phase two: train HiST on a dataset's cache, test it on held-out slides, print its metrics beside what
any model must beat. Options with several values (--ablation all, --neighbors 6,18,36) run every combination. Finished
folds are not run again; a stopped one goes on where it was."""
METRIC_NAMES = {"pcc@10": "PCC@10", "pcc@50": "PCC@50", "pcc@200": "PCC@200", "mse": "MSE", "mae": "MAE"}


@dataclass(frozen=True)
class Config:
    dataset: str | None = option(
        None, "a dataset that hist-extract has cached (default: the one extracted last)", "NAME"
    )
    cache: str | None = option(None, "folder of the cache (default: $HIST_CACHE or ./cache)", "D")
    runs: str | None = option(None, "folder of the runs (default: $HIST_RUNS or ./runs)", "D")
    encoder: str | None = option(None, "whose cache, where the dataset has several", "NAME")
    test_dataset: str | None = option(None, "test on all slides of this dataset instead of the split's own", "NAME")
    table: int | None = option(None, "a table of the paper by number: sets the options that it compares", "N")
    ablation: str = option("full", "variants: full, no_gi_hea, no_hea, no_hha, meru, clip, ..., or all", "NAMES")
    neighbors: str | int = option("6", "neighbourhood sizes: 6, 18, 36 (rings 1, 2, 3)", "K")
    genes: str = option("hmhvg", "gene panels: hmhvg, hvg, a file of names", "PANELS")
    n_genes: str | int | None = option(None, "panel sizes (default: 200 for hmhvg, 300 for hvg, all of a file)", "N")
    split: str | None = option(
        None, "slide, patient, loso, a file or folder of splits (default: the dataset's)", "KINDS"
    )
    protocol: str = option("paper", "paper, release, strict: what the sources disagree on", "NAMES")
    transform: str = option("log2", "of the counts: log2 (1 + count), ln_cp10k (1 + count per 10,000)", "NAMES")
    panel_from: Literal["all", "train"] | None = option(
        None, "choose genes on all slides, or on each split's train slides (default: the protocol's)"
    )
    edge_spots: Literal["keep", "drop"] | None = option(
        None, "keep or drop spots that lack a neighbour (default: the protocol's)"
    )
    tested: Literal["best", "last"] | None = option(
        None, "test the weights of the best validation epoch, or the last (default: the protocol's)"
    )
    folds: int | None = option(None, "run the first so many splits (default: all there are, or 5)", "N")
    fold: int | None = option(None, "run this split only, counted from 0", "I")
    epochs: int | None = option(None, "most epochs (default: the dataset's, or 200)", "N")
    patience: int | None = option(
        None, "stop after so many epochs without a better validation error (default: 10)", "N"
    )
    batch_size: int | None = option(None, "spots a step (default: 128)", "N")
    lr: float | None = option(None, "learning rate of AdamW (default: 1e-4)", "X")
    weight_decay: float | None = option(None, "default: 0.01", "X")
    seed: int = option(42, "seeds weights, order of spots, drawn splits and controls", "N")
    width: int | None = option(None, "latent width d (default: the dataset's, or 1024)", "N")
    depth: int | None = option(None, "residual blocks a stream (default: 2)", "N")
    dropout: float | None = option(None, "default: 0.1", "X")
    alpha: float | None = option(None, "weight of the alignment losses (default: 0.2)", "X")
    beta: float | None = option(None, "weight of entailment within them (default: 0.4)", "X")
    curvature: float | None = option(None, "initial curvature magnitude c (default: 1)", "X")
    fixed_curvature: bool = option(False, "do not learn the curvature")
    temperature: float | None = option(None, "initial temperature of the contrast (default: 0.07)", "X")
    decoder_space: Literal["tangent", "hyperbolic"] | None = option(None, "what the decoder reads (default: tangent)")
    resume: bool = option(False, "only go on with a stopped run: an error where there is none")
    jobs: int | None = option(None, "folds trained at once (default: one a CPU core, or one on a GPU)", "N")
    genes_to_plot: str | None = option(None, "genes on maps.png, such as COL1A1,FN1 (default: the best)", "NAMES")
    dry_run: bool = option(False, "say what would be run, and run nothing")
    debug: bool = option(False, "show a traceback for every error")


def main(argv: Sequence[str] | None = None) -> int:
    config = parse(Config, "hist-train", DESCRIPTION, argv)
    return run(train, config, config.debug)


def train(config: Config) -> int:
    """Run the command; returns the exit code."""
    import torch

    from train.grid import points, table_options, table_row
    from train.jobs import default_workers
    from train.plan import make_jobs

    if config.table is not None:
        say(f"table {config.table}: {table_row(config.table)['title']}")
        config = dataclasses.replace(config, **table_options(config.table, vars(config), vars(Config())))
    grid = points(config)
    workspace = open_workspace(config, sorted({p.neighbors for p in grid}))
    runs = folder_option(config.runs, "HIST_RUNS", "runs")
    jobs = make_jobs(grid, config, workspace, runs)
    for sentence in dict.fromkeys(filter(None, (check_crops(j, workspace) for j in jobs))):
        warn(sentence)
    genes_to_plot = check_genes(config.genes_to_plot, jobs)
    if config.resume:
        check_resumable(jobs)
    say_splits(jobs, workspace.patients)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    left = [job for job in jobs if not job.done]
    workers = min(config.jobs or default_workers(len(left), device), max(len(left), 1))
    say_grid(jobs, left, device, workers)
    if config.dry_run:
        return 0
    failed = run_with_progress(left, workspace, device, workers)
    for _, error in failed:
        fail(str(error))
    if any(job.done for job in jobs):
        print_results(jobs, genes_to_plot, config.table)
    return 1 if failed else 0


def open_workspace(config: Config, sizes: list[int]) -> Workspace:
    """The cache asked for, in memory; what it is, and what it lacks, aloud."""
    from hist_cache.cache import last_dataset, open_cache
    from hist_cache.datasets import dataset_named
    from train.workspace import Workspace

    root = folder_option(config.cache, "HIST_CACHE", "cache")
    name = config.dataset or last_dataset(root)
    if config.dataset is None:
        say(f"dataset {name} (the one extracted last)")
    cache = open_cache(root, name, config.encoder)
    test_cache = open_cache(root, config.test_dataset, cache.folder.name) if config.test_dataset else None
    workspace = Workspace(cache, sizes, test_cache)
    common, slides = workspace.common, workspace.slides
    say(
        f"{cache.folder}: {len(slides)} slides, {sum(map(len, slides.values())):,} spots, "
        f"embeddings of {common['encoder']} ({common['precision']})"
    )
    if test_cache is not None:
        elsewhere = workspace.test_slides
        say(f"tested on {config.test_dataset}: {len(elsewhere)} slides, {sum(map(len, elsewhere.values())):,} spots")
    if not common["pretrained"]:
        warn(f"{common['encoder']} has random weights: metrics show that the method runs, not what it can do")
    if missing := set(dataset_named(cache.dataset).ids) - set(slides):
        warn(f"the cache holds {len(slides)} of the {len(slides) + len(missing)} slides of {cache.dataset}")
    return workspace


def check_crops(job: Job, workspace: Workspace) -> str | None:
    from train.protocols import check_crops

    return check_crops(job.setting.protocol, workspace.common["spot_crop_um"])


def check_genes(names: str | None, jobs: list[Job]) -> list[str] | None:
    """The genes to draw; `InputError` where a panel lacks one."""
    if names is None:
        return None
    genes = [name.strip() for name in names.split(",")]
    for job in jobs:
        if missing := [g for g in genes if g not in job.data.panel]:
            raise InputError(f"--genes-to-plot {', '.join(missing)}: not in the panel of {job.title}")
    return genes


def check_resumable(jobs: list[Job]) -> None:
    if not any(job.stopped for job in jobs):
        raise InputError(
            f"--resume: no stopped run in {jobs[0].folder.parent}; leave it out, or give the options of the run "
            "that stopped"
        )


def say_splits(jobs: list[Job], patients: dict[str, str]) -> None:
    """Each split once; then the patients that parts of a split share."""
    from hist_cache.splits import patient_leaks

    leaks: dict[str, list[str]] = {}
    for split in dict.fromkeys(job.split for job in jobs):
        folds = ", ".join(str(i) for i in sorted({job.fold for job in jobs if job.split == split}))
        say(f"fold {folds}: train {len(split.train)}, validate {', '.join(split.val)}, test {', '.join(split.test)}")
        if shared := patient_leaks(split, patients):
            leaks.setdefault(", ".join(shared), []).append(folds)
    for shared_by, where in leaks.items():
        warn(
            f"fold {', '.join(where)}: {shared_by} in train and test: the metrics are optimistic "
            "(--split patient avoids it)"
        )


def say_grid(jobs: list[Job], left: list[Job], device: torch.device, workers: int) -> None:
    import torch

    where = torch.cuda.get_device_name() if device.type == "cuda" else "the CPU (no GPU found)"
    settings = {job.setting.name: job for job in jobs}
    for job in settings.values():
        s = job.setting
        say(
            f"{s.variant.name}: {s.n_genes} genes, {s.neighbors} neighbours, width {s.model.width}, protocol "
            f"{s.protocol.name}; {job.folder.parent}"
        )
    count = f"{len(settings)} settings x folds = {len(jobs)} runs" if len(settings) > 1 else f"{len(jobs)} folds"
    done = f", {len(jobs) - len(left)} done before, not run again" if len(left) < len(jobs) else ""
    say(f"{count}{done}" + (f"; on {where}, {workers} at once" if left else ""))


def run_with_progress(
    left: list[Job], workspace: Workspace, device: torch.device, workers: int
) -> list[tuple[Job, HistError]]:
    """One display for all; a line as each fold ends."""
    from train.jobs import run_jobs

    for job in left:
        if job.stopped:
            say(f"{job.title}: going on with the stopped run ({job.folder}; delete it to start over)")
    counted = dict.fromkeys((job.folder for job in left), 0.0)  # share of each fold that is counted as done
    lengths: list[int] = []  # epochs of the folds that have ended: most stop early
    with progress("folds", len(left), "folds") as meter:

        def advance(job: Job, share: float, note: str | None = None) -> None:
            meter.advance(share - counted[job.folder], note)
            counted[job.folder] = share

        def on_epoch(job: Job, row: dict[str, float]) -> None:
            epoch = int(row["epoch"]) + 1
            expected = sum(lengths) / len(lengths) if lengths else job.setting.loop.epochs
            advance(
                job, min(epoch / expected, 0.95), f"{job.title}: epoch {epoch}, validation MSE {row['val_mse']:.4f}"
            )

        def on_done(job: Job, metrics: dict[str, Any]) -> None:
            lengths.append(metrics["epochs"])
            advance(job, 1.0)
            say_done(job, metrics)

        try:
            return run_jobs(left, workspace, device, workers, on_epoch, on_done)
        except KeyboardInterrupt:
            for job in left:
                if job.stopped:
                    say(f"kept the best weights so far and a checkpoint in {job.folder}; the same command goes on")
            raise


def say_done(job: Job, metrics: dict[str, Any]) -> None:
    controls = metrics["controls"]
    best = max((k for k in metrics["pooled"] if k.startswith("pcc@")), key=lambda k: k == "pcc@50", default="mse")
    say(
        f"{job.title}: best epoch {metrics['best_epoch']} of {metrics['epochs']}, {METRIC_NAMES[best]} "
        f"{metrics['pooled'][best]:.3f} "
        f"(ridge {controls['ridge'][best]:.3f}, permuted {controls['permuted'][best]:.3f})"
    )
    for problem in metrics["warnings"]:
        warn(f"{job.title}: {problem}")


def print_results(jobs: list[Job], genes: list[str] | None, table: int | None) -> None:
    """The summary of each setting on disk, and the table."""
    from hist_cache.runs import Run
    from train.runs import write_summary

    folders = [folder for folder in dict.fromkeys(job.folder.parent for job in jobs) if Run(folder).folds]
    summaries = {folder: write_summary(folder) for folder in folders}
    if genes is not None:
        redraw_maps(jobs, genes)
    for folder, summary in summaries.items():
        print_summary(summary, folder.name.rsplit("-", 1)[0])
    say(f"{folders[0].parent}: in each run summary.json, in each fold maps.png, training.png, geometry.png, ...")


def redraw_maps(jobs: list[Job], genes: list[str]) -> None:
    from hist_cache.runs import MAPS, Fold
    from train.figures import plot_maps

    for job in jobs:
        if job.done:
            plot_maps(job.folder / MAPS, Fold(job.folder).predictions, genes)


def print_summary(summary: dict[str, Any], variant: str) -> None:
    """The table: mean and standard deviation over folds, the run first, then what it must beat."""
    from rich.table import Table

    n = len(summary["folds"])
    table = Table(
        title=f"mean{' ± std' if n > 1 else ''} over {n} fold{'s' * (n > 1)}, pooled over test spots; "
        "MSE and MAE in log2(1 + count)"
    )
    table.add_column("", no_wrap=True)
    keys = [k for k in METRIC_NAMES if k in next(iter(summary["mean"].values()))]
    for key in keys:
        table.add_column(METRIC_NAMES[key], justify="right", no_wrap=True)
    labels = {
        "hist": f"HiST, {variant}",
        "hist (slide mean)": f"HiST, {variant}, slide by slide",
        "permuted": "HiST, permuted",
    }
    labels |= {"train_mean": "train mean", "ridge": "ridge, PCA-256"}
    for row, mean in summary["mean"].items():
        std = summary["std"][row]
        cells = [f"{mean[k]:.3f}" + (f" ± {std[k]:.3f}" if n > 1 else "") for k in keys]
        table.add_row(labels.get(row, row), *cells)
    out.print(table)
