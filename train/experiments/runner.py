"""Running folds, in this process or in several, with one progress display for all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hist_cache.cached_slide import CachedSlide
from hist_cache.console import progress
from hist_cache.devices import use_device
from hist_cache.executor import Events, Failure, Report, SerialExecutor, Worker
from hist_cache.extras import require
from hist_cache.files import atomic_file
from hist_cache.fingerprint import short_hash
from hist_cache.processes import ProcessExecutor, cores
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
from train.workspace import DataKey, Workspace

log = logging.getLogger(__name__)

MAX_WORKERS = 4

OnEpoch = Callable[[Job, dict[str, float]], None]
OnDone = Callable[[Job, dict[str, Any]], None]


def default_workers(jobs: int, device: torch.device) -> int:
    """Folds to train at once: on a CPU one a core, 4 at most (each holds a model and its optimizer); one on a GPU."""
    return 1 if device.type == "cuda" else max(1, min(jobs, len(cores()), MAX_WORKERS))


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

    def run(self, job: Job, report: Report) -> dict[str, Any]:
        """Run one fold; its epochs are reported, its metrics returned."""
        data = self.load(job.data)
        if self.runner.finetuner is not None and job.setting.finetuning is not None:
            data = self.runner.finetuner.data(data, job.data.neighbors, job.setting.finetuning)
        return self.runner.run(job, data, report)


def run_job(context: FoldContext, job: Job, report: Report) -> dict[str, Any]:
    """Run one fold: the work of an executor."""
    return context.run(job, report)


def run_jobs(
    jobs: Sequence[Job],
    workspace: Workspace,
    device: torch.device,
    workers: int,
    on_epoch: OnEpoch,
    on_done: OnDone,
    finetuner: Finetuner | None = None,
) -> list[Failure[Job]]:
    """Run all jobs and return those that failed, with why.

    Args:
        jobs: To run.
        workspace: Their data.
        device: To train on.
        workers: How many run at once.
        on_epoch: Called with each row of a fold's history.
        on_done: Called with the metrics of each fold that has ended.
        finetuner: For jobs that fine-tune the encoder, which are run one after the other.

    Raises:
        KeyboardInterrupt: The user asked to stop; what ran has a checkpoint.
    """
    events: Events[Job, dict[str, Any]] = Events(
        on_epoch, lambda job, metrics: on_done(job, metrics) if metrics else None
    )
    if finetuner is None and workers > 1 and len(jobs) > 1:
        with scratch_folder("hist-train-") as folder:
            shared = SharedTensors(workspace, folder)
            worker = Worker(
                start_worker, run_job, FoldWorkerSetup(workspace.pictures, device, folder, tuple(model_entries()))
            )
            return ProcessExecutor(min(workers, len(jobs)), shared.write).run(jobs, worker, events)
    context = FoldContext(lambda key: workspace.data(key, device), FoldRunner(workspace.pictures, device, finetuner))
    # Of several processes on one batch, the others must not wait for one that has failed.
    executor = SerialExecutor(stop_at_failure=distributed.world_size() > 1)
    return executor.run(jobs, Worker(lambda setup: setup, run_job, context), events)


@dataclass(frozen=True)
class SharedTensors:
    """Tensors in files that all workers map into memory: one copy, however many workers there are."""

    workspace: Workspace
    folder: Path

    def write(self, job: Job) -> None:
        """Write the tensors of a job, unless they are there."""
        file = tensor_file(self.folder, job.data)
        if not file.exists():
            data = self.workspace.data(job.data, torch.device("cpu"))
            with atomic_file(file) as opened:
                torch.save({k: v for k, v in vars(data).items() if k != "encoder_inputs"}, opened)


def tensor_file(folder: Path, key: DataKey) -> Path:
    """Where the tensors of a key are shared."""
    return folder / f"{short_hash(asdict(key))}.pt"


@dataclass(frozen=True)
class FoldWorkerSetup:
    """What a worker process is given at its start; the folder is where workers share tensors and controls."""

    slides: dict[str, CachedSlide]
    device: torch.device
    folder: Path
    models: tuple[ModelEntry, ...]


def start_worker(setup: FoldWorkerSetup) -> FoldContext:
    """What a worker process needs for many folds."""
    use_device(setup.device)
    for entry in setup.models:
        register(entry)  # one that a user has registered is unknown in another process
    tensors: TensorCache[SpotData] = TensorCache()

    def load(key: DataKey) -> SpotData:
        return tensors.get(key, lambda: map_tensors(tensor_file(setup.folder, key), setup.device))

    return FoldContext(load, FoldRunner(setup.slides, setup.device, controls=Controls(setup.folder)))


def map_tensors(file: Path, device: torch.device) -> SpotData:
    """Tensors that another process has written, mapped into memory."""
    stored: dict[str, Any] = torch.load(file, mmap=True, weights_only=True)
    moved: dict[str, Any] = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in stored.items()}
    moved["rings"] = tuple(ring.to(device) for ring in stored["rings"])
    return SpotData(**moved)


def describe_failure(failure: Failure[Job]) -> str:
    """A failure as one line, which names the fold where the error does not."""
    text, job = str(failure.error), failure.task
    named = failure.reason == "failed" and any(str(name) in text for name in (job.folder, job.title))
    return text if named else f"{job.title}: {text}"


def run_with_progress(
    left: list[Job],
    workspace: Workspace,
    device: torch.device,
    workers: int,
    finetuner: Finetuner | None = None,
    logged: FoldEvents | None = None,
) -> list[Failure[Job]]:
    """`run_jobs` with one progress display for all, and a line as each fold ends.

    Args:
        left: To run.
        workspace: Their data.
        device: To train on.
        workers: How many run at once.
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
            return run_jobs(left, workspace, device, workers, on_epoch, on_done, finetuner)
        except KeyboardInterrupt:
            for job in left:
                if job.stopped:
                    is_one = job.setting.recipe.ensemble == 1
                    kept = "the best weights so far and a checkpoint" if is_one else "the checkpoints of the members"
                    log.info(f"kept {kept} in {job.folder}; the same command goes on")
            raise
