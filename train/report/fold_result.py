"""A finished fold, read from its files."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from extract.encoders.adapter_slides import UNKNOWN
from hist_cache.errors import InputError
from hist_cache.fingerprint import is_tuned
from hist_cache.runs import CONFIG, RUN_ANEW, Fold, fold_number
from hist_cache.splits import Split
from train.experiments.fold_files import read_cost, read_metrics, read_split
from train.experiments.setting import Setting, read_setting
from train.metrics import NON_FINITE, divergence

FAR_FROM_NOTHING = 50.0  # times the train mean's MSE: more than that of predicting 0, which version 0.1 did not measure


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
    def diverged(self) -> list[str]:
        """Why the fold counts as diverged; empty where it does not. Version 0.1 did not write it."""
        if "diverged" in self.metrics:
            return list(self.metrics["diverged"])
        mse, mean = (
            m.get("mse", 0.0) for m in (self.metrics["pooled"], self.metrics["controls"].get("train_mean", {}))
        )
        skipped = [text for text in self.metrics.get("warnings", ()) if NON_FINITE in text]
        return [*divergence(mse, mean, FAR_FROM_NOTHING * mean), *skipped]

    @property
    def test_slides(self) -> str:
        """The test slides as one text, which matches folds of different runs together with the split's name."""
        return " ".join(sorted(self.split.test))

    @property
    def pictured(self) -> tuple[str, ...]:
        """IDs of the slides that its predictions are on: the test slides, or those that the test parts are of."""
        return tuple(self.setting.slides_of(self.split.test))

    @cached_property
    def tested_on(self) -> tuple[Any, ...]:
        """Test slides, number of test spots, and genes: numbers of folds in which these differ do not compare."""
        return self.test_slides, self.metrics.get("n_spots"), tuple(map(sys.intern, self.fold.panel))


def read_fold(folder: Path) -> FoldResult:
    """Read a finished fold.

    Args:
        folder: named `fold<i>`.

    Raises:
        InputError: A file cannot be read, or is of another version.
    """
    fold = Fold(folder)
    config = fold.config
    setting = read_setting(folder / CONFIG, config)
    split = read_split(folder / CONFIG, config)
    try:
        patients = {str(slide): str(patient) for slide, patient in config.get("patients", {}).items()}
        provenance = Provenance.from_dict(config.get("provenance", {}))
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{folder / CONFIG}: not the configuration of a fold ({type(error).__name__}: {error}); {RUN_ANEW}"
        ) from None
    metrics, cost = read_metrics(folder), read_cost(folder)
    leak = str(config.get("leak", UNKNOWN)) if is_tuned(setting.cache) else ""
    return FoldResult(fold, fold_number(folder), setting, split, patients, provenance, metrics, cost, leak)
