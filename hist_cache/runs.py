"""A run on disk: `runs/<dataset>/<name>/fold<i>/` and, above the folds, `summary.json`.

metrics.json is written last, so a fold that has it is finished and a fold without it is not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hist_cache.commands import claimed
from hist_cache.errors import HistError, InputError, kind_and_text
from hist_cache.passwords import clean_files
from hist_cache.texts import read_text

if TYPE_CHECKING:
    import anndata
    import pandas as pd

CONFIG = "config.json"
HISTORY = "history.csv"
MODEL = "model.safetensors"
RECIPE = "recipe.safetensors"
PANEL = "panel.txt"
PREDICTIONS = "predictions.h5ad"
METRICS = "metrics.json"
COST = "cost.json"
SUMMARY = "summary.json"
MAPS = "maps.png"
TRAINING = "training.png"
GEOMETRY = "geometry.png"
CHECKPOINT = "checkpoint.pt"
MEMBER_CHECKPOINTS = "checkpoint.*.pt"  # of the further members of an ensemble

RUN_ANEW = "it was written by another version, run it anew"  # the advice on a file that is no result of this version

_FOLD_FOLDER = re.compile(r"fold(0|[1-9][0-9]*)", re.ASCII)


def member_checkpoint(member: int) -> str:
    """Name of the checkpoint of an ensemble's member, counted from 0."""
    return f"checkpoint.{member}.pt" if member else CHECKPOINT


def checkpoint_files(folder: Path) -> list[Path]:
    """All checkpoints in a fold's folder, that of the first member last, as it stands for all of them."""
    return [path for path in (*sorted(folder.glob(MEMBER_CHECKPOINTS)), folder / CHECKPOINT) if path.exists()]


class RunModel(Protocol):
    """A fold's model, as `Run.model` returns it: `train.predict.fold_model.FoldModel`, which says more."""

    @property
    def genes(self) -> list[str]:
        """Names of the G genes that it predicts."""

    @property
    def unit(self) -> str:
        """The unit of the predictions."""

    def predict(self, embeddings: ArrayLike, niche: ArrayLike) -> NDArray[np.float32]:
        """Predict the expression `(N, G)` of spots from embeddings `(N, D)` of their crops and of their niches."""


@dataclass(frozen=True)
class Fold:
    """One fold of a run, with its files.

    Attributes:
        folder: The fold's folder, `fold<i>`.
    """

    folder: Path

    def __repr__(self) -> str:
        try:
            tested = "tests " + ", ".join(self.config["split"]["test"]) if self.finished else "not finished"
            return f"Fold {fold_number(self.folder)} of {self.folder.parent.name}: {tested}"
        except (HistError, KeyError, TypeError, ValueError):
            return f"Fold({str(self.folder)!r}), which cannot be read"

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
        return read_object(self.folder / CONFIG)

    @property
    def metrics(self) -> dict[str, Any]:
        """The test metrics."""
        return read_object(self.folder / METRICS)

    @property
    def cost(self) -> dict[str, Any]:
        """Seconds per epoch, seconds for all test spots, and peak memory in GB."""
        return read_object(self.folder / COST)

    @property
    def panel(self) -> list[str]:
        """Names of the predicted genes."""
        with readable_file(self.folder / PANEL) as path:
            return read_text(path).rstrip("\n").split("\n")

    @property
    def history(self) -> pd.DataFrame:
        """Losses and geometry, one row per epoch."""
        import pandas as pd

        with readable_file(self.folder / HISTORY) as path:
            return pd.read_csv(path)

    @property
    def predictions(self) -> anndata.AnnData:
        """Table of test spots x genes with the predicted expression in X.

        It also has layers["truth"], obs["slide"], obsm["spatial"] (level-0 px), uns["spatial"] (thumbnails of the
        slides) and uns["expression"] (the unit of the expression).
        """
        import anndata

        panel = self.panel
        with readable_file(self.folder / PREDICTIONS) as path:
            table = anndata.read_h5ad(path)
            if problem := _problem_of_predictions(table, panel):
                raise ValueError(problem)
            return table


@dataclass(frozen=True)
class Run:
    """All folds of one setting.

    Attributes:
        folder: The folder that holds the folders of the folds.
    """

    folder: Path

    def __repr__(self) -> str:
        try:
            return f"{_describe(self)}\n  {self.folder}"
        except (HistError, KeyError, TypeError, ValueError, IndexError):
            return f"Run({str(self.folder)!r}), which cannot be read"

    def model(self, fold: int = 0) -> RunModel:
        """Load the model of a finished fold, ready to predict.

        Args:
            fold: Its number.

        Raises:
            InputError: There is no such finished fold, or a file of it is damaged.
        """
        chosen = Fold(self.folder / f"fold{fold}")
        if not chosen.finished:
            numbers = ", ".join(str(fold_number(f.folder)) for f in self.folds)
            raise InputError(f"{self.folder}: no finished fold {fold}; there are {numbers}")
        predictor: RunModel = claimed("train.predict.fold_model").load_fold_model(chosen)
        return predictor

    @property
    def folds(self) -> list[Fold]:
        """Finished folds, sorted by number. Folders not named `fold<number>`, such as `fold0_old`, are ignored."""
        return [fold for fold in map(Fold, fold_folders(self.folder)) if fold.finished]

    @property
    def summary(self) -> dict[str, Any]:
        """Means and standard deviations of the metrics over the finished folds."""
        return read_object(self.folder / SUMMARY)


def _describe(run: Run) -> str:
    """A run in one line: what it is, and its PCC."""
    folds = run.folds
    config = folds[0].config
    pooled = [fold.metrics["pooled"] for fold in folds]
    keys = [key for key in pooled[0] if key.startswith("pcc@")]
    key = "pcc@50" if "pcc@50" in keys else keys[-1]
    scores = np.array([metrics[key] for metrics in pooled], dtype=float)
    what = f"{config['dataset']}, {config['cache']['encoder']}, {config['n_genes']} genes"
    if len(folds) == 1:
        return f"Run {run.folder.name}: {what}, 1 fold, {key.upper()} {scores[0]:.3f}"
    mean_std = f"{scores.mean():.3f} ± {scores.std(ddof=1):.3f}"
    return f"Run {run.folder.name}: {what}, {len(folds)} folds, {key.upper()} {mean_std}"


def load_run(path: str | Path) -> Run:
    """Open the folder of a run, and remove passwords of databases from its files, which earlier versions wrote there.

    Raises:
        InputError: The folder holds no finished fold.
    """
    run = Run(Path(path))
    clean_run(run.folder)
    if not run.folds:
        raise InputError(f"{path}: no finished run here (looked for fold*/{METRICS})")
    return run


def clean_run(folder: Path) -> None:
    """Remove passwords of databases from the settings of a run's folds."""
    clean_files(fold / CONFIG for fold in fold_folders(folder))


def fold_folders(run: Path) -> list[Path]:
    """The folders named `fold<number>` of a run, sorted by number."""
    matches = [(_FOLD_FOLDER.fullmatch(path.name), path) for path in run.glob("fold*")]
    return [path for _, path in sorted((int(match[1]), path) for match, path in matches if match)]


def fold_number(folder: Path) -> int:
    """The number in the name of a fold's folder."""
    return int(folder.name.removeprefix("fold"))


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        InputError: It cannot be read, or holds something else.
    """
    with readable_file(path):
        values = json.loads(read_text(path), parse_constant=_refuse_constant)
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds no object but {type(values).__name__}; {RUN_ANEW}")
    return values


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _problem_of_predictions(table: anndata.AnnData, panel: list[str]) -> str:
    """Say what maps and tables need of predictions and do not find; "" where all is there."""
    needed = (("layers", "truth"), ("obs", "slide"), ("obsm", "spatial"), ("uns", "spatial"), ("uns", "expression"))
    for place, name in needed:
        if name not in getattr(table, place):
            return f"no {name} in {place}"
    if not table.n_obs:
        return "no spots in it"
    if list(table.var_names) != panel:
        return f"its genes are not those of {PANEL}"
    if not all(isinstance(values, np.ndarray) for values in (table.X, table.layers["truth"])):
        return "its expression is no array"
    spatial, pictures = np.asarray(table.obsm["spatial"]), table.uns["spatial"]
    if spatial.shape != (table.n_obs, 2) or spatial.dtype.kind not in "fiu" or not np.isfinite(spatial).all():
        return "obsm/spatial holds no x and y of each spot"
    for slide in table.obs["slide"].unique():
        picture = pictures.get(slide) if isinstance(pictures, dict) else None
        if not isinstance(picture, dict) or not {"images", "scalefactors"} <= set(picture):
            return f"no picture of {slide} in uns/spatial"
    return ""


@contextmanager
def readable_file(path: Path) -> Iterator[Path]:
    """Turn whatever a reader raises on a damaged file into one line.

    Readers of HDF5 and CSV raise errors of many kinds, which no list would name in full.
    """
    try:
        if path.exists() and not path.is_file():  # a folder, or a pipe that nobody may ever write to
            raise ValueError("not a file")
        yield path
    except Exception as error:
        raise InputError(
            f"{path}: not readable ({kind_and_text(error)}); delete {path.parent} to run it again"
        ) from error
