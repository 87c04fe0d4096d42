"""Whether runs can be compared: which of their folds are pairs, and what differs besides the method."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from hist_cache.datasets import dataset_named
from hist_cache.options import option_fields
from train.experiments.protocols import decided_by, protocol_names, protocol_options
from train.fit.config import FitConfig
from train.models.configs import HistConfig
from train.models.registry import get_model
from train.recipes.config import RecipeConfig
from train.recipes.table import recipe_names, recipe_options
from train.report.fold_result import FoldResult
from train.report.results import RunResult
from train.report.run_settings import NOT_RECORDED, TRUTH, model_settings, phrase

FOLLOWS = {  # a setting, and those that may change it without being another difference
    "cache": ("encoder",),
    "counts": ("test_dataset", "slides"),
    "embeddings": ("encoder", "cache", "test_dataset", "slides", "counts", "neighbors"),
    "n_genes": ("genes",),
    "panel": ("genes", "n_genes", "panel_from", "slides"),
    "split_seed": ("seed",),
    "tuning_precision": ("precision",),
}
TUNING_PREFIXES = ("lora_", "tuning_")  # such settings are None where the encoder is not fine-tuned
NAMES_IN_LABEL = 3


def fold_pairs(run: RunResult, other: RunResult) -> dict[int, int]:
    """The folds of a run that have a counterpart in another one, and the numbers of these.

    Two folds are a pair where the name of their split, its train, validation and test slides, the number of test spots
    and the genes are the same.
    """
    places = {_pair_key(fold): fold.number for fold in other.folds}
    keys = {fold.number: _pair_key(fold) for fold in run.folds}
    return {number: places[key] for number, key in keys.items() if key in places}


def same_splits(run: RunResult, other: RunResult) -> bool:
    """Whether the folds of the same numbers are pairs, at least one; a run that is not finished has fewer folds."""
    pairs = fold_pairs(run, other)
    shared = {fold.number for fold in run.folds} & {fold.number for fold in other.folds}
    return bool(pairs) and shared <= pairs.keys()


def _pair_key(fold: FoldResult) -> tuple[object, ...]:
    split = fold.split
    return (split.name, frozenset(split.train), frozenset(split.val), *fold.tested_on)


def same_tests(runs: Sequence[RunResult]) -> bool:
    """Whether all runs are tested on the same slides, spots and genes, so that the best of them can be named."""
    recorded = ({run.settings[key] for run in runs} - {NOT_RECORDED} for key in TRUTH)
    return all(len(values) < 2 for values in recorded) and all(_tests(run) == _tests(runs[0]) for run in runs)


def truth_differences(run: RunResult, other: RunResult) -> list[str]:
    """Names of the settings that decide what is predicted, and in which two runs differ."""
    return [k for k in TRUTH if _differ(run.settings[k], other.settings[k])]


def _differ(value: object, other: object) -> bool:
    """Whether two values of a setting differ; one that was not recorded may be any."""
    return value != other and NOT_RECORDED not in (value, other)


def _tests(run: RunResult) -> Counter[tuple[object, ...]]:
    return Counter(fold.tested_on for fold in run.folds)


def setting_differences(run: RunResult, other: RunResult) -> list[str]:
    """Names of the settings in which two runs differ, without those that follow from another difference.

    Settings that only one of two models has are left out.
    """
    own = set() if run.model == other.model else {*model_settings(run.setting.model)}
    values = {k: (run.settings[k], other.settings[k]) for k in run.settings if k in other.settings and k not in own}
    differing = [k for k, (a, b) in values.items() if _differ(a, b)]
    of_name = _decided(run) & _decided(other) if "protocol" in differing else set()
    if run.model != other.model:
        of_name |= _of_model(run) & _of_model(other)
    if "recipe" in differing:
        of_name |= _of_recipe(run) & _of_recipe(other)
    return [k for k in differing if k not in of_name and not _follows(k, values[k], differing)]


def _of_model(run: RunResult) -> set[str]:
    """Names of the settings of training that are as the run's model has them where none is given."""
    values = {f.name: f.default for f in option_fields(FitConfig)} | get_model(run.model).training
    return {key for key, value in values.items() if run.settings.get(key) == value}


def _decided(run: RunResult) -> set[str]:
    """Names of the settings that are as the run's protocol has them."""
    name = run.setting.protocol.name
    values = decided_by(name) if name in protocol_names() else {}
    return {key for key, value in values.items() if key in run.settings and run.settings[key] in (value, None)}


def _of_recipe(run: RunResult) -> set[str]:
    """Names of the settings that are as the row of the run's recipe has them; none where the row is a user's."""
    name = run.setting.recipe.name
    values = _recipe_values(run) if name in recipe_names() else {}
    return {key for key, value in values.items() if run.settings.get(key) == value}


def _recipe_values(run: RunResult) -> dict[str, Any]:
    """The values of all settings that any recipe decides, as the run would have them where no option is given."""
    setting = run.setting
    kinds = (HistConfig, FitConfig, RecipeConfig)
    defaults = {f.name: f.default for kind in kinds for f in fields(kind)}
    rows = {name: recipe_options(name) for name in recipe_names()}
    names = {f.name for f in option_fields(RecipeConfig)}.union(*rows.values())
    of_protocol = protocol_options(setting.protocol.name) if setting.protocol.name in protocol_names() else {}
    values = defaults | dataset_named(setting.dataset).training | of_protocol | rows[setting.recipe.name]
    return {name: values[name] for name in names}


def _follows(key: str, values: tuple[object, object], differing: list[str]) -> bool:
    if key != "lora_layers" and key.startswith(TUNING_PREFIXES) and None in values:
        return True
    return any(cause in differing for cause in FOLLOWS.get(key, ()))


def unlike(run: RunResult, other: RunResult) -> list[str]:
    """The settings in which two runs differ, where more differs than the method, or than one setting of a method."""
    names = setting_differences(run, other)
    return names if len(names) + (run.method != other.method) > 1 else []


def comparison_label(run: RunResult, other: RunResult) -> str:
    """The other run's label, settings that differ besides what is compared, and how many splits where not all are."""
    names = [name.replace("_", " ") for name in unlike(run, other)]
    if len(names) > NAMES_IN_LABEL:
        names = [*names[: NAMES_IN_LABEL - 1], f"{len(names) - NAMES_IN_LABEL + 1} more settings"]
    count, total = _shared_splits(run, other)
    texts = [f"differs in {', '.join(names)}"] * bool(names) + [f"{count} of {total} splits"] * (count < total)
    return f"{other.label} ({'; '.join(texts)})" if texts else other.label


def comparison_notes(run: RunResult, other: RunResult) -> list[str]:
    """What a reader must know of a comparison: settings that differ, and splits that only one run has."""
    notes = []
    if names := unlike(run, other):
        what = "the method" if run.method != other.method else "one setting"
        texts = "; ".join(_difference(name, run, other) for name in names)
        notes.append(f"{run.label} differs from {other.label} in more than {what}: {texts}")
    count, total = _shared_splits(run, other)
    if count < total:
        notes.append(
            f"{run.label} against {other.label}: {count} of {total} splits compared; the others are of other slides, "
            "spots or genes, or not finished"
        )
    for one, another in ((run, other), (other, run)):
        if one.settings["counts"] == NOT_RECORDED != another.settings["counts"]:
            why = "the contents of its slides were not recorded (version 0.1) and are taken for those of now"
            notes.append(f"{one.label}: {why}")
    return notes


def _shared_splits(run: RunResult, other: RunResult) -> tuple[int, int]:
    return len(fold_pairs(run, other)), max(len(run.folds), len(other.folds))


def _difference(name: str, run: RunResult, other: RunResult) -> str:
    own, others = (phrase(name, r.settings[name]) for r in (run, other))
    return f"{own}, not {others}" if own != others else f"other {name.replace('_', ' ')}"
