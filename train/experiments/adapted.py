"""`hist-train --lora RUN`: every fold on the embeddings of its own adapter, which has not seen what the fold tests."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from extract.adapted import adapted_cache, check_slides_to_embed, complete_adapted, slides_to_embed
from extract.encoders.adapters import ADAPTER, SETTINGS, adapter_digest, read_adapter_slides, read_owner
from hist_cache.engine import Workers
from hist_cache.errors import InputError
from hist_cache.executor import Failure
from hist_cache.fingerprint import is_tuned
from hist_cache.runs import METRICS
from train.experiments.jobs import Job
from train.experiments.logged_folds import FoldEvents
from train.experiments.run_folders import run_folder
from train.experiments.runner import run_with_progress
from train.finetune.encoder import find_data_root, load_cached_encoder
from train.leaks import adapter_leak
from train.options import TrainOptions
from train.workspace import Workspace

log = logging.getLogger(__name__)


def adapter_of_fold(run: Path, fold: int, workspace: Workspace) -> Path:
    """The folder of a fold's adapter; `InputError` where it is not finished, or is not of the cache's encoder."""
    folder = run / f"fold{fold}" / ADAPTER
    if not any(run.glob("fold*")):
        raise InputError(f"--lora {run}: no run here (looked for fold*); give the folder that holds the folds")
    if not (folder / SETTINGS).is_file() or not (folder.parent / METRICS).is_file():
        raise InputError(
            f"--lora {run}: no finished fold{fold} with an adapter; run hist-train --finetune-lora on all folds, or "
            "choose folds with --fold"
        )
    owner, common = read_owner(folder), workspace.common
    if (owner.encoder, owner.weights) != (common["encoder"], common["weights"]):
        raise InputError(
            f"{folder}: this adapter belongs to encoder {owner.encoder} with weights {owner.weights[:12]}, the cache "
            f"{workspace.cache.folder} to {common['encoder']} with weights {common['weights'][:12]}; choose another "
            "with --encoder"
        )
    return folder


def with_adapters(jobs: list[Job], lora: str | None, workspace: Workspace) -> list[Job]:
    """The same folds, each on the embeddings of the adapter of the run's fold of that number.

    Args:
        jobs: On the cache of the plain encoder.
        lora: Folder of a run of hist-train --finetune-lora; None leaves the folds as they are.
        workspace: The plain cache.

    Raises:
        InputError: A fold has no adapter, or the cache's encoder has one already.
    """
    if lora is None:
        return jobs
    run = Path(lora)
    if is_tuned(workspace.common):
        raise InputError(
            f"--lora {run}: {workspace.cache.folder} is of an encoder with an adapter; give the plain one's"
        )
    common = workspace.common | {"lora": f"each fold's of {run.resolve().name}"}
    adapted = []
    for job in jobs:
        adapter = adapter_of_fold(run, job.fold, workspace)
        setting = replace(job.setting, cache=common)
        leak = adapter_leak(workspace, read_adapter_slides(adapter), job.split)
        folder = run_folder(job.folder.parents[1], setting) / job.folder.name
        adapted.append(replace(job, setting=setting, folder=folder, leak=leak, embedded_by=adapter_digest(adapter)))
    return adapted


def announce_adapters(jobs: Sequence[Job], lora: str | None, workspace: Workspace) -> None:
    """Log what is to be embedded with the adapters before the folds can run."""
    for fold, of_fold in _by_fold(jobs).items() if lora is not None else ():
        adapter = adapter_of_fold(Path(str(lora)), fold, workspace)
        slides = _slides_of(of_fold, list(workspace.slides))
        if missing := slides_to_embed(adapted_cache(workspace.cache, adapter), slides, workspace.sizes):
            log.info(f"fold {fold}: {len(missing)} of {len(slides)} slides to embed with its adapter {adapter}")


def check_adapters(jobs: Sequence[Job], options: TrainOptions, workspace: Workspace) -> None:
    """Open the encoder and the slides that `run_adapted` needs for what is missing.

    Raises:
        HistError: The first of them that cannot be used.
    """
    missing = False
    for fold, of_fold in _by_fold(jobs).items():
        adapter = adapter_of_fold(Path(str(options.lora)), fold, workspace)
        for plain in (workspace.cache, workspace.test_cache):
            slides = [] if plain is None else _slides_of(of_fold, plain.slides)
            if plain is None or not slides_to_embed(adapted_cache(plain, adapter), slides, workspace.sizes):
                continue
            missing = True
            root = find_data_root(plain, options.data_root)
            if failed := check_slides_to_embed(plain, adapter, slides, workspace.sizes, root):
                raise failed[0]
    if missing:
        load_cached_encoder(workspace.common, Path(options.weights) if options.weights else None)


def run_adapted(
    jobs: Sequence[Job],
    options: TrainOptions,
    workspace: Workspace,
    workers: Workers,
    logged: FoldEvents | None = None,
) -> list[Failure[Job]]:
    """Run jobs of `with_adapters`, fold by fold; embeddings that are missing are computed and kept in the cache.

    Args:
        jobs: To run.
        options: Of the command.
        workspace: The plain cache.
        workers: Who runs them.
        logged: Called with each epoch and each result too.

    Returns:
        The jobs that failed.
    """
    failures: list[Failure[Job]] = []
    weights = Path(options.weights) if options.weights else None
    for fold, of_fold in _by_fold(jobs).items():
        adapter = adapter_of_fold(Path(str(options.lora)), fold, workspace)
        caches = [
            complete_adapted(
                plain,
                adapter,
                _slides_of(of_fold, plain.slides),
                workspace.sizes,
                lambda: load_cached_encoder(workspace.common, weights),
                lambda cache: find_data_root(cache, options.data_root),
                workers.device,
            )
            for plain in (workspace.cache, workspace.test_cache)
            if plain is not None
        ]
        own = Workspace(caches[0], workspace.sizes, caches[1] if len(caches) > 1 else None)
        failures += run_with_progress(of_fold, own, workers, logged=logged)
    return failures


def _by_fold(jobs: Sequence[Job]) -> dict[int, list[Job]]:
    return {fold: [job for job in jobs if job.fold == fold] for fold in sorted({job.fold for job in jobs})}


def _slides_of(jobs: Sequence[Job], available: Sequence[str]) -> list[str]:
    """Those of the available slides that the jobs train, validate or test on."""
    used = {slide for job in jobs for slide in job.split.ids}
    return [slide for slide in available if slide in used]
