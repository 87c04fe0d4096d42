"""hist-train: HiST and its variants on cached embeddings, or with the encoder tuned."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hist_cache.console import fail, hush, out, progress, say, warn
from hist_cache.errors import HistError, InputError
from hist_cache.options import folder_option, parse, run
from train.options import Config

if TYPE_CHECKING:
    import torch

    from train.experiments.jobs import Job
    from train.finetune.encoder import Finetuner
    from train.workspace import Workspace

DESCRIPTION = """Phase two: train HiST on a dataset's cache, test it on held-out slides, print its metrics beside what
any model must beat. Options with several values (--ablation all, --neighbors 6,18,36) run every combination. Finished
folds are not run again; a stopped one goes on where it was."""


def main(argv: Sequence[str] | None = None) -> int:
    config = parse(Config, "hist-train", DESCRIPTION, argv)
    return run(train, config, config.debug)


def train(config: Config) -> int:
    """Run the command; returns the exit code."""
    import torch

    from train import distributed
    from train.experiments.executor import default_workers
    from train.experiments.grid import points, table_options, table_row
    from train.experiments.jobs import make_jobs
    from train.experiments.runner import check_genes, check_resumable, say_crops, say_grid, say_splits

    own_device = distributed.init()
    if own_device is not None and not config.finetune_lora:
        raise InputError("several processes on one batch are for --finetune-lora; on a cache one is enough (--jobs N)")
    if distributed.rank() > 0:
        hush()
    if config.table is not None:
        say(f"table {config.table}: {table_row(config.table)['title']}")
        config = dataclasses.replace(config, **table_options(config.table, vars(config), vars(Config())))
    check_tuning(config)
    grid = points(config)
    workspace = open_workspace(config, sorted({p.neighbors for p in grid}))
    jobs = make_jobs(grid, config, workspace, folder_option(config.runs, "HIST_RUNS", "runs"))
    say_crops(jobs, workspace)
    genes_to_plot = check_genes(config.genes_to_plot, jobs)
    if config.resume:
        check_resumable(jobs)
    say_splits(jobs, workspace.patients)

    device = own_device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    left = [job for job in jobs if not job.done]
    distributed.barrier()  # before any is done that was not
    tuned = [job for job in left if job.setting.tuning]
    workers = 1 if tuned else min(config.jobs or default_workers(len(left), device), max(len(left), 1))
    say_grid(jobs, left, device, workers)
    if config.dry_run:
        return 0
    tuner = make_tuner(config, workspace, tuned, device) if tuned else None
    failed = run_with_progress(left, workspace, device, workers, tuner)
    for _, error in failed:
        fail(str(error))
    if distributed.rank() == 0 and any(job.done for job in jobs):
        print_results(jobs, genes_to_plot, config.table)
    distributed.destroy()
    return 1 if failed else 0


def check_tuning(config: Config) -> None:
    """`InputError` for options that only tuning reads, without it, and for those that contradict each other."""
    defaults = vars(Config())
    names = ("lora_layers", "lora_rank", "lora_alpha", "lora_dropout", "no_token_cache", "augment", "micro_batch")
    for name in (*names, "grad_checkpoint", "precision", "data_root", "weights"):
        if not config.finetune_lora and getattr(config, name) != defaults[name]:
            raise InputError(f"--{name.replace('_', '-')} is for tuning the encoder: give --finetune-lora too")
    if config.finetune_lora and config.test_dataset:
        raise InputError(
            "--test-dataset with --finetune-lora: tune first, then train on the cache of hist-extract --lora"
        )


def make_tuner(config: Config, workspace: Workspace, tuned: list[Job], device: torch.device) -> Finetuner:
    """The cache's encoder, ready to be tuned; with the tokens that it starts from, made now where they are missing."""
    from train.finetune.encoder import Finetuner, encoder_of, provide_tokens, where_slides_are
    from train.fit.loop import Reading

    encoder = encoder_of(workspace.common, Path(config.weights) if config.weights else None)
    data_root = where_slides_are(workspace.cache, config.data_root)
    reading = Reading(config.micro_batch, config.augment)
    tuner = Finetuner(workspace.cache, encoder, device, data_root, reading, config.grad_checkpoint)
    layers = max(job.setting.tuning.lora.layers for job in tuned if job.setting.tuning)
    tuner.check(layers)
    sizes = sorted({job.setting.neighbors for job in tuned})
    if any(job.setting.tuning.start == "tokens" for job in tuned if job.setting.tuning):
        provide_tokens(tuner, list(workspace.slides), sizes, layers, data_root)
    return tuner


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


def run_with_progress(
    left: list[Job], workspace: Workspace, device: torch.device, workers: int, tuner: Finetuner | None
) -> list[tuple[Job, HistError]]:
    """One display for all; a line as each fold ends."""
    from train.experiments.executor import run_jobs
    from train.experiments.runner import say_done

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
            return run_jobs(left, workspace, device, workers, on_epoch, on_done, tuner)
        except KeyboardInterrupt:
            for job in left:
                if job.stopped:
                    say(f"kept the best weights so far and a checkpoint in {job.folder}; the same command goes on")
            raise


def print_results(jobs: list[Job], genes: list[str] | None, table: int | None) -> None:
    """The summary of each setting on disk, and the tables of all."""
    from hist_cache.runs import Run
    from train.experiments.fold import write_summary
    from train.report.paper_tables import results_tables
    from train.report.results import read_results
    from train.report.table import to_rich

    folders = [folder for folder in dict.fromkeys(job.folder.parent for job in jobs) if Run(folder).folds]
    for folder in folders:
        write_summary(folder)
    if genes is not None:
        redraw_maps(jobs, genes)
    for found in results_tables(read_results(folders), table=table):
        out.print(to_rich(found))
    shown = folders[0] if len(folders) == 1 else folders[0].parent
    say(f"{shown}: summary.json, and in each fold maps.png, training.png, geometry.png; hist-report {shown} has it all")


def redraw_maps(jobs: list[Job], genes: list[str]) -> None:
    from hist_cache.runs import MAPS, Fold
    from train.figures import plot_maps

    for job in jobs:
        if job.done:
            plot_maps(job.folder / MAPS, Fold(job.folder).predictions, genes)
