"""After the search: train the best and the default setting on all folds, and test them as hist-train does."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from hist_cache.console import fail
from hist_cache.errors import HistError
from hist_cache.runs import Run
from sweeps.study import StudyPlan
from train.experiments.announcements import announce_changes
from train.experiments.jobs import Job
from train.experiments.outputs import write_summary
from train.experiments.runner import default_workers, describe_failure, run_with_progress
from train.report.results import Results, read_results
from train.report.significance import compare
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
    """One sentence for each way in which the trials used slides that are tested here."""

    @property
    def same(self) -> bool:
        """Whether the best setting is the default one."""
        return len(self.results.runs) == 1

    @property
    def reference(self) -> str | None:
        """Label of the default setting's run, which the best is tested against; None where they are the same."""
        return None if self.same else self.results.runs[1].label


def test_best(plan: StudyPlan, workspace: Workspace, values: Mapping[str, Any], device: torch.device) -> FinalTest:
    """Train and test the best and the default setting in ordinary run folders, where that is not done yet.

    Args:
        plan: The study.
        workspace: The cached slides that the study uses.
        values: The best setting's value of each parameter.
        device: Where to train.

    Raises:
        HistError: Where a fold failed.
    """
    best, default = plan.final_jobs(workspace, values), plan.final_jobs(workspace, {})
    jobs = list({job.folder: job for job in (*best, *default)}.values())
    with FileLock(plan.folder / ".test.lock"):  # another command may run this study too, and have reached its end
        left = [job for job in jobs if not job.done]
        announce_changes(jobs)
        if left:
            log.info(f"testing the best setting beside the default: {len(left)} folds")
        workers = min(plan.options.jobs or default_workers(len(left), device), max(len(left), 1))
        failures = run_with_progress(left, workspace, device, workers)
        for failure in failures:
            fail(describe_failure(failure))
        if failures:
            raise HistError(f"{len(failures)} folds of the test failed; the same command goes on")
        folders = [jobs[0].folder.parent for jobs in (best, default)]
        for folder in dict.fromkeys(folders):
            if Run(folder).folds:
                write_summary(folder)
    return FinalTest(named_results(folders), folders[0], tuple(test_slide_warnings(plan.jobs(workspace, values), best)))


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
    folds = [job.fold for job in final if used.intersection(job.split.test)]
    if not folds:
        return []
    which = f"fold{'s' * (len(folds) > 1)} {', '.join(map(str, folds))}"
    return [
        f"{which}: test slides of these train or validate in other folds of the search, so that the setting was chosen "
        "with them in view, and its gain over the default may be optimistic"
    ]


def verdict(plan: StudyPlan, final: FinalTest) -> str:
    """Compare the best setting with the default one on the test slides, in one sentence."""
    if final.same:
        return "The search found nothing better than the default setting."
    best, default = final.results.runs
    paired = compare(final.results, best, default, plan.objective)
    if paired.n == 0 or paired.difference is None:
        return f"On test the two cannot be compared by {plan.objective.upper()}."
    gain = paired.difference if plan.maximize else -paired.difference
    p = paired.p_t
    comparison = f"{paired.difference:+.4f} {plan.objective.upper()} against the default over {paired.n} test split"
    comparison += f"{'s' * (paired.n > 1)}{f', p = {p:.3f}' if p is not None else ''}"
    if p is None or p > CHANCE:
        chance = "one split says nothing of chance" if paired.n == 1 else "this may be chance"
        return f"On test the best setting {'gains nothing' if gain <= 0 else 'seems better'}: {comparison}; {chance}."
    return f"On test the best setting is {'better' if gain > 0 else 'WORSE'} than the default: {comparison}."
