"""A run on disk: `runs/<dataset>/<name>/fold<i>/` and, above the folds, `summary.json`.

metrics.json is written last, so a fold that has it is finished and a fold without it is not.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hist_cache.errors import InputError

if TYPE_CHECKING:
    import anndata
    import pandas as pd

CONFIG = "config.json"
HISTORY = "history.csv"
MODEL = "model.safetensors"
PANEL = "panel.txt"
PREDICTIONS = "predictions.h5ad"
METRICS = "metrics.json"
COST = "cost.json"
SUMMARY = "summary.json"
MAPS = "maps.png"
TRAINING = "training.png"
GEOMETRY = "geometry.png"
CHECKPOINT = "checkpoint.pt"

_FOLD_FOLDER = re.compile(r"fold([0-9]+)")


@dataclass(frozen=True)
class Fold:
    """One fold of a run, with its files.

    Attributes:
        folder: The fold's folder, `fold<i>`.
    """

    folder: Path

    @property
    def finished(self) -> bool:
        """Whether the fold is trained and tested."""
        return (self.folder / METRICS).exists()

    @property
    def stopped(self) -> bool:
        """Whether there is a checkpoint from which training can continue."""
        return (self.folder / CHECKPOINT).exists()

    @property
    def config(self) -> dict[str, Any]:
        """The settings of the fold: options, split, patients and provenance."""
        return _read_json(self.folder / CONFIG)

    @property
    def metrics(self) -> dict[str, Any]:
        """The test metrics."""
        return _read_json(self.folder / METRICS)

    @property
    def cost(self) -> dict[str, Any]:
        """Seconds per epoch, seconds for all test spots, and peak memory in GB."""
        return _read_json(self.folder / COST)

    @property
    def panel(self) -> list[str]:
        """Names of the predicted genes."""
        return (self.folder / PANEL).read_text(encoding="utf-8").split()

    @property
    def history(self) -> pd.DataFrame:
        """Losses and geometry, one row per epoch."""
        import pandas as pd

        return pd.read_csv(self.folder / HISTORY)

    @property
    def predictions(self) -> anndata.AnnData:
        """Table of test spots x genes with the predicted expression in X.

        It also has layers["truth"], obs["slide"], obsm["spatial"] (level-0 px), uns["spatial"] (thumbnails of the
        slides) and uns["expression"] (the unit of the expression).
        """
        import anndata

        return anndata.read_h5ad(self.folder / PREDICTIONS)


@dataclass(frozen=True)
class Run:
    """All folds of one setting.

    Attributes:
        folder: The folder that holds the folders of the folds.
    """

    folder: Path

    @property
    def folds(self) -> list[Fold]:
        """Finished folds, sorted by number. Folders not named `fold<number>`, such as `fold0_old`, are ignored."""
        matches = [(_FOLD_FOLDER.fullmatch(path.name), path) for path in self.folder.glob("fold*")]
        folders = sorted((int(match[1]), path) for match, path in matches if match)
        return [fold for fold in (Fold(path) for _, path in folders) if fold.finished]

    @property
    def summary(self) -> dict[str, Any]:
        """Means and standard deviations of the metrics over the finished folds."""
        return _read_json(self.folder / SUMMARY)


def load_run(path: str | Path) -> Run:
    """Open the folder of a run.

    Raises:
        InputError: The folder holds no finished fold.
    """
    run = Run(Path(path))
    if not run.folds:
        raise InputError(f"{path}: no finished run here (looked for fold*/{METRICS})")
    return run


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable ({error})") from None
    return values
