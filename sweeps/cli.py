"""hist-sweep: search settings by their validation metrics, test the best one once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hist_cache.console import out, say, warn
from hist_cache.errors import HistError, InputError
from hist_cache.options import parse, run
from sweeps.options import Config

if TYPE_CHECKING:
    import torch

    from sweeps.storage import Place
    from sweeps.study import Plan
    from train.workspace import Workspace

DESCRIPTION = """Search hyperparameters with Optuna over phase two. Every option of hist-train is accepted and holds for
all trials. Trials are judged on validation slides; at the end the best setting and the default one are trained on all
folds and tested. The same command goes on with a study that was stopped, and a larger --trials adds to one."""


def main(argv: Sequence[str] | None = None) -> int:
    config = parse(Config, "hist-sweep", DESCRIPTION, argv)
    return run(sweep, config, config.debug)


def sweep(config: Config) -> int:
    """Run the command; returns the exit code."""
    import torch

    from sweeps.report import write_study
    from sweeps.storage import open_place
    from sweeps.workers import prepare
    from train.cli import check_tuning
    from train.experiments.executor import default_workers
    from train.experiments.grid import table_options
    from train.experiments.runner import say_crops, say_splits

    check(config)
    if config.table is not None:
        given = table_options(config.table, vars(config), vars(Config()))
        config = dataclasses.replace(config, **given, table=None)
    check_tuning(config)
    plan, workspace = prepare(config)
    jobs = plan.jobs(workspace, {})
    say_crops(jobs, workspace)
    say_splits(jobs, workspace.patients)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    say_plan(plan)
    if config.dry_run:
        return 0
    place = open_place(plan, must_exist=config.resume)
    try:
        write_study(plan)
        left = missing(plan, place)
        workers = min(config.jobs or default_workers(left, device), max(left, 1))
        search(plan, place, workspace, device, workers, left)
        conclude(plan, place, workspace, device)
    finally:
        place.close()
    return 0


def check(config: Config) -> None:
    for name in ("trials", "jobs"):
        if getattr(config, name) is not None and getattr(config, name) < 1:
            raise InputError(f"--{name} {getattr(config, name)}: must be above 0")
    if config.finetune_lora:
        raise InputError(
            "--finetune-lora: hist-sweep searches on the cache; search there, then hist-train --finetune-lora with "
            "the setting it finds"
        )


def say_plan(plan: Plan) -> None:
    """What is searched, by what it is judged, and where it is kept."""
    for p in plan.space:
        if p.choices:
            what = f"one of {', '.join(map(str, p.choices))}"
        else:
            what = f"{p.low:g} to {p.high:g}" + (" (log)" if p.log else "")
        say(f"search {p.name.replace('_', ' ')}: {what}; default {plan.defaults[p.name]}")
    best = "highest" if plan.maximize else "lowest"
    say(f"study {plan.name}: {best} validation {plan.objective}, pruner {plan.config.pruner}; {plan.folder}")
    if not plan.default_is_in_space:
        warn("the default setting lies outside of what is searched, and is none of the trials")
    if any(p.name in ("n_genes", "transform") for p in plan.space):
        warn(f"trials predict different genes: their {plan.objective} is compared all the same")


def missing(plan: Plan, place: Place) -> int:
    """Finished trials that the study lacks."""
    from sweeps.storage import FINISHED

    finished = len(place.study.get_trials(deepcopy=False, states=FINISHED))
    return max(plan.config.trials - finished, 0)


def search(plan: Plan, place: Place, workspace: Workspace, device: torch.device, workers: int, left: int) -> None:
    """Run the trials that are missing, with what comes of them shown."""
    from sweeps.display import board
    from sweeps.report import write_trials
    from sweeps.workers import work, work_in_processes

    there = plan.config.trials - left
    if not left:
        say(f"the study has {there} trials or more: nothing to search, --trials N adds to it")
        return
    kept = f", {there} done before" if there else ""
    say(f"{left} trials{kept}; on {'the GPU' if device.type == 'cuda' else 'the CPU'}, {workers} at once")
    try:
        with board(plan, place) as shown:
            if workers == 1:
                work(plan, place, workspace, device, shown.tick)
            else:
                work_in_processes(plan.config, device, workers, shown.tick)
    finally:
        write_trials(plan, place.study.get_trials(deepcopy=False))
    if still := missing(plan, place):
        raise HistError(f"{still} trials are missing: no worker is left, was it killed? The same command goes on")


def conclude(plan: Plan, place: Place, workspace: Workspace, device: torch.device) -> None:
    """Test the best setting beside the default, and show and write what was found."""
    from sweeps.display import best_table
    from sweeps.final_test import test_best
    from sweeps.report import write_best, write_report, write_trials
    from sweeps.trials import best_trial, importance, values_of, work_of
    from train.report.paper_tables import metrics_table
    from train.report.table import to_rich

    trials = place.study.get_trials(deepcopy=False)
    values = values_of(plan, best_trial(plan, trials))
    final = test_best(plan, workspace, values, device)
    write_trials(plan, trials)
    found = write_best(plan, trials, final)
    page = write_report(plan, place.study, final)
    out.print(best_table(plan, trials, f"The best trials by validation {plan.objective}"))
    out.print(
        to_rich(metrics_table(final.results, list(final.results.runs), reference=None if final.same else "default"))
    )
    say(f"{work_of(plan, trials)}")
    if shares := importance(plan, place.study):
        say("importance: " + ", ".join(f"{name.replace('_', ' ')} {share:.2f}" for name, share in shares.items()))
    say(found["verdict"])
    for sentence in final.seen:
        warn(sentence)
    say(f"the best setting: {found['command']}")
    say(f"{page}: history, importance, slices, contours; beside it trials.csv and best.json")
