"""The switches of a recipe. Nothing here imports torch, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from hist_cache.errors import InputError
from hist_cache.options import check_ranges, option
from hist_cache.values import Interval

MAX_RINGS = 3
MAX_ENSEMBLE = 100
DEFAULT_RECIPE = "paper"


@dataclass(frozen=True)
class RecipeConfig:
    """What a model reads, what it learns and what becomes of its predictions; docs/recipes.md explains each switch."""

    standardize: Literal["none", "slide", "train"] = option(
        "none", "embeddings: as they are, standardised per slide, or over the train slides", since="0.2"
    )
    neighbor_rings: int = option(
        0, "mean embeddings of so many rings as further inputs", "N", since="0.2", within=Interval(0, MAX_RINGS)
    )
    targets: Literal["raw", "centered"] = option(
        "raw", "what is learnt: expression, or expression less its mean over the slide", since="0.2"
    )
    level: Literal["train_mean", "ridge"] = option(
        "train_mean",
        "what centered targets get back: the train mean, or ridge on mean embeddings",
        since="0.2",
    )
    ridge: Literal["none", "skip", "mean"] = option(
        "none", "skip: the model learns what ridge leaves; mean: it is averaged with ridge", since="0.2"
    )
    smooth: float = option(
        0.0, "weight of the mean over ring 1 in each prediction", "X", since="0.2", within=Interval(0, 1)
    )
    ensemble: int = option(
        1, "models of successive seeds, whose mean predicts", "N", since="0.2", within=Interval(1, MAX_ENSEMBLE)
    )

    # The row of recipes.toml that was asked for; no option itself.
    name: str = field(default=DEFAULT_RECIPE, metadata={"since": "0.2"})

    def __post_init__(self) -> None:
        """Check ranges; `InputError` names the flag."""
        check_ranges(self)
        if self.level != "train_mean" and self.targets == "raw":
            raise InputError(f"--level {self.level}: raw targets have their level; give --targets centered too")

    @property
    def changes_inputs(self) -> bool:
        """Whether a model reads anything else than the cached embeddings of spot and niche."""
        return self.standardize != "none" or self.neighbor_rings > 0

    @property
    def changes_targets(self) -> bool:
        """Whether a model learns anything else than expression."""
        return self.targets != "raw" or self.ridge == "skip"

    @property
    def changes_predictions(self) -> bool:
        """Whether a model's predictions are averaged with those of ridge, or smoothed, before they are tested."""
        return self.ridge == "mean" or self.smooth > 0

    @property
    def n_rings(self) -> int:
        """Rings around each spot whose spots must be known."""
        return max(self.neighbor_rings, 1 if self.smooth else 0)

    def embedding_width(self, width: int) -> int:
        """Width of what a model reads of a spot, and of its niche, where the cache has `width`."""
        return width * (1 + self.neighbor_rings)
