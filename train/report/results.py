"""Finished runs as data: how their labels tell them apart, and their numbers in tidy tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hist_cache.fingerprint import is_tuned
from train.experiments.setting import Setting
from train.leaks import leak_sentences
from train.metrics import MIN_SPOTS
from train.models.registry import get_model
from train.report.fold_result import FoldResult
from train.report.run_settings import DATA, model_settings, phrase, settings_of
from train.report.table import CENTERED_MSE

if TYPE_CHECKING:
    import pandas as pd

COST_KEYS = ("peak_memory_gb", "train_s_per_epoch", "inference_s", "numbers_m")


@dataclass(frozen=True)
class RunResult:
    """All finished folds of one setting."""

    folder: Path
    folds: tuple[FoldResult, ...]
    unfinished: tuple[str, ...]
    """Folders of folds that were started and not finished."""
    label: str = ""
    """The shortest text that tells the run from the others."""
    data_label: str = ""
    """The part of the label that is about data; "" where all runs share theirs."""
    seeds: tuple[RunResult, ...] = ()
    """The runs of several seeds whose means this one has; () where it is one run."""

    @property
    def setting(self) -> Setting:
        """The setting that all folds share; folds of version 0.1 do not know the digests of their slides."""
        return next((fold.setting for fold in self.folds if fold.setting.digests), self.folds[0].setting)

    @property
    def model(self) -> str:
        """Name of the model: `hist`, `ridge`."""
        return self.setting.model_name

    @property
    def variant(self) -> str | None:
        """Name of the variant of HiST; None for other models, which have none."""
        return self.setting.variant.name if self.setting.variant else None

    @property
    def method(self) -> str:
        """What labels begin with and references are named by: the variant of HiST, or the name of another model."""
        return self.setting.method

    @property
    def is_within(self) -> bool:
        """Whether parts of the same slides were trained on and tested."""
        return self.setting.is_within

    @property
    def is_tuned(self) -> bool:
        """Whether its embeddings are of an encoder that was fine-tuned before."""
        return is_tuned(self.setting.cache)

    @cached_property
    def leaks(self) -> list[str]:
        """What the adapter of its embeddings has seen of its test slides: `folds 1, 2 tests S1, which ...`."""
        return leak_sentences((fold.number, fold.leak) for fold in self.folds)

    @property
    def marks(self) -> list[str]:
        """What its label always says, so that no table leaves it out."""
        seeds = [f"mean of {len(self.seeds)} seeds"] if self.seeds else []
        return [*seeds, *["tuned cache"] * self.is_tuned, *["LEAK"] * bool(self.leaks), *self._divergence()]

    def _divergence(self) -> list[str]:
        """`diverged`, or `diverged in fold 1`, where it did."""
        folds = [str(fold.number) for fold in self.folds if fold.diverged]
        where = f" in fold{'s' * (len(folds) > 1)} {', '.join(folds)}" if len(folds) < len(self.folds) else ""
        return [f"diverged{where}"] if folds else []

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All settings but the method, by name."""
        if not self.seeds:
            return settings_of(self.setting)
        numbers = ", ".join(str(run.setting.fit.seed) for run in self.seeds)
        drawn = (run.setting.split_seed for run in self.seeds)  # None of the run whose own seed drew them for all
        split_seed = next((seed for seed in drawn if seed is not None), None)
        return settings_of(self.setting) | {"seed": f"seeds {numbers}", "split_seed": split_seed}

    @property
    def splits(self) -> tuple[Any, ...]:
        """What runs have in common that should have the same folds."""
        return tuple(self.settings.get(key) for key in ("dataset", "test_dataset", "split"))

    def shares(self, other: RunResult, keys: Sequence[str]) -> bool:
        """Whether two runs have the same values of these settings."""
        return all(self.settings.get(k) == other.settings.get(k) for k in keys)


@dataclass(frozen=True)
class Results:
    """Runs with labels, none of them twice."""

    runs: tuple[RunResult, ...]

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """A metric of a fold a row: run, fold, split, test_slides, n_spots, scope, metric, value.

        The scope is pooled, slide_mean, complete_niches or a slide's id. Pooled has `CENTERED_MSE` where it is known.
        """
        import pandas as pd

        rows = []
        for run, fold in self._folds():
            m = fold.metrics
            centered = {CENTERED_MSE: m["centered"]["mse"]} if "mse" in m.get("centered", {}) else {}
            scopes = {"pooled": m["pooled"] | centered, "slide_mean": m["slide_mean"]} | m["slides"]
            scopes |= {"complete_niches": m["complete_niches"]} if m.get("complete_niches") else {}
            fold_columns = (run.label, fold.number, fold.split.name, fold.test_slides, m.get("n_spots"))
            rows += [(*fold_columns, scope, k, v) for scope, values in scopes.items() for k, v in values.items()]
        names = ["run", "fold", "split", "test_slides", "n_spots", "scope", "metric", "value"]
        return pd.DataFrame(rows, columns=names)

    @cached_property
    def baselines(self) -> pd.DataFrame:
        """A pooled metric of a fold's baseline a row: run, fold, baseline (such as `ridge`), metric, value.

        A baseline has `CENTERED_MSE` where all folds of the run know it.
        """
        import pandas as pd

        rows = [
            (run.label, fold.number, baseline, k, v)
            for run in self.runs
            for fold in run.folds
            for baseline, values in fold.metrics["controls"].items()
            for k, v in (values | _centered_control(run, fold, baseline)).items()
        ]
        return pd.DataFrame(rows, columns=["run", "fold", "baseline", "metric", "value"])

    @cached_property
    def cost(self) -> pd.DataFrame:
        """One of `COST_KEYS` of a fold a row: run, fold, metric, value; what a fold does not have is left out."""
        import pandas as pd

        rows = [
            (run.label, fold.number, key, fold.cost[key])
            for run, fold in self._folds()
            for key in COST_KEYS
            if fold.cost.get(key) is not None
        ]
        return pd.DataFrame(rows, columns=["run", "fold", "metric", "value"])

    @cached_property
    def incomplete(self) -> list[str]:
        """A sentence for each run with fewer folds than others of the same splits, or with unfinished ones."""
        sentences = []
        folds_by_split: dict[tuple[Any, ...], set[int]] = {}
        for run in self.runs:
            folds_by_split.setdefault(run.splits, set()).update(fold.number for fold in run.folds)
        for run in self.runs:
            every = folds_by_split[run.splits]
            missing = sorted(every - {fold.number for fold in run.folds})
            if missing:
                names = ", ".join(f"fold{i}" for i in missing)
                sentences.append(f"{run.label}: {len(run.folds)} of {len(every)} folds ({names} missing)")
            if more := [name for name in run.unfinished if name not in {f"fold{i}" for i in missing}]:
                sentences.append(f"{run.label}: {', '.join(more)} not finished")
        return sentences

    @cached_property
    def meaningless(self) -> list[str]:
        """A sentence for each run with a PCC that means nothing: of too few spots, or of constant genes."""
        sentences = []
        for run in self.runs:
            few = {s: n for fold in run.folds for s, n in fold.metrics.get("spots", {}).items() if n < MIN_SPOTS}
            if few:
                spots = ", ".join(f"{slide} has {n} spot{'s' * (n > 1)}" for slide, n in few.items())
                sentences.append(f"{run.label}: no PCC where there are fewer than {MIN_SPOTS} test spots: {spots}")
            undefined = {fold.number: fold.metrics.get("n_undefined_genes", 0) for fold in run.folds}
            if text := ", ".join(f"{n} of {run.setting.n_genes} in fold {i}" for i, n in undefined.items() if n):
                sentences.append(
                    f"{run.label}: genes without a PCC (constant in truth or prediction), counted as 0: {text}"
                )
        return sentences

    def fold_values(self, label: str, metric: str, scope: str) -> dict[int, float]:
        """A metric of each fold of a run, by number of the fold; {} where it has none."""
        return self._fold_values.get((label, metric, scope), {})

    @cached_property
    def _fold_values(self) -> dict[tuple[str, str, str], dict[int, float]]:
        """All of `metrics`, by label of the run, metric and scope."""
        found: dict[tuple[str, str, str], dict[int, float]] = {}
        table = self.metrics
        columns = (table[name].tolist() for name in ("run", "fold", "scope", "metric", "value"))
        for label, fold, scope, metric, value in zip(*columns, strict=True):
            found.setdefault((label, metric, scope), {})[fold] = value
        return found

    def subset(self, runs: Iterable[RunResult]) -> Results:
        """Some of the runs, with labels as short as they can be."""
        return Results(tuple(with_labels(list(runs))))

    def _folds(self) -> Iterable[tuple[RunResult, FoldResult]]:
        return ((run, fold) for run in self.runs for fold in run.folds)


def _centered_control(run: RunResult, fold: FoldResult, baseline: str) -> dict[str, float]:
    """The centred MSE of a fold's baseline; {} where a fold of the run does not know it, so that no mean is of some."""
    found = [f.metrics.get("controls_centered", {}).get(baseline, {}) for f in (fold, *run.folds)]
    return {CENTERED_MSE: found[0]["mse"]} if all("mse" in values for values in found) else {}


def with_labels(runs: list[RunResult]) -> list[RunResult]:
    """The runs with labels: the method, their marks, then each setting that differs and does not follow from others."""
    keys = _keys_by_model(runs)
    visible = _differing_settings(runs, keys)
    labelled = []
    for run in runs:
        phrases = {k: phrase(k, run.settings.get(k)) for k in visible if k in keys[run.model]}
        data_label = ", ".join(text for k, text in phrases.items() if k in DATA)
        if run.is_tuned:
            phrases.pop("lora_layers", None)  # the mark says it
        labelled.append(
            replace(run, label=", ".join([run.method, *run.marks, *phrases.values()]), data_label=data_label)
        )
    count = [run.label for run in labelled].count
    labelled = [replace(r, label=f"{r.label}, {r.folder.name[-8:]}") if count(r.label) > 1 else r for r in labelled]
    count = [run.label for run in labelled].count
    return [replace(r, label=f"{r.label} ({r.folder})") if count(r.label) > 1 else r for r in labelled]


def _keys_by_model(runs: list[RunResult]) -> dict[str, set[str]]:
    keys: dict[str, set[str]] = {}
    for run in runs:
        keys.setdefault(run.model, set()).update(run.settings)
    return keys


def _differing_settings(runs: list[RunResult], keys: dict[str, set[str]]) -> list[str]:
    """Names of settings that tell runs apart, where the method and the settings before do not.

    A setting that is the model's own, that only some models have, or of which a model has a value of its own, is
    compared among runs of one model.
    """
    own = {k for run in runs for k in (*model_settings(run.setting.model), *get_model(run.model).training)}
    visible: list[str] = []
    for key in dict.fromkeys(k for run in runs for k in run.settings):
        is_common = key not in own and all(key in of_model for of_model in keys.values())
        first_values: dict[Any, Any] = {}
        for run in runs:
            if key not in keys[run.model]:
                continue
            group = ("" if is_common else run.model, *(run.settings.get(k) for k in visible))
            if first_values.setdefault(group, run.settings.get(key)) != run.settings.get(key):
                visible.append(key)
                break
    return visible
