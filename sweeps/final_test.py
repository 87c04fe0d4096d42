"""After the search: the best setting and the default one, trained on all folds and tested as hist-train does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from hist_cache.console import fail, say
from hist_cache.errors import HistError
from hist_cache.runs import Run
from sweeps.study import Plan
from train.cli import run_with_progress
from train.experiments.executor import default_workers
from train.experiments.fold import write_summary
from train.experiments.jobs import Job
from train.report.results import Results, read_results
from train.report.significance import compare
from train.workspace import Workspace

BEST, DEFAULT = "best", "default"
CHANCE = 0.05  # p above which a difference may be chance


@dataclass(frozen=True)
class Final:
    """The runs of the best and the default setting; one where they are the same."""

    results: Results
    best: Path
    """Folder of the best setting's run."""
    seen: tuple[str, ...]
    """What of the test slides the search has seen, a sentence each."""

    @property
    def same(self) -> bool:
        return len(self.results.runs) == 1


def test_best(plan: Plan, workspace: Workspace, values: Mapping[str, Any], device: torch.device) -> Final:
    """Train and test what is not done yet, in ordinary run folders. `HistError` where a fold failed."""
    best, default = plan.final_jobs(workspace, values), plan.final_jobs(workspace, {})
    jobs = list({job.folder: job for job in (*best, *default)}.values())
    with FileLock(plan.folder / ".test.lock"):  # another command of this study may have come to its end too
        left = [job for job in jobs if not job.done]
        if left:
            say(f"testing the best setting beside the default: {len(left)} folds")
        workers = min(plan.config.jobs or default_workers(len(left), device), max(len(left), 1))
        failed = run_with_progress(left, workspace, device, workers, None)
        for _, error in failed:
            fail(str(error))
        if failed:
            raise HistError(f"{len(failed)} folds of the test failed; the same command goes on")
        folders = [jobs[0].folder.parent for jobs in (best, default)]
        for folder in dict.fromkeys(folders):
            if Run(folder).folds:
                write_summary(folder)
    return Final(named_results(folders), folders[0], tuple(seen_by_trials(plan.jobs(workspace, values), best)))


def named_results(folders: Sequence[Path]) -> Results:
    """The runs in these folders, called best and default rather than by their settings."""
    results = read_results(folders)
    names = (BEST, DEFAULT) if len(results.runs) == 2 else ("best, which is the default",)
    return Results(tuple(replace(run, label=name) for run, name in zip(results.runs, names, strict=True)))


def seen_by_trials(trials: Sequence[Job], final: Sequence[Job]) -> list[str]:
    """Which test slides the trials trained or validated on, in other folds than their own; empty where none."""
    used = {s for job in trials for s in job.split.train + job.split.val}
    folds = [job.fold for job in final if used.intersection(job.split.test)]
    if not folds:
        return []
    which = f"fold{'s' * (len(folds) > 1)} {', '.join(map(str, folds))}"
    return [
        f"{which}: test slides of these train or validate in other folds of the search, so that the setting was chosen "
        "with them in view, and its gain over the default may be optimistic"
    ]


def verdict(plan: Plan, final: Final) -> str:
    """The best setting against the default on test, in a sentence."""
    if final.same:
        return "The search found nothing better than the default setting."
    best, default = final.results.runs
    found = compare(final.results, best, default, plan.objective)
    if found.n == 0 or found.difference is None:
        return f"On test the two cannot be compared by {plan.objective.upper()}."
    gain = found.difference if plan.maximize else -found.difference
    p = found.p_t
    told = f"{found.difference:+.4f} {plan.objective.upper()} against the default over {found.n} test split"
    told += f"{'s' * (found.n > 1)}{f', p = {p:.3f}' if p is not None else ''}"
    if p is None or p > CHANCE:
        chance = "one split says nothing of chance" if found.n == 1 else "this may be chance"
        return f"On test the best setting {'gains nothing' if gain <= 0 else 'seems better'}: {told}; {chance}."
    return f"On test the best setting is {'better' if gain > 0 else 'WORSE'} than the default: {told}."
