"""Controls of a fold: metrics of what any model must beat, computed once for all runs on the same data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch

from hist_cache.files import atomic_file, write_json
from hist_cache.fingerprint import short_hash
from hist_cache.splits import Split
from train.data import Images, SpotData
from train.metrics import summarize, summarize_centered
from train.models.baselines import COMPONENTS, RidgeModel, train_mean
from train.models.components import Components, principal_components
from train.models.configs import RidgeConfig
from train.models.interpolation import interpolated
from train.recipes.config import RecipeConfig
from train.workspace import DataKey

_Metrics = dict[str, dict[str, dict[str, float]]]


def control_metrics(predictions: Mapping[str, np.ndarray], truth: np.ndarray, slide: np.ndarray) -> _Metrics:
    """The entries of metrics.json on controls: pooled metrics, and those without each slide's level.

    Args:
        predictions: By the name of the control, expression `(N, G)`.
        truth: `(N, G)` expression.
        slide: Of each spot, `(N,)`.

    Returns:
        By the names of the entry, of the control and of the metric.
    """
    return {
        "controls": {name: summarize(predicted, truth) for name, predicted in predictions.items()},
        "controls_centered": {name: summarize_centered(p, truth, slide) for name, p in predictions.items()},
    }


@dataclass
class Controls:
    """Metrics of the train mean and of ridge on the cached embeddings, on the test spots of each split.

    Within slices there is interpolation between train spots too. On slides that nothing is known of it is impossible.

    The principal components that ridge reads are those of a split's train spots, whatever panel is predicted.

    Attributes:
        folder: Shared by the processes of a command, which take from it what one of them has computed. Without one,
            nothing is shared.
    """

    folder: Path | None = None
    _metrics: dict[str, _Metrics] = field(default_factory=dict)
    _components: dict[str, Components] = field(default_factory=dict)

    def metrics(self, data: SpotData, key: DataKey, split: Split) -> _Metrics:
        """Metrics on the split's test spots, as `control_metrics` has them.

        Args:
            data: All spots.
            key: What the data are.
            split: Of its slides.
        """
        name = short_hash({"data": asdict(key) | {"n_rings": 0}, "split": asdict(split)})
        if name not in self._metrics:
            file = self._file(f"{name}.json")
            if file is not None and file.exists():
                self._metrics[name] = json.loads(file.read_text(encoding="utf-8"))
            else:
                self._metrics[name] = self._compute(data, key, split)
                if file is not None:
                    write_json(file, self._metrics[name])
        return self._metrics[name]

    def _compute(self, data: SpotData, key: DataKey, split: Split) -> _Metrics:
        train, val, test = (data.rows(part) for part in (split.train, split.val, split.test))
        ridge = RidgeModel(RidgeConfig(data.spot.shape[1], len(data.panel)))
        ridge.fit(self.components(data, key, split), data, train, val)
        with torch.no_grad():
            predicted = ridge.predict(Images(data.spot[test].float(), data.niche[test].float(), test)).cpu().numpy()
        y_train, truth = data.expression[train].cpu().numpy(), data.expression[test].cpu().numpy()
        predictions = {"train_mean": train_mean(y_train, len(truth)), "ridge": predicted}
        if key.cut is not None:
            predictions["interpolated"] = interpolated(data, train, val, test)
        return control_metrics(predictions, truth, data.slide[test].cpu().numpy())

    def components(
        self, data: SpotData, key: DataKey, split: Split, count: int = COMPONENTS, recipe: RecipeConfig | None = None
    ) -> Components:
        """The first `count` principal components of the embeddings of the train spots.

        Args:
            data: All spots, with the embeddings that are decomposed.
            key: What the cached data are.
            split: Of its slides.
            count: How many, fewer where there are no more.
            recipe: What was made of the cached embeddings; None where they are as cached.
        """
        read = {"neighbors": key.neighbors, "drop_edges": key.drop_edges, "train": sorted(split.train), "count": count}
        if recipe is not None:
            read |= {"standardize": recipe.standardize, "rings": recipe.neighbor_rings}
        name, train = short_hash(read), data.rows(split.train)
        if name not in self._components:
            file = self._file(f"{name}.npz")
            if file is not None and file.exists():
                with np.load(file, allow_pickle=False) as stored:
                    self._components[name] = Components(**stored)
            else:
                components = self._components[name] = principal_components(data, train, count)
                if file is not None:
                    with atomic_file(file) as opened:
                        np.savez(opened, **vars(components))
        return self._components[name]

    def _file(self, name: str) -> Path | None:
        return self.folder / name if self.folder is not None else None
