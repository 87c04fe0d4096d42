"""What hist-train checks and says before it runs, and as each fold ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hist_cache.console import say, warn
from hist_cache.errors import InputError
from hist_cache.splits import patient_leaks
from train.experiments import protocols

if TYPE_CHECKING:
    import torch

    from train.experiments.jobs import Job
    from train.workspace import Workspace


def say_crops(jobs: list[Job], workspace: Workspace) -> None:
    """Where the cache's spot crops are not those of the protocol."""
    found = (protocols.check_crops(job.setting.protocol, workspace.common["spot_crop_um"]) for job in jobs)
    for sentence in dict.fromkeys(filter(None, found)):
        warn(sentence)


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
        tuned = f", last {s.tuning.lora.layers} blocks tuned from {s.tuning.start}" if s.tuning else ""
        say(
            f"{s.variant.name}: {s.n_genes} genes, {s.neighbors} neighbours, width {s.model.width}, protocol "
            f"{s.protocol.name}{tuned}; {job.folder.parent}"
        )
    count = f"{len(settings)} settings x folds = {len(jobs)} runs" if len(settings) > 1 else f"{len(jobs)} folds"
    done = f", {len(jobs) - len(left)} done before, not run again" if len(left) < len(jobs) else ""
    say(f"{count}{done}" + (f"; on {where}, {workers} at once" if left else ""))


def say_done(job: Job, metrics: dict[str, Any]) -> None:
    controls = metrics["controls"]
    best = max((k for k in metrics["pooled"] if k.startswith("pcc@")), key=lambda k: k == "pcc@50", default="mse")
    say(
        f"{job.title}: best epoch {metrics['best_epoch']} of {metrics['epochs']}, {best.upper()} "
        f"{metrics['pooled'][best]:.3f} "
        f"(ridge {controls['ridge'][best]:.3f}, permuted {controls['permuted'][best]:.3f})"
    )
    for problem in metrics["warnings"]:
        warn(f"{job.title}: {problem}")
