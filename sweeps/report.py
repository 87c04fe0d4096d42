"""What a study leaves in its folder: trials.csv, best.json, and report.html with its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from hist_cache.files import atomic_write, write_json, write_text
from hist_cache.fingerprint import provenance
from sweeps import figures
from sweeps.display import in_words, text
from sweeps.final_test import DEFAULT, Final, verdict
from sweeps.study import Plan
from sweeps.trials import best_trial, importance, ranked, trial_table, values_of, work_of
from train.report.figures import Picture, picture
from train.report.page import Section, render
from train.report.paper_tables import cost_table, metrics_table
from train.report.table import HIGHER, LOWER, Cell, Column, Row, Table, number, to_csv

STUDY, TRIALS, BEST, REPORT = "study.json", "trials.csv", "best.json", "report.html"
ON_PAGE = 10  # trials


def write_study(plan: Plan) -> None:
    """What the study is, for people: the storage has it too, and is what counts."""
    space = {p.name: p.as_dict() for p in plan.space}
    write_json(
        plan.folder / STUDY,
        {"study": plan.name, "objective": f"validation {plan.objective}", "space": space, "defaults": plan.defaults}
        | {"settings": plan.settings, "provenance": provenance()},
    )


def write_trials(plan: Plan, trials: Sequence[FrozenTrial]) -> None:
    with atomic_write(plan.folder / TRIALS) as aside:
        trial_table(plan, trials).to_csv(aside, index=False)


def write_best(plan: Plan, trials: Sequence[FrozenTrial], final: Final) -> dict[str, Any]:
    """The best setting with its validation and test values, and the command that runs it."""
    best = best_trial(plan, trials)
    values, work = values_of(plan, best), work_of(plan, trials)
    default = next((t.value for t in ranked(plan, trials) if t.user_attrs.get("default")), None)
    found = {
        "study": plan.name,
        "trial": best.number,
        "values": values,
        "objective": f"validation {plan.objective}",
        "value": best.value,
        "default_value": default,
        "test": {run.label: _pooled(final, i, plan.objective) for i, run in enumerate(final.results.runs)},
        "verdict": verdict(plan, final),
        "warnings": list(final.seen),
        "command": plan.command(values),
        "run": str(final.best),
        "work": vars(work),
    }
    write_json(plan.folder / BEST, found)
    return found


def _pooled(final: Final, run: int, metric: str) -> float:
    values = [fold.metrics["pooled"][metric] for fold in final.results.runs[run].folds]
    return sum(values) / len(values)


def write_report(plan: Plan, study: optuna.Study, final: Final) -> Path:
    """The page, and its figures beside it; returns the page's path."""
    trials = study.get_trials(deepcopy=False)
    best = best_trial(plan, trials)
    values, shares = values_of(plan, best), importance(plan, study)
    test = metrics_table(final.results, list(final.results.runs), reference=None if final.same else DEFAULT)
    default = [t.value for t in ranked(plan, trials) if t.user_attrs.get("default")]
    against = f", the default setting {default[0]:.4f}" if default and default[0] is not None else ""
    metric = plan.objective.upper()
    sections = [
        Section(
            "Best setting",
            f"Trial {best.number}: {in_words(values)}. Validation {metric} {best.value:.4f}{against}. "
            f"{verdict(plan, final)} To run it: {plan.command(values)}",
            [test],
        ),
        Section("Trials", f"{work_of(plan, trials)}.", [trials_table(plan, trials)]),
        Section("What mattered", **_importance(plan, shares)),
        Section("Search", pictures=pictures(plan, trials, list(shares))),
        Section("Memory and time", tables=[cost_table(final.results)]),
    ]
    for table in (table for section in sections for table in section.tables):
        write_text(plan.folder / "tables" / f"{table.name}.csv", to_csv(table))
    page = plan.folder / REPORT
    write_text(page, render(final.results, sections, f"{plan.dataset}: {plan.folder.name}", final.seen))
    return page


def _importance(plan: Plan, shares: Mapping[str, float]) -> dict[str, Any]:
    if not shares:
        return {"text": "Too few trials were run to their end to say what mattered."}
    file = plan.folder / "figures" / "importance.png"
    figures.plot_importance(file, shares)
    told = ", ".join(f"{name} {share:.2f}" for name, share in shares.items())
    caption = "How much of the objective's variance over the trials run to their end each parameter explains (fANOVA)."
    return {"pictures": [picture(file, "Importance", caption, f"Bars of importance: {told}.")]}


def trials_table(plan: Plan, trials: Sequence[FrozenTrial]) -> Table:
    """The best trials, and the default where it is none of them."""
    better = HIGHER if plan.maximize else LOWER
    columns = (
        Column(f"validation {plan.objective.upper()}", better),
        *(Column(p.name.replace("_", " ")) for p in plan.space),
        Column("epochs"),
    )
    order = ranked(plan, trials)
    shown = order[:ON_PAGE] + [t for t in order[ON_PAGE:] if t.user_attrs.get("default")]
    rows = tuple(
        Row(
            f"{t.number}, default" if t.user_attrs.get("default") else str(t.number),
            "run",
            (
                number(t.value, digits=4),
                *(_cell(v) for v in values_of(plan, t).values()),
                number(float(sum(t.user_attrs.get("epochs", ()))), digits=0),
            ),
        )
        for t in shown
    )
    return Table("trials", f"The best {len(shown)} trials", columns, rows, (f"all of them: {TRIALS}",), "trial")


def _cell(value: Any) -> Cell:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return Cell(text(value), float(value) if is_number else None)


def pictures(plan: Plan, trials: Sequence[FrozenTrial], order: Sequence[str]) -> list[Picture]:
    """History, slices and contours; `order` is by importance."""
    folder, metric = plan.folder / "figures", f"validation {plan.objective.upper()}"
    history, slices, contours = (folder / f"{name}.png" for name in ("history", "slices", "contours"))
    figures.plot_history(history, plan, trials)
    figures.plot_slices(slices, plan, trials)
    best = best_trial(plan, trials)
    found = [
        picture(
            history,
            "History",
            "Trials in the order they were begun; the axis leaves out the worst few.",
            f"{metric} by trial; the best is trial {best.number} with {best.value:.4f}.",
        ),
        picture(
            slices,
            "Each parameter",
            "One point a trial that was run to its end, later ones lighter; the best is ringed.",
            f"{metric} over each of {', '.join(p.name for p in plan.space)}.",
        ),
    ]
    names = [*order, *(p.name for p in plan.space if p.name not in order)]
    if count := figures.plot_contours(contours, plan, trials, names):
        found.append(
            picture(
                contours,
                "Pairs of parameters",
                "Interpolated between the trials, which are the points; the best is ringed.",
                f"{metric} over {count} pair{'s' * (count > 1)} of parameters.",
            )
        )
    return found
