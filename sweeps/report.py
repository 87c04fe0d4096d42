"""Files that a study leaves in its folder: trials.csv, best.json, and report.html with its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from hist_cache.files import atomic_write, write_json, write_text
from hist_cache.fingerprint import provenance
from sweeps import figures
from sweeps.display import value_text, values_text
from sweeps.final_test import FinalTest, verdict
from sweeps.study import StudyPlan
from sweeps.trials import best_trial, importance, ranked, study_work, trial_table, values_of
from train.report.figures import Picture, picture
from train.report.page import Section, render
from train.report.paper_tables import cost_table, metrics_table
from train.report.table import HIGHER, LOWER, Cell, Column, Row, Table, number_cell, to_csv

STUDY_FILE, TRIALS_FILE, BEST_FILE, REPORT_FILE = "study.json", "trials.csv", "best.json", "report.html"
TRIALS_ON_PAGE = 10


def write_study(plan: StudyPlan) -> None:
    """Write study.json, which describes the study for people; commands read the storage instead."""
    space = {p.name: p.as_dict() for p in plan.space}
    write_json(
        plan.folder / STUDY_FILE,
        {"study": plan.name, "objective": f"validation {plan.objective}", "space": space, "defaults": plan.defaults}
        | {"settings": plan.settings, "provenance": provenance()},
    )


def write_trials(plan: StudyPlan, trials: Sequence[FrozenTrial]) -> None:
    """Write trials.csv, with one row for each trial."""
    with atomic_write(plan.folder / TRIALS_FILE) as aside:
        trial_table(plan, trials).to_csv(aside, index=False)


def write_best(plan: StudyPlan, trials: Sequence[FrozenTrial], final: FinalTest) -> dict[str, Any]:
    """Write best.json: the best setting with its validation and test values, and the command that runs it.

    Returns:
        What was written.
    """
    best = best_trial(plan, trials)
    values, work = values_of(plan, best), study_work(plan, trials)
    record = {
        "study": plan.name,
        "trial": best.number,
        "values": values,
        "objective": f"validation {plan.objective}",
        "value": best.value,
        "default_value": _default_value(plan, trials),
        "test": {run.label: _pooled(final, i, plan.objective) for i, run in enumerate(final.results.runs)},
        "warnings": list(final.warnings),
        "verdict": verdict(final),
        "command": plan.command(values),
        "run": str(final.best),
        "work": vars(work),
    }
    write_json(plan.folder / BEST_FILE, record)
    return record


def _default_value(plan: StudyPlan, trials: Sequence[FrozenTrial]) -> float | None:
    """Return the objective of the default setting; None where no trial has it, or that trial was pruned."""
    return next((t.value for t in ranked(plan, trials) if t.user_attrs.get("default")), None)


def _pooled(final: FinalTest, run: int, metric: str) -> float:
    """Return the mean over the folds of a run's test metric."""
    values = [fold.metrics["pooled"][metric] for fold in final.results.runs[run].folds]
    return sum(values) / len(values)


def write_study_report(plan: StudyPlan, study: optuna.Study, final: FinalTest) -> Path:
    """Write the page, and its figures and tables beside it; returns the page's path."""
    trials = study.get_trials(deepcopy=False)
    best = best_trial(plan, trials)
    values, shares = values_of(plan, best), importance(plan, study)
    test = metrics_table(final.results, list(final.results.runs), reference=final.reference)
    default = _default_value(plan, trials)
    against = f", the default setting {default:.4f}" if default is not None else ""
    metric = plan.objective.upper()
    warned = [f"Warning: {sentence}. " for sentence in final.warnings]
    sections = [
        Section(
            "Best setting",
            f"Trial {best.number}: {values_text(values)}. Validation {metric} {best.value:.4f}{against}. "
            f"{''.join(warned)}{verdict(final)} To run it: {plan.command(values)}",
            [test],
        ),
        Section("Trials", f"{study_work(plan, trials)}.", [trials_table(plan, trials)]),
        Section("What mattered", **_importance(plan, study, shares)),
        Section("Search", pictures=search_pictures(plan, study, list(shares))),
        Section("Memory and time", tables=[cost_table(final.results)]),
    ]
    for table in (table for section in sections for table in section.tables):
        write_text(plan.folder / "tables" / f"{table.name}.csv", to_csv(table))
    page = plan.folder / REPORT_FILE
    write_text(page, render(final.results, sections, f"{plan.dataset}: {plan.folder.name}", final.warnings))
    return page


def _importance(plan: StudyPlan, study: optuna.Study, shares: Mapping[str, float]) -> dict[str, Any]:
    """Return the importance figure, or a sentence where there is none, as arguments of a `Section`."""
    if not shares:
        return {"text": "Too few trials were run to their end to say what mattered."}
    file = plan.folder / "figures" / "importance.png"
    figures.plot_importance(file, plan, study, list(shares))
    bars = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
    caption = "How much of the objective's variance over the trials run to their end each parameter explains (fANOVA)."
    return {"pictures": [picture(file, "Importance", caption, f"Bars of importance: {bars}.")]}


def trials_table(plan: StudyPlan, trials: Sequence[FrozenTrial]) -> Table:
    """Make a table of the best trials, and of the default setting where it is none of them."""
    better = HIGHER if plan.maximize else LOWER
    columns = (
        Column(f"validation {plan.objective.upper()}", better),
        *(Column(p.name.replace("_", " ")) for p in plan.space),
        Column("epochs"),
    )
    order = ranked(plan, trials)
    listed = order[:TRIALS_ON_PAGE] + [t for t in order[TRIALS_ON_PAGE:] if t.user_attrs.get("default")]
    rows = tuple(
        Row(
            f"{t.number}, default" if t.user_attrs.get("default") else str(t.number),
            "run",
            (
                number_cell(t.value, digits=4),
                *(_cell(v) for v in values_of(plan, t).values()),
                number_cell(float(sum(t.user_attrs.get("epochs", ()))), digits=0),
            ),
        )
        for t in listed
    )
    return Table("trials", f"The best {len(listed)} trials", columns, rows, (f"all of them: {TRIALS_FILE}",), "trial")


def _cell(value: Any) -> Cell:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(value_text(value), float(value) if is_number else None)


def search_pictures(plan: StudyPlan, study: optuna.Study, order: Sequence[str]) -> list[Picture]:
    """Draw history, slices and contours, as far as there are enough trials for them.

    Args:
        plan: The study.
        study: The same study in Optuna.
        order: Names of parameters, the most important ones first.
    """
    folder, metric = plan.folder / "figures", f"validation {plan.objective.upper()}"
    history, slices, contours = (folder / f"{name}.png" for name in ("history", "slices", "contours"))
    figures.plot_history(history, plan, study)
    best = best_trial(plan, study.get_trials(deepcopy=False))
    pictures = [
        picture(
            history,
            "History",
            "One point for each trial that was run to its end, in the order in which the trials were begun. The line "
            "is the best value so far, the dashed one the default setting, where a trial has it.",
            f"{metric} by trial; the best is trial {best.number} with {best.value:.4f}.",
        )
    ]
    if names := figures.plot_slices(slices, plan, study):
        pictures.append(
            picture(
                slices,
                "Each parameter",
                "One point for each trial that was run to its end; later ones are darker. Parameters that took one "
                "value are left out.",
                f"{metric} over each of {', '.join(names)}.",
            )
        )
    order = [*order, *(p.name for p in plan.space if p.name not in order)]
    if names := figures.plot_contours(contours, plan, study, order):
        pictures.append(
            picture(
                contours,
                "Pairs of parameters",
                "The colours are interpolated between the trials, which are the points; darker is better.",
                f"{metric} over pairs of {', '.join(names)}.",
            )
        )
    return pictures
