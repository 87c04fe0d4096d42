"""What reviewers of such studies ask for, and whether each run has it, with the evidence in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hist_cache.datasets import patient_names
from hist_cache.panels import DEFAULT_SIZE
from hist_cache.splits import shared_patients
from train.models.registry import get_model
from train.report.against_ridge import label_without_seed, seed_groups
from train.report.baseline_rows import RIDGE, RIDGE_TUNED
from train.report.fold_result import FoldResult
from train.report.results import Results, RunResult
from train.report.significance import compare, references
from train.report.table import Cell, Column, Row, Table

State = Literal["yes", "no", "unknown"]
SEEDS_ASKED = 3
CHECKLIST_COLUMNS = (Column("fulfilled"), Column("runs"), Column("evidence"))
NOTE_OF_STATES = "unknown: the files of the run do not say; no: the run does not have it, or it was not asked for"


@dataclass(frozen=True)
class Answer:
    """Whether a run has what is asked for."""

    state: State
    evidence: str


def answers(run: RunResult, results: Results, against: str | None, has_pathways: bool) -> dict[str, Answer]:
    """All that is asked for, in order, with the run's answers.

    Args:
        run: one of the results.
        results: all runs shown.
        against: method or label of the run that the others are tested against (default: full).
        has_pathways: whether the report has scores of gene sets.
    """
    return {
        "split by patient": patient_split(run),
        "external cohort": external_cohort(run),
        "gene panel from train slides": panel_from_train(run),
        "no test slide used for selection": selection(run),
        "PCC pooled and per slide": both_correlations(run),
        "tuned ridge with the same inputs": tuned_ridge(run),
        f"{SEEDS_ASKED} seeds at least": seeds(run, results.runs),
        "relative measures": relative_measures(run),
        "pathway scores": gene_set_scores(has_pathways),
        "p-values corrected for their number": corrected_tests(run, results, against),
    }


def checklist_table(results: Results, against: str | None = None, has_pathways: bool = False) -> Table:
    """What is asked for, an answer a row; runs with the same answer share one.

    Args:
        results: the runs.
        against: method or label of the run that the others are tested against (default: full).
        has_pathways: whether the report has scores of gene sets.
    """
    by_run = {run.label: answers(run, results, against, has_pathways) for run in results.runs}
    groups = seed_groups(results.runs)
    rows = []
    for asked in next(iter(by_run.values())):
        labels: dict[Answer, list[str]] = {}
        for label, given in by_run.items():
            labels.setdefault(given[asked], []).append(label)
        for answer, of_answer in labels.items():
            who = "all runs" if len(of_answer) == len(by_run) else "; ".join(_without_seeds(of_answer, groups))
            rows.append(Row(asked, "run", (Cell(answer.state), Cell(who), Cell(answer.evidence))))
    title = "Which runs have it"
    return Table("checklist", title, CHECKLIST_COLUMNS, tuple(rows), (NOTE_OF_STATES,), "asked for")


def _without_seeds(labels: Sequence[str], groups: Sequence[Sequence[RunResult]]) -> list[str]:
    """The labels, with one in place of those of a group of runs that differ in the seed alone, where all are there."""
    names = {label: label for label in labels}
    for group in groups:
        if all(run.label in names for run in group):
            names |= {run.label: f"{label_without_seed(group[0])}, {len(group)} seeds" for run in group}
    return list(dict.fromkeys(names.values()))


def patient_split(run: RunResult) -> Answer:
    """Whether no fold has a patient both in test and in train or validation."""
    if run.is_within:
        return Answer("no", "the same slides are trained on and tested, in parts (--split patient avoids it)")
    shared: dict[str, list[int]] = {}
    unknown: set[str] = set()
    for fold in run.folds:
        patients = fold_patients(run, fold)
        unknown |= set(fold.split.ids) - set(patients)
        for patient in shared_patients(fold.split, patients):
            shared.setdefault(patient, []).append(fold.number)
    if shared:
        texts = [f"{name} in fold{'s' * (len(folds) > 1)} {_listed(folds)}" for name, folds in shared.items()]
        return Answer("no", f"both in test and in train or validation: {', '.join(texts)}")
    if unknown:
        return Answer("unknown", f"the patients of {_listed(sorted(unknown))} are not listed")
    n = len(run.folds)
    return Answer("yes", f"no patient of a test slide is in train or validation, in {_all_folds(n)}")


def fold_patients(run: RunResult, fold: FoldResult) -> Mapping[str, str]:
    """Slide -> patient, by names that can be compared between datasets; slides of unknown patients are left out."""
    setting, split = run.setting, fold.split
    own = {slide: fold.patients.get(slide) for slide in split.train + split.val}
    tested = {slide: fold.patients.get(slide) for slide in split.test}
    return patient_names(setting.dataset, own) | patient_names(setting.test_dataset or setting.dataset, tested)


def external_cohort(run: RunResult) -> Answer:
    """Whether another dataset is tested than the one trained on."""
    setting = run.setting
    if setting.test_dataset:
        return Answer("yes", f"trained on {setting.dataset}, tested on {setting.test_dataset}")
    return Answer("no", f"trained and tested on slides of {setting.dataset} (--test-dataset tests on another)")


def panel_from_train(run: RunResult) -> Answer:
    """Whether the genes were chosen without the test slides."""
    setting = run.setting
    if setting.genes not in DEFAULT_SIZE:
        return Answer("unknown", "the genes are those of a file, which does not say on what they were chosen")
    if setting.protocol.panel_from == "train":
        return Answer("yes", "each fold's genes were chosen on its train slides")
    return Answer("no", "the genes were chosen on all slides, the test slides among them (--panel-from train)")


def selection(run: RunResult) -> Answer:
    """Whether the test slides had no part in choosing anything; the training loop never sees them."""
    if run.leaks:
        return Answer("no", "the adapter of the embeddings has seen test slides")
    epoch = ""
    if get_model(run.model).learns:
        epoch = "the last epoch is tested, " if run.setting.protocol.tested == "last" else "the epoch and all "
    return Answer("yes", f"{epoch}penalties are chosen on validation slides; test slides are predicted after training")


def both_correlations(run: RunResult) -> Answer:
    """Whether PCC is reported over all test spots and slide by slide, which is always so."""
    n = len({slide for fold in run.folds for slide in fold.metrics["slides"]})
    return Answer("yes", f"over all test spots of a fold, and for each of {n} test slides by itself")


def tuned_ridge(run: RunResult) -> Answer:
    """Whether all folds have ridge on the inputs and targets of the model."""
    if run.model == RIDGE:
        return Answer("yes", "it is ridge itself")
    if all(RIDGE_TUNED in fold.metrics["controls"] for fold in run.folds):
        return Answer("yes", "ridge on the same inputs and targets, its penalty chosen by the same rule, in all folds")
    return Answer("no", "beside it is only ridge on 256 principal components of the cached embeddings")


def seeds(run: RunResult, runs: Sequence[RunResult]) -> Answer:
    """Whether the setting was run under enough seeds, all of them among the runs shown."""
    group = next((group for group in seed_groups(runs) if run.setting in [one.setting for one in group]), [run])
    numbers = sorted({other.setting.fit.seed for other in group})
    state: State = "yes" if len(numbers) >= SEEDS_ASKED else "no"
    return Answer(state, f"{len(numbers)} seed{'s' * (len(numbers) > 1)} among the runs shown: {_listed(numbers)}")


def relative_measures(run: RunResult) -> Answer:
    """Whether all folds have rank correlations, which depend on no level or scale."""
    if all(fold.metrics.get("ranks") for fold in run.folds):
        return Answer("yes", "Spearman's rank correlations are in metrics.json of all folds")
    return Answer("no", "the folds have no rank correlations; run them anew")


def gene_set_scores(has_pathways: bool) -> Answer:
    """Whether the report compares scores of gene sets."""
    return (
        Answer("yes", "gene sets were given") if has_pathways else Answer("no", "no gene sets were given (--pathways)")
    )


def corrected_tests(run: RunResult, results: Results, against: str | None) -> Answer:
    """Whether the run is in a test whose p-value is corrected for the number of tests."""
    chosen = references(results, against)
    pairs = [(one, chosen[one.label]) for one in results.runs if one.label in chosen]
    own = [pair for pair in pairs if run in pair]
    metrics = run.folds[0].metrics["pooled"]
    tested = any(compare(results, *pair, metric).p_t is not None for pair in own for metric in metrics)
    if not tested:
        return Answer("no", "there is no test of it: no run to compare with, or fewer than two folds in common")
    return Answer("yes", "the table of significance corrects the p-values of all its tests by Holm's method")


def _listed(values: Sequence[object], most: int = 6) -> str:
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return f"{', '.join(str(value) for value in values[:most])}{more}"


def _all_folds(n: int) -> str:
    return "its one fold" if n == 1 else f"all {n} folds"
