"""After the search: train the best and the default setting on all folds, and test them as hist-train does."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from hist_cache.console import fail
from hist_cache.engine import Engine
from hist_cache.errors import HistError
from hist_cache.runs import Run
from sweeps.study import StudyPlan
from sweeps.waiting import hold
from train.experiments.announcements import announce_changes
from train.experiments.jobs import Job
from train.experiments.outputs import write_summary
from train.experiments.runner import describe_failure, fold_workers, run_with_progress
from train.metrics import TOP_K
from train.report.context import adapter_warnings
from train.report.reading import read_results
from train.report.results import Results
from train.report.significance import Paired, compare
from train.workspace import Workspace

log = logging.getLogger(__name__)

BEST_LABEL, DEFAULT_LABEL = "best", "default"
CHANCE = 0.05  # a difference with a higher p value may be chance


@dataclass(frozen=True)
class FinalTest:
    """The runs of the best and the default setting; one run where they are the same."""

    results: Results
    best: Path
    """Folder of the best setting's run."""
    warnings: tuple[str, ...]
    """One sentence for each way in which the trials, or the embeddings' adapter, used slides that are tested here."""

    @property
    def same(self) -> bool:
        """Whether the best setting is the default one."""
        return len(self.results.runs) == 1

    @property
    def reference(self) -> str | None:
        """Label of the default setting's run, which the best is tested against; None where they are the same."""
        return None if self.same else self.results.runs[1].label


def test_best(
    plan: StudyPlan, workspace: Workspace, values: Mapping[str, Any], device: torch.device, engine: Engine
) -> FinalTest:
    """Train and test the best and the default setting in ordinary run folders, where that is not done yet.

    Args:
        plan: The study.
        workspace: The cached slides that the study uses.
        values: The best setting's value of each parameter.
        device: Of this process.
        engine: Where workers come from.

    Raises:
        HistError: Where a fold failed.
    """
    best, default = plan.final_jobs(workspace, values), plan.final_jobs(workspace, {})
    jobs = list({job.folder: job for job in (*best, *default)}.values())
    what = "another command, which tests this study's best setting"
    with hold(FileLock(plan.folder / ".test.lock"), what, limit_s=None):
        left = [job for job in jobs if not job.done]
        announce_changes(jobs)
        if left:
            log.info(f"testing the best setting beside the default: {len(left)} folds")
        workers = fold_workers(engine, plan.options.jobs, len(left), device, plan.options.device)
        failures = run_with_progress(left, workspace, workers)
        for failure in failures:
            fail(describe_failure(failure))
        if failures:
            raise HistError(f"{len(failures)} folds of the test failed; the same command goes on")
        folders = [jobs[0].folder.parent for jobs in (best, default)]
        for folder in dict.fromkeys(folders):
            if Run(folder).folds:
                write_summary(folder)
    results = named_results(folders)
    warnings = [*adapter_warnings(results), *test_slide_warnings(plan.jobs(workspace, values), best)]
    return FinalTest(results, folders[0], tuple(warnings))


def named_results(folders: Sequence[Path]) -> Results:
    """Read the runs in these folders, and label them best and default instead of by their settings."""
    results = read_results(folders)
    names = (BEST_LABEL, DEFAULT_LABEL) if len(results.runs) == 2 else ("best, which is the default",)
    labels = [", ".join([name, *run.marks]) for run, name in zip(results.runs, names, strict=True)]
    return Results(tuple(replace(run, label=label) for run, label in zip(results.runs, labels, strict=True)))


def test_slide_warnings(trials: Sequence[Job], final: Sequence[Job]) -> list[str]:
    """Warn of test slides that the trials trained or validated on, which happens in other folds than their own.

    Args:
        trials: The folds of each trial.
        final: The folds of the final test.

    Returns:
        At most one sentence; none where the trials used no test slide.
    """
    used = {s for job in trials for s in job.split.train + job.split.val}
    folds = [
        job.fold
        for job in final
        if used.intersection(job.split.test)
        or (job.setting.is_within and any(other.fold != job.fold for other in trials))  # all other bands train
    ]
    if not folds:
        return []
    which = f"fold{'s' * (len(folds) > 1)} {', '.join(map(str, folds))}"
    return [
        f"{which}: test slides of these train or validate in other folds of the search, so that the setting was chosen "
        "with them in view, and its gain over the default may be optimistic"
    ]


def verdict(final: FinalTest) -> str:
    """Compare the best setting with the default one on the test slides: every metric first, then what follows."""
    if final.same:
        return "The search found nothing better than the default setting."
    best, default = final.results.runs
    pairs = {metric: compare(final.results, best, default, metric) for metric in shared_metrics(final)}
    pairs = {m: p for m, p in pairs.items() if p.n and p.difference is not None and math.isfinite(p.difference)}
    if not pairs:
        return "On test the two cannot be compared."
    splits = max(pair.n for pair in pairs.values())
    listed = ", ".join(f"{m.upper()} {p.difference:+.4f}{_p_text(p.p_t)}" for m, p in pairs.items())
    head = f"On test the best setting against the default, over {splits} split{'s' * (splits > 1)}: {listed}"
    sure = {m: _gain(m, p) for m, p in pairs.items() if p.p_t is not None and p.p_t <= CHANCE}
    better = [m.upper() for m, gain in sure.items() if gain > 0]
    worse = [m.upper() for m, gain in sure.items() if gain < 0]
    if not sure:
        return f"{head}; {'one split says nothing of chance' if splits == 1 else 'all of this may be chance'}."
    parts = [f"better by {', '.join(better)}"] * bool(better) + [f"WORSE by {', '.join(worse)}"] * bool(worse)
    rest = "; the others may be chance" * (len(sure) < len(pairs))
    return f"{head}; it is {' and '.join(parts)}{rest}."


def shared_metrics(final: FinalTest) -> list[str]:
    """Names of the metrics that all folds of both runs have, in the order of tables."""
    folds = [fold.metrics["pooled"] for run in final.results.runs for fold in run.folds]
    return [m for m in (*(f"pcc@{k}" for k in TOP_K), "mse", "mae") if all(m in metrics for metrics in folds)]


def _gain(metric: str, pair: Paired) -> float:
    """How much better the first of a pair is: a higher PCC, a lower error."""
    difference = pair.difference or 0.0
    return difference if metric.startswith("pcc") else -difference


def _p_text(p: float | None) -> str:
    if p is None:
        return ""
    return f" (p = {p:.3f})" if p >= 0.001 else " (p < 0.001)"
