"""`--precision auto`: bf16 where its matrix products are measured to be faster, or what the runs that are there have.

A measurement may come out otherwise the next time. So a run that has begun keeps its precision: the same command finds
its finished folds, and goes on with a stopped one.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from extract.pipeline import has_fast_bf16
from hist_cache.runs import CONFIG, fold_folders
from hist_cache.values import Precision
from train import distributed
from train.experiments.jobs import Job
from train.experiments.run_folders import run_folder
from train.experiments.setting import Setting
from train.models.registry import get_model

log = logging.getLogger(__name__)

CLEARLY = 1.2  # times faster: less may be noise, and is lost in all that is no matrix product
ROUNDS = 15
WIDEST, LONGEST = 2048, 2048  # of what is measured; larger products gain the same
TOKENS = 16  # rows for each crop that an encoder is given, at least


@dataclass(frozen=True)
class Version:
    """A run in one precision, with its folder."""

    setting: Setting
    folder: Path

    @property
    def precision(self) -> Precision:
        """Of the model's products."""
        return self.setting.fit.precision

    @property
    def folds(self) -> int:
        """Folds that have begun, or had begun before the contents of the slides changed."""
        return _begun(self.folder) or _begun(self.folder.with_name(self.setting.name))


def _begun(run: Path) -> int:
    return sum((fold / CONFIG).exists() for fold in fold_folders(run))


def versions_of(run: Path, setting: Setting) -> list[Version]:
    """A run in bf16 and in fp32, of which a model and an encoder that is fine-tuned with it have the same.

    Before version 0.2 the model was in fp32, whatever the encoder was in: such a run is a third one.
    """
    pairs: list[tuple[Precision, Precision]] = [("bf16", "bf16"), ("fp32", "fp32")]
    pairs += [("fp32", "bf16")] if setting.finetuning else []
    found = []
    for model, encoder in pairs:
        tuning = replace(setting.finetuning, precision=encoder) if setting.finetuning else None
        own = replace(setting, fit=replace(setting.fit, precision=model), finetuning=tuning)
        found.append(Version(own, run_folder(run.parent, own)))
    return found


def with_precision(jobs: list[Job], asked: str, device: torch.device) -> list[Job]:
    """The same folds, in the precision that `auto` stands for; what it is and why is logged.

    All runs of a command have the same one, except those that have begun in another. Models that do not learn by
    gradient steps have none.

    Args:
        jobs: As `make_jobs` makes them.
        asked: The value of `--precision`; folds of another one than `auto` have it already.
        device: To train on.
    """
    runs = {job.folder.parent: job.setting for job in jobs if get_model(job.setting.model_name).learns}
    by_run = {run: versions_of(run, setting) for run, setting in runs.items()}
    if asked != "auto":
        for run, of_run in by_run.items():
            _announce_others(run, of_run)
        return jobs
    if not by_run:
        return jobs
    begun = Counter({"fp32": 0})
    for of_run in by_run.values():
        for version in of_run:
            begun[version.precision] += version.folds
    any_begun = distributed.any_rank(begun.total() > 0)
    common = begun.most_common(1)[0][0] if any_begun else measured_precision(list(runs.values()), device)
    chosen = {run: _choose(of_run, common) for run, of_run in by_run.items()}
    if any_begun:
        counts = Counter(version.precision for version in chosen.values())
        log.info(f"precision: {' and '.join(sorted(counts))}, as the folds that are there (--precision sets another)")
        if len(counts) > 1:
            log.warning(f"of {len(chosen)} runs {counts['bf16']} are in bf16 and {counts['fp32']} in fp32")
    return [_in_version(job, chosen.get(job.folder.parent)) for job in jobs]


def _in_version(job: Job, chosen: Version | None) -> Job:
    return replace(job, setting=chosen.setting, folder=chosen.folder / job.folder.name) if chosen else job


def _choose(of_run: Sequence[Version], common: str) -> Version:
    """The version that has begun; of several, or of none, that in the common precision."""
    folds = {version.folder: version.folds for version in of_run}
    candidates = [version for version in of_run if folds[version.folder]] or of_run
    return max(candidates, key=lambda version: (version.precision == common, folds[version.folder]))


def _announce_others(run: Path, of_run: Sequence[Version]) -> None:
    for version in of_run:
        if version.folder != run and version.folds:
            tuning = version.setting.finetuning
            encoder = f" with its encoder in {tuning.precision}" if tuning else ""
            log.info(f"{version.folder}: the same setting in {version.precision}{encoder}, which stays as it is")


def measured_precision(settings: Sequence[Setting], device: torch.device) -> Precision:
    """What is faster for the largest of these settings; it is logged with how much."""
    if distributed.any_rank(not has_fast_bf16(device)):
        log.info("precision: fp32 (no hardware for bf16 products here)")
        return "fp32"
    width, rows = map(max, zip(*map(product_size, settings), strict=True))
    speedup = measured_speedup(device, width, rows)
    if distributed.any_rank(speedup < CLEARLY):
        log.info(f"precision: fp32 (bf16 products {speedup:.1f} x as fast here)")
        return "fp32"
    log.info(f"precision: bf16 (products {speedup:.1f} x as fast as in fp32 here)")
    return "bf16"


def product_size(setting: Setting) -> tuple[int, int]:
    """Width and rows of the products that take most of a step: the model's, or those of an encoder fine-tuned."""
    width = getattr(setting.model, "width", setting.model.embedding_width)
    if setting.finetuning:
        return max(width, setting.model.embedding_width), setting.fit.batch_size * TOKENS
    return width, setting.fit.batch_size


def measured_speedup(device: torch.device, width: int, rows: int) -> float:
    """How much faster the products of a linear layer, forward and backward, are in bf16, casts included.

    On a CPU one thread is measured, and the best of several rounds counts: on a busy machine threads that wait for each
    other say nothing of the precision.

    Args:
        device: To train on.
        width: Of the inputs; the outputs are twice as wide.
        rows: Of the batch.
    """
    width, rows = min(width, WIDEST), min(rows, LONGEST)
    with torch.random.fork_rng(devices=[]):
        layer = nn.Linear(width, 2 * width).to(device)
        x = torch.randn(rows, width).to(device).requires_grad_()
    gradient = torch.ones(rows, 2 * width, device=device)

    def seconds(bf16: bool) -> float:
        _synchronize(device)
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            y = layer(x)
        torch.autograd.grad(y.float(), [x, *layer.parameters()], gradient)
        _synchronize(device)
        return time.perf_counter() - started

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for bf16 in (True, False):
            seconds(bf16)  # what is made once
        rounds = [(seconds(False), seconds(True)) for _ in range(ROUNDS)]
    finally:
        torch.set_num_threads(threads)
    fp32, bf16 = map(min, zip(*rounds, strict=True))
    return fp32 / bf16


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
