"""Running folds, in this process or in several, with one progress display for all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from extract.pipeline import has_fast_bf16
from hist_cache.cached_slide import CachedSlide
from hist_cache.console import progress
from hist_cache.devices import choose_device, visible_gpus
from hist_cache.engine import Engine, Workers
from hist_cache.errors import HistError
from hist_cache.executor import Events, Failure, Report, SerialExecutor, Shared, Worker
from hist_cache.extras import require
from hist_cache.fingerprint import short_hash
from hist_cache.processes import cores
from hist_cache.scratch import scratch_folder
from train import distributed
from train.data import SpotData, TensorCache
from train.experiments.announcements import announce_result
from train.experiments.controls import Controls
from train.experiments.fold import FoldRunner
from train.experiments.jobs import Job
from train.experiments.logged_folds import FoldEvents
from train.finetune.encoder import Finetuner, find_data_root, load_cached_encoder
from train.fit.config import EncodingConfig
from train.models.registry import ModelEntry, model_entries, register
from train.options import TrainOptions
from train.shared_data import from_arrays, to_arrays
from train.workspace import DataKey, Workspace

log = logging.getLogger(__name__)

MAX_WORKERS = 4

OnEpoch = Callable[[Job, dict[str, float]], None]
OnDone = Callable[[Job, dict[str, Any]], None]


def fold_workers(engine: Engine, jobs: int | None, folds: int, device: torch.device, asked: str) -> Workers:
    """Who trains folds.

    Args:
        engine: Where workers come from.
        jobs: The value of `--jobs`.
        folds: How many there are to train.
        device: Of this process.
        asked: The value of `--device`.
    """
    return Workers(engine, engine.workers(folds, jobs or default_workers(folds, device)), device, asked)


def default_workers(jobs: int, device: torch.device) -> int:
    """Folds to train at once: on a CPU one a core, 4 at most (each holds a model and its optimizer); one a GPU."""
    room = min(len(cores()), MAX_WORKERS) if device.type == "cpu" else max(1, len(visible_gpus(device)))
    return max(1, min(jobs, room))


def make_finetuner(
    options: TrainOptions, workspace: Workspace, jobs: list[Job], device: torch.device, dry_run: bool = False
) -> Finetuner:
    """The cache's encoder, ready to be fine-tuned; tokens that it starts from are made now where they are missing.

    Args:
        options: Of the command.
        workspace: The cache.
        jobs: Those that fine-tune; at least one.
        device: To run on.
        dry_run: Only open what will be read.
    """
    require("peft", "lora", "--finetune-lora")  # before tokens are made, which takes long
    encoder = load_cached_encoder(workspace.common, Path(options.weights) if options.weights else None)
    caches = {slide: workspace.cache_of(slide) for slide in workspace.all_slides}
    for cache in set(caches.values()):
        find_data_root(cache, options.data_root)  # an error now, not after tokens were read
    encoding = EncodingConfig(options.micro_batch, options.augment)
    finetuner = Finetuner(caches, encoder, device, options.data_root, encoding, options.grad_checkpoint)
    finetunings = [job.setting.finetuning for job in jobs if job.setting.finetuning]
    layers = max(finetuning.lora.layers for finetuning in finetunings)
    finetuner.check(layers)
    sizes = sorted({job.setting.neighbors for job in jobs})
    starts = {finetuning.start for finetuning in finetunings}
    if dry_run:
        for start in starts:
            finetuner.check_slides(sizes, layers, from_crops=start == "crops")
    elif "tokens" in starts:
        finetuner.provide_tokens(sizes, layers)
    return finetuner


@dataclass
class FoldContext:
    """What one process needs to run folds: their tensors, and what folds share."""

    load: Callable[[DataKey], SpotData]
    runner: FoldRunner
    received: ReceivedTensors | None = None

    def run(self, job: Job, report: Report) -> dict[str, Any]:
        """Run one fold; its epochs are reported, its metrics returned."""
        data = self.load(job.data)
        if self.runner.finetuner is not None and job.setting.finetuning is not None:
            data = self.runner.finetuner.data(data, job.data.neighbors, job.setting.finetuning)
        return self.runner.run(job, data, report)


def run_job(context: FoldContext, job: Job, report: Report) -> dict[str, Any]:
    """Run one fold: the work of an executor."""
    return context.run(job, report)


def by_data(jobs: Sequence[Job]) -> list[Job]:
    """Jobs with the same tensors one after the other, since each making of tensors reads the whole cache."""
    numbers = {key: i for i, key in enumerate(dict.fromkeys(job.data for job in jobs))}
    return sorted(jobs, key=lambda job: numbers[job.data])


def check_data(jobs: Sequence[Job], workspace: Workspace) -> None:
    """Read all of the cache where the tensors of the first job, which are made first, are not all that must be sound.

    They have one neighbourhood size of perhaps several; and where the encoder is fine-tuned, its tokens come before.

    Raises:
        HistError: The first slide that cannot be read.
    """
    if len({job.data.neighbors for job in jobs}) > 1 or any(job.setting.finetuning for job in jobs):
        workspace.check()


def run_jobs(
    jobs: Sequence[Job],
    workspace: Workspace,
    workers: Workers,
    on_epoch: OnEpoch,
    on_done: OnDone,
    finetuner: Finetuner | None = None,
) -> list[Failure[Job]]:
    """Run all jobs and return those that failed, with why.

    Args:
        jobs: To run.
        workspace: Their data.
        workers: Who runs them.
        on_epoch: Called with each row of a fold's history.
        on_done: Called with the metrics of each fold that has ended.
        finetuner: For jobs that fine-tune the encoder, which are run one after the other.

    Raises:
        HistError: A slide of the cache cannot be read.
        KeyboardInterrupt: The user asked to stop; what ran has a checkpoint.
    """
    events: Events[Job, dict[str, Any]] = Events(
        on_epoch, lambda job, metrics: on_done(job, metrics) if metrics else None
    )
    in_processes = finetuner is None and not workers.are_here
    jobs = by_data(jobs)
    check_data(jobs, workspace)
    if jobs:  # a slide that cannot be read ends the command here, instead of every fold
        workspace.data(jobs[0].data, torch.device("cpu") if in_processes else workers.device)
    if in_processes:
        with scratch_folder("hist-train-") as folder:
            setup = FoldWorkerSetup(
                workspace.pictures,
                workers.asked,
                jobs[0].folder.parents[1],
                folder if workers.engine.shares_files else None,
                tuple(model_entries()),
                has_fast_bf16(workers.device) and any(job.setting.fit.precision == "bf16" for job in jobs),
            )
            worker = Worker(start_worker, run_job, setup, receive_tensors, tries=workers.tries)
            events = replace(events, shared=lambda job: shared_tensors(job, workspace))
            return workers.executor().run(jobs, worker, events)
    device = workers.device
    context = FoldContext(lambda key: workspace.data(key, device), FoldRunner(workspace.pictures, device, finetuner))
    # Of several processes on one batch, the others must not wait for one that has failed.
    executor = SerialExecutor(stop_at_failure=distributed.world_size() > 1)
    return executor.run(jobs, Worker(lambda setup: setup, run_job, context), events)


def shared_tensors(job: Job, workspace: Workspace) -> Shared:
    """The tensors that a job reads, as arrays that all workers share."""

    def make() -> dict[str, np.ndarray]:
        data = workspace.data(job.data, torch.device("cpu"))
        workspace.drop_tensors()  # workers have the arrays, which nobody reads here
        return to_arrays(data)

    return Shared(data_name(job.data), make)


def data_name(key: DataKey) -> str:
    """What the tensors of a key are called among workers."""
    return short_hash(asdict(key))


@dataclass(frozen=True)
class FoldWorkerSetup:
    """What a worker process is given at its start.

    Attributes:
        slides: For maps, without large arrays.
        device: The value of `--device`.
        runs: Folder of the dataset's runs, which is there.
        scratch: Where the workers of a machine share controls; None where they may be on several.
        models: Those that are known to the command.
        fast_bf16: Whether a device that does not compute bf16 in hardware is refused.
    """

    slides: dict[str, CachedSlide]
    device: str
    runs: Path
    scratch: Path | None
    models: tuple[ModelEntry, ...]
    fast_bf16: bool


def start_worker(setup: FoldWorkerSetup) -> FoldContext:
    """What a worker process needs for many folds.

    Raises:
        HistError: This machine cannot run them.
    """
    device = choose_device(setup.device)
    if setup.fast_bf16 and not has_fast_bf16(device):
        raise HistError(f"{device} does not compute bf16 in hardware, as others do; give --precision fp32 for all")
    if not setup.runs.is_dir():
        raise HistError(f"{setup.runs}: no such folder here; all machines must see the folder of the runs there")
    for entry in setup.models:
        register(entry)  # one that a user has registered is unknown in another process
    received = ReceivedTensors(device)
    runner = FoldRunner(setup.slides, device, controls=Controls(setup.scratch))
    return FoldContext(received.load, runner, received)


class ReceivedTensors:
    """The tensors that came with a worker's last task; they are moved to the device once, for all tasks in a row.

    Args:
        device: To move them to.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._arrays: dict[str, np.ndarray] = {}
        self._tensors: TensorCache[SpotData] = TensorCache()

    def receive(self, arrays: dict[str, np.ndarray]) -> None:
        """Take the arrays of the next task."""
        self._arrays = arrays

    def load(self, key: DataKey) -> SpotData:
        """The tensors of this key, which the last arrays are."""
        return self._tensors.get(key, lambda: from_arrays(self._arrays, self._device))


def receive_tensors(context: FoldContext, name: str, arrays: dict[str, np.ndarray]) -> None:
    """Take the arrays of a worker's next job."""
    assert context.received is not None
    context.received.receive(arrays)


def describe_failure(failure: Failure[Job]) -> str:
    """A failure as one line, which names the fold where the error does not."""
    text, job = str(failure.error), failure.task
    named = failure.reason == "failed" and any(str(name) in text for name in (job.folder, job.title))
    return text if named else f"{job.title}: {text}"


def run_with_progress(
    left: list[Job],
    workspace: Workspace,
    workers: Workers,
    finetuner: Finetuner | None = None,
    logged: FoldEvents | None = None,
) -> list[Failure[Job]]:
    """`run_jobs` with one progress display for all, and a line as each fold ends.

    Args:
        left: To run.
        workspace: Their data.
        workers: Who runs them.
        finetuner: For jobs that fine-tune the encoder.
        logged: Called with each epoch and each result too.
    """
    logged = logged or FoldEvents()
    for job in left:
        if job.stopped:
            log.info(f"{job.title}: going on with the stopped run ({job.folder}; delete it to start over)")
    shares = dict.fromkeys((job.folder for job in left), 0.0)  # of each fold that count as done
    lengths: list[int] = []  # epochs of the folds that have ended: most stop early
    with progress("folds", len(left), "folds") as meter:

        def advance(job: Job, share: float, note: str | None = None) -> None:
            meter.advance(share - shares[job.folder], note)
            shares[job.folder] = share

        def on_epoch(job: Job, row: dict[str, float]) -> None:
            logged.on_message(job, row)
            epoch = int(row["epoch"]) + 1
            expected = sum(lengths) / len(lengths) if lengths else job.setting.fit.epochs
            note = f"{job.title}: epoch {epoch}, validation MSE {row['val_mse']:.4f}"
            advance(job, min(epoch / max(expected, 1), 0.95), note)

        def on_done(job: Job, metrics: dict[str, Any]) -> None:
            if metrics["epochs"]:
                lengths.append(metrics["epochs"])
            advance(job, 1.0)
            announce_result(job, metrics)
            logged.on_result(job, metrics)

        try:
            return run_jobs(left, workspace, workers, on_epoch, on_done, finetuner)
        except KeyboardInterrupt:
            for job in left:
                if job.stopped:
                    is_one = job.setting.recipe.ensemble == 1
                    kept = "the best weights so far and a checkpoint" if is_one else "the checkpoints of the members"
                    log.info(f"kept {kept} in {job.folder}; the same command goes on")
            raise
