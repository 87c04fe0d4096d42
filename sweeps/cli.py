"""hist-sweep: search settings by their validation metrics, test the best one once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from hist_cache.console import out, say, warn
from hist_cache.devices import choose_device
from hist_cache.engine import check_engine, open_engine
from hist_cache.errors import HistError, InputError, keeping
from hist_cache.options import parse, run
from sweeps.options import SweepOptions

if TYPE_CHECKING:
    import torch

    from hist_cache.engine import Engine, Workers
    from sweeps.storage import StudyStorage
    from sweeps.study import StudyPlan
    from train.workspace import Workspace

DESCRIPTION = """Search hyperparameters with Optuna over phase two. Every option of hist-train is accepted and holds for
all trials. Trials are judged on validation slides; at the end the best setting and the default one are trained on all
folds and tested. The same command goes on with a study that was stopped, and a larger --trials adds to one."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = parse(SweepOptions, "hist-sweep", DESCRIPTION, argv)
    return run(sweep, options, options.debug)


def sweep(options: SweepOptions) -> int:
    """Run the command; returns the exit code."""
    from sweeps.opening import check_storage, open_study
    from sweeps.report import write_study
    from sweeps.workers import prepare
    from train.experiments.announcements import (
        announce_crops,
        announce_leaks,
        announce_splits,
        check_finetuning,
        check_may_write,
        check_study_leaks,
    )
    from train.experiments.grid import with_table
    from train.experiments.runner import fold_workers

    device = choose_device(options.device)
    check_options(options)
    options = with_table(options)
    check_finetuning(options)
    plan, workspace = prepare(options)
    jobs = plan.jobs(workspace, {})
    check_study_leaks(jobs, options, workspace)
    announce_leaks([*jobs, *plan.final_jobs(workspace, {})], options, workspace)
    announce_crops(jobs, workspace)
    announce_splits(jobs, workspace)
    workspace.check()  # now, not when the search is over and the test slides are read
    say_plan(plan)
    if options.dry_run:
        check_storage(plan)
        check_may_write(plan.folder)
        return 0
    workspace.keep_panels()
    storage = open_study(plan, must_exist=options.resume)
    try:
        with keeping(lambda: f"{options.trials - missing(plan, storage)} of {options.trials} trials"):
            write_study(plan)
            left = missing(plan, storage)
            with open_engine(options) as engine:
                workers = fold_workers(engine, options.jobs, left, device, options.device)
                search(plan, storage, workspace, workers, left)
                workspace.keep_tensors(1)  # those of the trials are not needed any more
                conclude(plan, storage, workspace, device, engine)
    finally:
        storage.close()
    return 0


def check_options(options: SweepOptions) -> None:
    """`InputError` for options that a study cannot have."""
    check_engine(options)
    if options.lora:
        raise InputError(
            f"--lora {options.lora}: hist-sweep searches on one cache; search on that of the plain encoder, or of one "
            "adapter (hist-extract --lora FOLD, then --encoder with the name of its folder, and --folds 1)"
        )
    if options.logger:
        raise InputError(
            f"--logger {options.logger}: is for hist-train; hist-train --logger logs finished runs too, and "
            "optuna-dashboard shows a study"
        )
    if options.finetune_lora:
        raise InputError(
            "--finetune-lora: hist-sweep searches on the cache; search there, then hist-train --finetune-lora with "
            "the setting it finds"
        )


def say_plan(plan: StudyPlan) -> None:
    """Print what is searched, the metric that judges it, and where the study is kept."""
    for p in plan.space:
        if p.choices:
            values = f"one of {', '.join(map(str, p.choices))}"
        else:
            values = f"{p.low:g} to {p.high:g}" + (" (log)" if p.log else "")
        say(f"search {p.name.replace('_', ' ')}: {values}; default {plan.defaults[p.name]}")
    best = "highest" if plan.maximize else "lowest"
    say(f"study {plan.name}: {best} validation {plan.objective}, pruner {plan.options.pruner}; {plan.folder}")
    if not plan.default_is_in_space:
        warn("the default setting lies outside of what is searched, and is none of the trials")
    if any(p.name in ("n_genes", "transform") for p in plan.space):
        warn(f"trials predict different genes: their {plan.objective} is compared all the same")


def missing(plan: StudyPlan, storage: StudyStorage) -> int:
    """How many finished trials the study still lacks."""
    from sweeps.storage import FINISHED

    finished = len(storage.study.get_trials(deepcopy=False, states=FINISHED))
    return max(plan.options.trials - finished, 0)


def search(plan: StudyPlan, storage: StudyStorage, workspace: Workspace, workers: Workers, left: int) -> None:
    """Run the missing trials and show their progress.

    Args:
        plan: The study.
        storage: Where it is kept.
        workspace: The cached slides.
        workers: Who runs them.
        left: How many trials are missing.

    Raises:
        HistError: Trials are still missing, because no worker is left.
    """
    from sweeps.display import study_display
    from sweeps.report import write_trials
    from sweeps.waiting import StorageLost
    from sweeps.workers import run_trials, run_trials_with

    finished = plan.options.trials - left
    if not left:
        say(f"the study has {finished} trials or more: nothing to search, --trials N adds to it")
        return
    before = f", {finished} done before" if finished else ""
    say(f"{left} trials{before}; on {workers}")
    problems: list[HistError] = []
    try:
        with study_display(plan, storage) as display:
            if workers.are_here:
                run_trials(plan, storage, workspace, workers.device, display.tick)
            else:
                problems = run_trials_with(workers, plan, display.tick)
    finally:
        with suppress(StorageLost):  # whatever ends the search says so itself
            if (trials := storage.peek()) is not None:
                write_trials(plan, trials)
    still = missing(plan, storage)
    for problem in problems:
        if still:
            raise problem
        warn(f"a worker failed, others ran its trials: {problem}")
    if still:
        raise HistError(f"{still} trials are missing: no worker is left, was it killed? The same command goes on")


def conclude(
    plan: StudyPlan, storage: StudyStorage, workspace: Workspace, device: torch.device, engine: Engine
) -> None:
    """Test the best setting beside the default, then print and write the results."""
    from sweeps.display import best_table
    from sweeps.final_test import test_best
    from sweeps.report import write_best, write_study_report, write_trials
    from sweeps.trials import best_trial, importance, study_work, values_of
    from train.report.paper_tables import metrics_table
    from train.report.terminal import to_rich

    trials = storage.study.get_trials(deepcopy=False)
    values = values_of(plan, best_trial(plan, trials))
    final = test_best(plan, workspace, values, device, engine)
    write_trials(plan, trials)
    best = write_best(plan, trials, final)
    page = write_study_report(plan, storage.study, final)
    for sentence in final.warnings:  # before any number that they are about
        warn(sentence)
    out.print(best_table(plan, trials, f"The best trials by validation {plan.objective}"))
    out.print(to_rich(metrics_table(final.results, list(final.results.runs), reference=final.reference)))
    say(f"{study_work(plan, trials)}")
    if shares := importance(plan, storage.study):
        say("importance: " + ", ".join(f"{name.replace('_', ' ')} {share:.2f}" for name, share in shares.items()))
    say(best["verdict"])
    say(f"the best setting: {best['command']}")
    say(f"{page}: history, importance, slices, contours; beside it trials.csv and best.json")
