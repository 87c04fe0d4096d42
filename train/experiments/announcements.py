"""What hist-train and hist-sweep check and say before folds run, and as each fold ends."""

from __future__ import annotations

import itertools
import logging
import os
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from extract.encoders.registry import use_recorded_encoder
from hist_cache.cache import Cache, cache_folders, has_adapter, last_dataset, open_cache
from hist_cache.cached_dataset import use_kept_dataset
from hist_cache.datasets import check_dataset_name, dataset_named
from hist_cache.devices import device_name
from hist_cache.engine import Workers
from hist_cache.errors import InputError
from hist_cache.files import FULL, write_error
from hist_cache.fingerprint import CropRule, is_tuned
from hist_cache.options import flag, folder_option
from hist_cache.splits import LOSO_ALIKE, shared_patients
from hist_cache.validation_slides import reason_for
from train import distributed
from train.experiments import protocols
from train.experiments.grid import listed_numbers, used_options
from train.experiments.jobs import Job
from train.experiments.run_folders import changed_contents
from train.experiments.setting import Setting
from train.experiments.within import NOTHING_OF_NEW_SLIDES, describe_within
from train.leaks import cached_adapter, find_validation_leak, leak_sentences
from train.models.registry import get_model
from train.options import ADAPTED, FINETUNING, TrainOptions
from train.workspace import Workspace

log = logging.getLogger(__name__)
DEFAULTS = TrainOptions()  # a file that an earlier version printed names all options


def check_finetuning(options: TrainOptions) -> None:
    """`InputError` for options that only fine-tuning reads, without it, and for those that contradict each other."""
    for name in FINETUNING:
        used = options.finetune_lora or (options.lora and name in ADAPTED)
        if not used and name in options.given and getattr(options, name) != getattr(DEFAULTS, name):
            raise InputError(f"{flag(name)} is for fine-tuning the encoder: give --finetune-lora too")
    if options.finetune_lora and options.lora:
        raise InputError("--lora with --finetune-lora: an encoder is fine-tuned once; leave one out")


def open_workspace(options: TrainOptions, sizes: list[int], tensors_kept: int = 1) -> Workspace:
    """The cache that is asked for, in memory; what it is, and what it lacks, is logged.

    Args:
        options: Of the command.
        sizes: Neighbourhood sizes.
        tensors_kept: As in `Workspace`.
    """
    root = folder_option(options.cache, "HIST_CACHE", "cache")
    name = options.dataset or last_dataset(root)
    if options.dataset is None:
        log.info(f"dataset {name} (the one extracted last)")
    for dataset in (name, options.test_dataset):
        if dataset is not None:
            use_kept_dataset(root, check_dataset_name(dataset))
    cache = open_cache(root, name, options.encoder)
    announce_choice(cache, options.encoder)
    test_cache = open_cache(root, options.test_dataset, cache.folder.name) if options.test_dataset else None
    workspace = Workspace(cache, sizes, test_cache, tensors_kept)
    common, slides = workspace.common, workspace.slides
    use_recorded_encoder(common)
    log.info(
        f"{cache.folder}: {len(slides)} slides, {sum(map(len, slides.values())):,} spots, "
        f"embeddings of {common['encoder']} ({common['precision']})"
    )
    if is_tuned(common):
        log.info(f"this encoder was fine-tuned before; its adapter {describe_adapter(common)}")
    if test_cache is not None:
        test_slides = workspace.test_slides
        spots = sum(map(len, test_slides.values()))
        log.info(f"tested on {options.test_dataset}: {len(test_slides)} slides, {spots:,} spots")
    if not common["pretrained"]:
        log.warning(f"{common['encoder']} has random weights: metrics show that the method runs, not what it can do")
    if missing := set(dataset_named(cache.dataset).ids) - set(slides):
        log.warning(f"the cache holds {len(slides)} of the {len(slides) + len(missing)} slides of {cache.dataset}")
    return workspace


def announce_choice(cache: Cache, encoder: str | None) -> None:
    """Log which cache was taken and why, where a dataset has several."""
    others = [f for f in cache_folders(cache.folder.parents[1], cache.dataset) if f != cache.folder]
    if not others:
        return
    names = ", ".join(f"{f.name} (fine-tuned)" if has_adapter(f) else f.name for f in others)
    plain = [f for f in others if not has_adapter(f)]
    if encoder is not None:
        reason = f"--encoder {encoder}"
    else:
        reason = "the one extracted last" if plain else "the only one of an encoder that was not fine-tuned"
    log.info(f"{len(others) + 1} caches of {cache.dataset}: taking {cache.folder.name} ({reason}), not {names}")


def describe_adapter(common: dict[str, Any]) -> str:
    """What is known of the slides of a cache's adapter."""
    if (adapter := cached_adapter(common)) is None:
        return "was trained on slides that are not known"
    return (
        f"was trained on {', '.join(adapter.train)} of {adapter.dataset}, its epoch chosen on {', '.join(adapter.val)}"
    )


def announce_leaks(jobs: list[Job], options: TrainOptions, workspace: Workspace) -> None:
    """Warn of folds that test what the embeddings' adapter has seen; `InputError` unless --allow-leak is given."""
    leaks = [(job.fold, job.leak) for job in jobs]
    _check_leaks(leaks, options, workspace)
    for sentence in leak_sentences(leaks):
        log.warning(f"LEAK: {sentence}: the metrics say nothing of new slides")
    for sentence in leak_sentences((job.fold, find_validation_leak(workspace, job.split)) for job in jobs):
        log.warning(f"{sentence}: training stops later than it would on new slides")


def check_study_leaks(jobs: list[Job], options: TrainOptions, workspace: Workspace) -> None:
    """`InputError` for a study that judges its trials on slides that the embeddings' adapter was trained on."""
    _check_leaks([(job.fold, find_validation_leak(workspace, job.split)) for job in jobs], options, workspace)


def _check_leaks(leaks: list[tuple[int, str]], options: TrainOptions, workspace: Workspace) -> None:
    sentences = leak_sentences(leaks)
    if not sentences or options.allow_leak:
        return
    clean = sorted({fold for fold, _ in leaks} - {fold for fold, leak in leaks if leak})
    advice = [f"run {' or '.join(f'--fold {i}' for i in clean)}"] if clean and options.fold is None else []
    if options.lora:
        where, own = f"--lora {options.lora}", "give a run that was fine-tuned on these splits"
    else:
        where, own = str(workspace.cache.folder), "give each fold its own adapter (hist-train --lora RUN)"
    raise InputError(
        f"{where}: {'; '.join(sentences)}: {', '.join([*advice, own])}, or give --allow-leak, which marks the results"
    )


def announce_crops(jobs: list[Job], workspace: Workspace) -> None:
    """Warn where the cache's spot crops are not those of the protocol."""
    rule = CropRule.from_identity(workspace.common)
    for sentence in dict.fromkeys(protocols.check_crops(job.setting.protocol, rule) for job in jobs):
        if sentence:
            log.warning(sentence)


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
    """`InputError` where no run was stopped."""
    if not any(job.stopped for job in jobs):
        raise InputError(
            f"--resume: no stopped run in {jobs[0].folder.parent}; leave it out, or give the options of the run "
            "that stopped"
        )


def check_shares(jobs: list[Job], n: int) -> None:
    """`InputError` where batches cannot be divided among `n` processes."""
    for size in sorted({job.setting.fit.batch_size for job in jobs}):
        if size % n:
            sizes = " or ".join(str(s) for s in (size - size % n, size - size % n + n) if s)
            raise InputError(f"--batch-size {size}: cannot be divided among {n} processes; give {sizes}")


def announce_splits(jobs: list[Job], workspace: Workspace) -> None:
    """Log each split once; then warn of the patients or the slides that parts of a split share."""
    within = {(job.split, job.data.cut): job.fold for job in jobs}
    for (split, cut), fold in within.items():
        if cut is not None:
            log.info(f"fold {fold}, {cut.neighbors} neighbours: {describe_within(split, cut, workspace)}")
    if any(cut for _, cut in within):
        log.warning(f"within slices: {NOTHING_OF_NEW_SLIDES}")
    _announce_whole([job for job in jobs if not job.setting.is_within], workspace.patients)


def _announce_whole(jobs: list[Job], patients: dict[str, str]) -> None:
    """Log each split of whole slides once, and warn of shared patients."""
    shared_in: dict[str, list[str]] = {}
    for split, job_of_split in {job.split: job for job in jobs}.items():
        folds = ", ".join(str(i) for i in sorted({job.fold for job in jobs if job.split == split}))
        validated = ", ".join(split.val) + _why_validated(job_of_split, patients)
        log.info(f"fold {folds}: train {len(split.train)}, validate {validated}, test {', '.join(split.test)}")
        if shared := shared_patients(split, patients):
            shared_in.setdefault(", ".join(shared), []).append(folds)
    for names, where in shared_in.items():
        log.warning(
            f"fold {', '.join(where)}: {names} in train and test: the metrics are optimistic "
            "(--split patient avoids it)"
        )


def _why_validated(job: Job, patients: dict[str, str]) -> str:
    """` (same patient)`: why these slides validate, where they were chosen for being like the test slide."""
    slides, left_out = sorted(job.setting.slides), job.split.test[0]
    if job.setting.split != LOSO_ALIKE or left_out not in slides:  # a slide of another dataset is tested instead of it
        return ""
    return f" ({reason_for(left_out, slides, patients)})"


def announce_seeds(jobs: list[Job], options: TrainOptions) -> None:
    """Log what splits are drawn with where it is not each run's own seed; warn of ensembles that share members."""
    seeds = listed_numbers(options).get("seed", [])
    drawn = {job.setting.split_seed for job in jobs} - {None}
    for seed in drawn:
        why = "" if options.split_seed is not None else ", so that runs differ by training alone (--split-seed sets it)"
        log.info(f"splits are drawn with seed {seed} for all of --seed {options.seed}{why}")
    if options.split_seed is not None and not drawn and options.split_seed != options.seed:
        log.info(f"--split-seed {options.split_seed} changes nothing: no splits are drawn here")
    members = max(job.setting.recipe.ensemble for job in jobs)
    if len(seeds) > 1 and min(b - a for a, b in itertools.pairwise(sorted(seeds))) < members:
        log.warning(
            f"--seed {options.seed}: ensembles of {members} have members of the same seeds, so that the spread over "
            f"seeds is too small; give seeds that are {members} apart"
        )


def announce_grid(jobs: list[Job], left: list[Job], workers: Workers, listed: Collection[str] = ()) -> None:
    """Log each setting, how many runs there are, how many are left, and where they run.

    Args:
        jobs: All.
        left: Those that are not done.
        workers: Who runs them.
        listed: Options of which several numbers were given, whose value is said of each setting.
    """
    settings = {job.folder.parent: job for job in jobs}
    for job in settings.values():
        s = job.setting
        tuned = f", last {s.finetuning.lora.layers} blocks fine-tuned from {s.finetuning.start}" if s.finetuning else ""
        log.info(
            f"{s.method}: {s.n_genes} genes, {s.neighbors} neighbours{_numbers(s, ('width', *listed))}, protocol "
            f"{s.protocol.name}{tuned}; {job.folder.parent}"
        )
    count = f"{len(settings)} settings x folds = {len(jobs)} runs" if len(settings) > 1 else f"{len(jobs)} folds"
    done = f", {len(jobs) - len(left)} done before, not run again" if len(left) < len(jobs) else ""
    n = distributed.world_size()
    where = f"{device_name(workers.device)}, {n} processes on each batch" if n > 1 else str(workers)
    log.info(f"{count}{done}" + (f"; on {where}" if left else ""))


def _numbers(setting: Setting, names: Sequence[str]) -> str:
    """`, width 256, lr 0.001`: those of some options that a setting's model uses."""
    values = vars(setting.model) | vars(setting.recipe) | vars(setting.fit)
    used = used_options(get_model(setting.model_name)) & set(values)
    return "".join(f", {name.replace('_', ' ')} {values[name]}" for name in dict.fromkeys(names) if name in used)


def announce_changes(jobs: list[Job]) -> None:
    """Warn of runs that are there and were made before slides changed, or do not know what their slides held."""
    for sentence in changed_contents(list({job.folder.parent: job.setting for job in jobs}.items())):
        log.warning(sentence)


def check_writable(folder: Path) -> None:
    """`InputError` where nothing can be written into a folder of runs, said once and not by each fold."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if error.errno in FULL:
            raise write_error(error, folder) from error
        raise InputError(f"--runs: {folder} cannot be written ({error.strerror or error})") from None


def check_may_write(folder: Path) -> None:
    """`check_writable` for a dry run, which writes nothing: it asks the operating system for permission only."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "Permission denied" if there.is_dir() else "Not a directory"
        raise InputError(f"--runs: {folder} cannot be written ({why})")


def announce_result(job: Job, metrics: dict[str, Any]) -> None:
    """Log what a fold that has ended reached, and warn of what it warns of."""
    controls = metrics["controls"]
    shared = [k for k in metrics["pooled"] if k.startswith("pcc@") and k in controls["ridge"]]
    best = max(shared, key=lambda k: k == "pcc@50", default="mse")
    epochs = f"best epoch {metrics['best_epoch']} of {metrics['epochs']}, " if metrics["epochs"] else ""
    log.info(
        f"{job.title}: {epochs}{best.upper()} {metrics['pooled'][best]:.3f} "
        f"(ridge {controls['ridge'][best]:.3f}, permuted {controls['permuted'][best]:.3f})"
    )
    for problem in [*(f"diverged: {text}" for text in metrics.get("diverged", [])), *metrics["warnings"]]:
        log.warning(f"{job.title}: {problem}")
