"""A finished fold, read from its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from extract.encoders.adapter_slides import UNKNOWN
from hist_cache.errors import InputError
from hist_cache.runs import CONFIG, COST, METRICS, Fold
from hist_cache.splits import Split
from train.experiments.setting import Setting, read_setting
from train.leaks import is_tuned

METRICS_KEYS = ("pooled", "slide_mean", "slides", "controls")  # needed in metrics.json
RUN_ANEW = "it was written by another version, run it anew"


@dataclass(frozen=True)
class Provenance:
    """How a fold was made; "" where its config.json does not say."""

    date: str
    """In ISO format."""
    device: str
    command: str
    versions: dict[str, str]
    """By the names of the libraries."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read the entry `provenance` of a config.json."""
        texts = {name: str(values.get(name) or "") for name in ("date", "device", "command")}
        return cls(**texts, versions=dict(values.get("versions", {})))


@dataclass(frozen=True)
class FoldResult:
    """The content of one finished fold."""

    fold: Fold
    """Its files, for the panel and the predictions."""
    number: int
    setting: Setting
    """The same for all folds of a run."""
    split: Split
    patients: dict[str, str]
    """Slide ID -> patient; empty where the slides do not say."""
    provenance: Provenance
    metrics: dict[str, Any]
    cost: dict[str, Any]
    """Empty where the fold has none."""
    leak: str = ""
    """What the adapter of the embeddings has seen of the test slides; "" where it has seen none."""

    @property
    def test_slides(self) -> str:
        """The test slides as one text, which matches folds of different runs together with the split's name."""
        return " ".join(sorted(self.split.test))

    @cached_property
    def tested_on(self) -> tuple[Any, ...]:
        """Test slides, number of test spots, and genes: numbers of folds in which these differ do not compare."""
        return self.test_slides, self.metrics.get("n_spots"), tuple(self.fold.panel)


def read_fold(folder: Path) -> FoldResult:
    """Read a finished fold.

    Args:
        folder: named `fold<i>`.

    Raises:
        InputError: A file cannot be read, or is of another version.
    """
    fold = Fold(folder)
    config, metrics = fold.config, fold.metrics
    setting = read_setting(folder / CONFIG, config)
    if missing := [key for key in METRICS_KEYS if key not in metrics]:
        raise InputError(f"{folder / METRICS}: no {missing[0]!r} in it; {RUN_ANEW}")
    try:
        split = _split_from_dict(config["split"])
        patients = {str(slide): str(patient) for slide, patient in config.get("patients", {}).items()}
        provenance = Provenance.from_dict(config.get("provenance", {}))
    except (KeyError, TypeError, AttributeError, InputError) as error:
        raise InputError(
            f"{folder / CONFIG}: not the configuration of a fold ({type(error).__name__}: {error}); {RUN_ANEW}"
        ) from None
    cost = fold.cost if (folder / COST).exists() else {}
    leak = str(config.get("leak", UNKNOWN)) if is_tuned(setting.cache) else ""
    return FoldResult(fold, int(folder.name[4:]), setting, split, patients, provenance, metrics, cost, leak)


def _split_from_dict(values: Mapping[str, Any]) -> Split:
    return Split(tuple(values["train"]), tuple(values["val"]), tuple(values["test"]), str(values["name"]))
