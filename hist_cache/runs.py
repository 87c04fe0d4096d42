"""A run on disk: `runs/<dataset>/<name>/fold<i>/` and, above the folds, `summary.json`.

metrics.json is written last: a fold that has it is finished, one without is not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hist_cache.errors import InputError
from hist_cache.files import atomic_write

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


@dataclass(frozen=True)
class Fold:
    """One trained and tested fold."""

    folder: Path

    @property
    def finished(self) -> bool:
        return (self.folder / METRICS).exists()

    @property
    def stopped(self) -> bool:
        """Whether there is something to go on with."""
        return (self.folder / CHECKPOINT).exists()

    @property
    def config(self) -> dict[str, Any]:
        return _read_json(self.folder / CONFIG)

    @property
    def metrics(self) -> dict[str, Any]:
        return _read_json(self.folder / METRICS)

    @property
    def cost(self) -> dict[str, Any]:
        """Seconds an epoch, seconds for all test spots, peak memory in GB."""
        return _read_json(self.folder / COST)

    @property
    def panel(self) -> list[str]:
        return (self.folder / PANEL).read_text(encoding="utf-8").split()

    @property
    def history(self) -> pd.DataFrame:
        """Losses and geometry, a row an epoch."""
        import pandas as pd

        return pd.read_csv(self.folder / HISTORY)

    @property
    def predictions(self) -> anndata.AnnData:
        """Test spots x genes: X predicted expression, layers["truth"], obs["slide"], obsm["spatial"],
        uns["spatial"] the slides' thumbnails, uns["expression"] the unit."""
        import anndata

        return anndata.read_h5ad(self.folder / PREDICTIONS)


@dataclass(frozen=True)
class Run:
    """All folds of one setting."""

    folder: Path

    @property
    def folds(self) -> list[Fold]:
        """Finished folds, in order."""
        folders = sorted(self.folder.glob("fold*"), key=lambda p: int(p.name.removeprefix("fold")))
        return [fold for fold in map(Fold, folders) if fold.finished]

    @property
    def summary(self) -> dict[str, Any]:
        return _read_json(self.folder / SUMMARY)


def load_run(path: str | Path) -> Run:
    """Open a run's folder; `InputError` where it holds no finished fold."""
    run = Run(Path(path))
    if not run.folds:
        raise InputError(f"{path}: no finished run here (looked for fold*/{METRICS})")
    return run


def write_predictions(path: Path, table: anndata.AnnData) -> None:
    with atomic_write(path) as aside:
        table.write_h5ad(aside, compression="gzip")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not readable ({error})") from None
