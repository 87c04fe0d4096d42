"""hist-train: models on cached embeddings, or with the encoder fine-tuned."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from hist_cache.console import fail, hush, out, say, show_logs
from hist_cache.devices import AUTO, choose_device
from hist_cache.engine import LocalEngine, check_engine, open_engine
from hist_cache.errors import HistError, InputError, keeping
from hist_cache.gang import RunGang, run_with_restarts
from hist_cache.options import folder_option, parse, run
from train.options import TrainOptions

if TYPE_CHECKING:
    import torch

    from hist_cache.engine import Workers
    from hist_cache.executor import Failure
    from train.experiments.jobs import Job
    from train.experiments.logged_folds import FoldEvents
    from train.models.registry import ModelEntry
    from train.workspace import Workspace

MANY = 1_000_000  # more workers than any cluster has
DESCRIPTION = """Phase two: train models on a dataset's cache, test them on held-out slides, print their metrics beside
what any model must beat. Options with several values (--ablation all, --neighbors 6,18,36, --seed 1,2,3, and every
number of models, training and recipes) run every combination.
Finished folds are not run again; a stopped one goes on where it was."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parse(TrainOptions, "hist-train", DESCRIPTION, argv)
    return run(launch, options, options.debug)


def launch(options: TrainOptions) -> int:
    """Run the command, in this process or in several that share each batch; returns the exit code."""
    if is_rank() or options.dry_run or not fine_tunes(options):
        return train(options)
    with open_engine(options) as engine:
        n = engine.workers(MANY, options.jobs or 1)
        together = n > 1 or not engine.shares_files
        return train_together(options, n, engine.run_gang) if together else train(options)


def is_rank() -> bool:
    """Whether this is one of several processes on a batch, which torchrun or the command has started."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def fine_tunes(options: TrainOptions) -> bool:
    """Whether the encoder is fine-tuned, so that processes share each batch."""
    from train.experiments.grid import with_table

    return bool(with_table(options).finetune_lora)


def processes_on_a_batch(options: TrainOptions) -> int:
    """How many processes the command starts to share each batch; 1 where it starts none, or as many as there is room.

    Those that it has started start none.
    """
    asked = options.jobs if options.engine == "local" else options.workers
    return 1 if is_rank() or asked is None or not fine_tunes(options) else asked


def train_together(options: TrainOptions, n: int, run_gang: RunGang) -> int:
    """Run the command in several processes that share each batch, again from the checkpoint when one of them is lost.

    Args:
        options: Of the command.
        n: How many processes.
        run_gang: Runs them.
    """
    from train.models.registry import model_entries

    models = tuple(model_entries())  # one that a user has registered is unknown in another process

    def start_gang(restart: int) -> int:
        resume = options.resume and restart == 0  # the fold that was stopped may have ended since
        return run_gang(n, train_rank, (replace(options, resume=resume), models))

    return run_with_restarts(start_gang)


def train_rank(options: TrainOptions, models: tuple[ModelEntry, ...]) -> int:
    """Be one of the processes that share each batch; the first one shows what there is to show."""
    from train.models.registry import register

    for entry in models:
        register(entry)
    show_logs()
    return train(options)


def train(options: TrainOptions) -> int:
    """Run the command in this process; returns the exit code."""
    from train import distributed
    from train.experiments import announcements
    from train.experiments.adapted import announce_adapters, with_adapters
    from train.experiments.grid import listed_numbers, points, table_row, with_table
    from train.experiments.jobs import make_jobs
    from train.experiments.logged_folds import check_logger, logging_to
    from train.experiments.own_rows import use_own_rows
    from train.experiments.precision import with_precision
    from train.experiments.runner import check_data, describe_failure, fold_workers

    own_device = distributed.init()
    device = choose_device(options.device) if own_device is None else own_device
    if distributed.rank() > 0:
        hush()
    use_own_rows(options)
    if options.table is not None:
        say(f"table {options.table}: {table_row(options.table)['title']}")
    options = with_table(options)
    if own_device is not None:
        check_rank(options)
    announcements.check_finetuning(options)
    check_logger(options.logger)
    check_engine(options)
    grid = points(options)
    workspace = announcements.open_workspace(options, sorted({p.neighbors for p in grid}))
    jobs = make_jobs(grid, options, workspace, folder_option(options.runs, "HIST_RUNS", "runs"))
    jobs = with_adapters(jobs, options.lora, workspace)
    jobs = with_precision(jobs, options.precision, device)
    announcements.announce_leaks(jobs, options, workspace)
    announcements.announce_crops(jobs, workspace)
    genes_to_plot = announcements.check_genes(options.genes_to_plot, jobs)
    if options.resume:
        announcements.check_resumable(jobs)
    announcements.announce_splits(jobs, workspace)

    left = jobs_left(jobs)
    finetuned = [job for job in left if job.setting.finetuning]
    with ExitStack() as stack:
        alone = bool(finetuned) or distributed.world_size() > 1  # one fold after the other in this process
        uses_engine = left and not alone and not options.dry_run
        engine = stack.enter_context(open_engine(options)) if uses_engine else LocalEngine()
        workers = fold_workers(engine, 1 if alone else options.jobs, len(left), device, options.device)
        announcements.check_shares(finetuned, max(distributed.world_size(), processes_on_a_batch(options)))
        announcements.announce_seeds(jobs, options)
        announcements.announce_grid(jobs, left, workers, listed_numbers(options))
        announcements.announce_changes(jobs)
        announce_adapters(left, options.lora, workspace)
        if options.dry_run:
            check_left(left, options, workspace, device)
            return 0
        if left and distributed.rank() == 0:
            announcements.check_writable(left[0].folder.parents[1])
        check_data([job for job in left if not job.embedded_by], workspace)  # others have embeddings in other caches
        logged = stack.enter_context(logging_to(options.logger, jobs))
        with keeping(lambda: kept(jobs)):
            failures = run_left(left, options, workspace, workers, logged)
        for failure in failures:
            if options.debug:
                sys.stderr.writelines(traceback.format_exception(failure.error))
            fail(describe_failure(failure))
        if distributed.rank() == 0 and any(job.done for job in jobs):
            remove_leftover_checkpoints(jobs)
            print_results(jobs, genes_to_plot, options.table)
    distributed.destroy()
    return 1 if failures else 0


def check_rank(options: TrainOptions) -> None:
    """`InputError` for options that do not suit one of several processes on one batch."""
    if not options.finetune_lora:
        raise InputError("several processes on one batch are for --finetune-lora; on a cache one is enough (--jobs N)")
    if options.device != AUTO:
        raise InputError(f"--device {options.device}: each process on a batch has a device of its own; leave it out")


def jobs_left(jobs: list[Job]) -> list[Job]:
    """The jobs that are not done; `HistError` where processes on one batch, perhaps on several machines, see others."""
    from train import distributed

    left = [job for job in jobs if not job.done]
    other = distributed.differing_rank([job.title for job in left])  # waits for all, before any is done that was not
    if other is not None:
        raise HistError(
            f"process {other} finds other finished folds than process 0 in {jobs[0].folder.parents[1]}; "
            "all machines must see the same folder of runs"
        )
    return left


def check_left(left: list[Job], options: TrainOptions, workspace: Workspace, device: torch.device) -> None:
    """Open what running these folds will open beside the cache; raises what the run would end in."""
    from train.experiments.adapted import check_adapters
    from train.experiments.announcements import check_may_write
    from train.experiments.runner import make_finetuner

    if left:
        check_may_write(left[0].folder.parents[1])
        workspace.check()
    if options.lora is not None:
        check_adapters(left, options, workspace)
    elif finetuned := [job for job in left if job.setting.finetuning]:
        make_finetuner(options, workspace, finetuned, device, dry_run=True)


def run_left(
    left: list[Job],
    options: TrainOptions,
    workspace: Workspace,
    workers: Workers,
    logged: FoldEvents,
) -> list[Failure[Job]]:
    """Run what is left, on the cache or with the encoder; returns what failed."""
    from train.experiments.adapted import run_adapted
    from train.experiments.runner import make_finetuner, run_with_progress

    workspace.keep_panels()
    if options.lora is not None:
        return run_adapted(left, options, workspace, workers, logged)
    finetuned = [job for job in left if job.setting.finetuning]
    finetuner = make_finetuner(options, workspace, finetuned, workers.device) if finetuned else None
    return run_with_progress(left, workspace, workers, finetuner, logged)


def kept(jobs: list[Job]) -> str:
    """What there is of the jobs where they cannot go on."""
    stopped = sum(job.stopped for job in jobs if not job.done)
    return f"{sum(job.done for job in jobs)} of {len(jobs)} folds" + (f", {stopped} checkpoints" if stopped else "")


def remove_leftover_checkpoints(jobs: list[Job]) -> None:
    """Remove the checkpoints of finished folds, which were killed between their last two steps."""
    from hist_cache.runs import checkpoint_files

    for job in jobs:
        if job.done:
            for file in checkpoint_files(job.folder):
                with suppress(OSError):  # nobody needs the file, so it may stay where nothing can be removed
                    file.unlink(missing_ok=True)


def print_results(jobs: list[Job], genes: list[str] | None, table: int | None) -> None:
    """Write the summary of each setting that has finished folds, and print the tables of all."""
    from hist_cache.runs import GEOMETRY, MAPS, TRAINING, Run
    from train.experiments.outputs import write_summary
    from train.report.paper_tables import results_tables
    from train.report.reading import read_results
    from train.report.ridge_table import ridge_tables
    from train.report.terminal import to_rich

    folders = [folder for folder in dict.fromkeys(job.folder.parent for job in jobs) if Run(folder).folds]
    for folder in folders:
        write_summary(folder)
    if genes is not None:
        redraw_maps(jobs, genes)
    results = read_results(folders)
    for results_table in [*results_tables(results, table=table), *ridge_tables(results)]:
        out.print(to_rich(results_table))
    folder = folders[0] if len(folders) == 1 else folders[0].parent
    drawn = {path.name for f in folders for path in f.glob("fold*/*.png")}
    figures = ", ".join(name for name in (MAPS, TRAINING, GEOMETRY) if name in drawn)
    say(f"{folder}: summary.json, and in each fold {figures}; hist-report {folder} has it all")


def redraw_maps(jobs: list[Job], genes: list[str]) -> None:
    """Draw the maps of finished folds again, with these genes."""
    from hist_cache.runs import MAPS, Fold
    from train.experiments.fold_maps import plot_maps

    for job in jobs:
        if job.done:
            plot_maps(job.folder / MAPS, Fold(job.folder).predictions, genes)
