"""Finished runs as data: which there are, what tells them apart, and their numbers in tidy tables."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hist_cache.errors import InputError
from hist_cache.runs import CONFIG, COST, METRICS, Fold
from train.models.variants import TABLE as VARIANTS
from train.report.run_settings import DATA, ORDER, phrase, settings_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class FoldResult:
    """One finished fold, read."""

    fold: Fold
    number: int
    config: dict[str, Any]
    metrics: dict[str, Any]
    cost: dict[str, Any]
    """Empty where the fold has none."""

    @property
    def split(self) -> str:
        return str(self.config["split"]["name"])

    @property
    def tested(self) -> str:
        """The test slides, as one text: what folds of different runs are matched by, beside the split's name."""
        return " ".join(sorted(self.config["split"]["test"]))


@dataclass(frozen=True)
class RunResult:
    """All finished folds of one setting."""

    folder: Path
    folds: tuple[FoldResult, ...]
    unfinished: tuple[str, ...]
    """Folders of folds that were begun only."""
    label: str = ""
    """The shortest that tells it from the others."""
    data_label: str = ""
    """The part of the label that is about data; "" where all runs share theirs."""

    @property
    def config(self) -> dict[str, Any]:
        return self.folds[0].config

    @property
    def variant(self) -> str:
        return str(self.config["variant"]["name"])

    @cached_property
    def settings(self) -> dict[str, Any]:
        return settings_of(self.config)

    def shares(self, other: RunResult, keys: Sequence[str]) -> bool:
        return all(self.settings[k] == other.settings[k] for k in keys)


@dataclass(frozen=True)
class Results:
    """Runs with labels, none of them twice."""

    runs: tuple[RunResult, ...]

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """run, fold, split, tested (slides), n_spots, scope, metric, value; scope is pooled, slide_mean,
        complete_niches or a slide's id."""
        import pandas as pd

        rows = []
        for run, fold in self._folds():
            m = fold.metrics
            scopes = {"pooled": m["pooled"], "slide_mean": m["slide_mean"]} | m["slides"]
            scopes |= {"complete_niches": m["complete_niches"]} if m.get("complete_niches") else {}
            where = (run.label, fold.number, fold.split, fold.tested, m.get("n_spots"))
            rows += [(*where, scope, k, v) for scope, values in scopes.items() for k, v in values.items()]
        return pd.DataFrame(
            rows, columns=["run", "fold", "split", "tested", "n_spots", "scope", "metric", "value"]
        )  # fmt: skip

    @cached_property
    def controls(self) -> pd.DataFrame:
        """run, fold, control (permuted, train_mean, ridge), metric, value; pooled."""
        import pandas as pd

        rows = [
            (run.label, fold.number, control, k, v)
            for run, fold in self._folds()
            for control, values in fold.metrics["controls"].items()
            for k, v in values.items()
        ]
        return pd.DataFrame(rows, columns=["run", "fold", "control", "metric", "value"])

    @cached_property
    def cost(self) -> pd.DataFrame:
        """run, fold, metric (peak_memory_gb, train_s_per_epoch, inference_s), value."""
        import pandas as pd

        rows = [
            (run.label, fold.number, key, fold.cost[key])
            for run, fold in self._folds()
            for key in ("peak_memory_gb", "train_s_per_epoch", "inference_s")
            if key in fold.cost
        ]
        return pd.DataFrame(rows, columns=["run", "fold", "metric", "value"])

    @cached_property
    def incomplete(self) -> list[str]:
        """A sentence for each run with fewer folds than others of the same splits, or with unfinished ones."""
        said = []
        for run in self.runs:
            alike = [r for r in self.runs if run.shares(r, ("dataset", "test_dataset", "split"))]
            every = {fold.number for r in alike for fold in r.folds}
            missing = sorted(every - {fold.number for fold in run.folds})
            if missing:
                names = ", ".join(f"fold{i}" for i in missing)
                said.append(f"{run.label}: {len(run.folds)} of {len(every)} folds ({names} missing)")
            if more := [name for name in run.unfinished if name not in {f"fold{i}" for i in missing}]:
                said.append(f"{run.label}: {', '.join(more)} not finished")
        return said

    def only(self, runs: Iterable[RunResult]) -> Results:
        """Some of the runs, with labels as short as they can be."""
        return Results(tuple(labelled(list(runs))))

    def _folds(self) -> Iterable[tuple[RunResult, FoldResult]]:
        return ((run, fold) for run in self.runs for fold in run.folds)


def read_results(paths: Sequence[str | Path]) -> Results:
    """All finished folds in and below `paths`, in the order of these; below one, by setting, then by variant.

    A path is a run's folder, a dataset's or a whole runs folder. `InputError` where one holds nothing finished.
    """
    runs: dict[Path, RunResult] = {}
    for path in map(Path, paths):
        folders = sorted({file.parent.parent for file in path.glob(f"**/fold*/{METRICS}")})
        if not folders:
            raise InputError(f"{path}: no finished run here (looked for fold*/{METRICS} in it and below)")
        for run in sorted(map(read_run, folders), key=_rank):
            runs.setdefault(run.folder.resolve(), run)
    return Results(tuple(labelled(list(runs.values()))))


def read_run(folder: Path) -> RunResult:
    folders = sorted(
        (p for p in folder.glob("fold*") if p.name[4:].isdecimal() and (p / CONFIG).exists()),
        key=lambda p: int(p.name[4:]),
    )
    done = [p for p in folders if (p / METRICS).exists()]
    unfinished = tuple(p.name for p in folders if p not in done)
    return RunResult(folder, tuple(map(_read_fold, done)), unfinished)


def _read_fold(folder: Path) -> FoldResult:
    fold = Fold(folder)
    config, metrics = fold.config, fold.metrics
    for file, values, needed in (
        (CONFIG, config, ("dataset", "variant", "protocol", "cache", "split", "model", "loop")),
        (METRICS, metrics, ("pooled", "slide_mean", "slides", "controls")),
    ):
        if missing := [key for key in needed if key not in values]:
            raise InputError(
                f"{folder / file}: no {missing[0]!r} in it; it was written by another version, run it anew"
            )
    if not isinstance(config["protocol"], dict):
        raise InputError(
            f"{folder / CONFIG}: 'protocol' is a name alone; it was written by another version, run it anew"
        )
    return FoldResult(fold, int(folder.name[4:]), config, metrics, fold.cost if (folder / COST).exists() else {})


def labelled(runs: list[RunResult]) -> list[RunResult]:
    """With labels: the variant, then each setting that differs among the runs and does not follow from one before."""
    shown: list[str] = []
    for key in dict.fromkeys(k for run in runs for k in run.settings):
        seen: dict[Any, Any] = {}
        for run in runs:
            before = tuple(run.settings.get(k) for k in shown)
            if seen.setdefault(before, run.settings.get(key)) != run.settings.get(key):
                shown.append(key)
                break
    named = [
        replace(
            run,
            label=", ".join([run.variant, *(phrase(k, run.settings.get(k)) for k in shown)]),
            data_label=", ".join(phrase(k, run.settings.get(k)) for k in shown if k in DATA),
        )
        for run in runs
    ]
    count = [run.label for run in named].count
    named = [replace(r, label=f"{r.label}, {r.folder.name[-8:]}") if count(r.label) > 1 else r for r in named]
    count = [run.label for run in named].count
    return [replace(r, label=f"{r.label} ({r.folder})") if count(r.label) > 1 else r for r in named]


def _rank(run: RunResult) -> tuple[Any, ...]:
    variants = list(tomllib.loads(VARIANTS.read_text("utf-8")))
    place = variants.index(run.variant) if run.variant in variants else len(variants)
    keys = [*ORDER, *(k for k in run.settings if k not in ORDER)]
    values = ((type(run.settings[k]).__name__, run.settings[k]) for k in keys)  # runs of all versions compare
    return (*values, place, run.folder)
