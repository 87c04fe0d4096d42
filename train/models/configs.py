"""The options of every model, one dataclass a model. Nothing here imports torch, so that `--help` is fast."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Literal

from hist_cache.errors import InputError
from hist_cache.options import flag, option

CURVATURE_RANGE = (0.1, 10.0)
MAX_INVERSE_TEMPERATURE = 100.0


@dataclass(frozen=True)
class ModelConfig:
    """What every model is told of the data: the widths of its input and of its output."""

    embedding_width: int
    n_genes: int


@dataclass(frozen=True)
class HistConfig(ModelConfig):
    """Sizes and loss weights of HiST. docs/method.md says where the defaults differ from the paper's text."""

    width: int = option(1024, "latent width d", "N")
    depth: int = option(2, "residual blocks a stream", "N")
    dropout: float = option(0.1, "dropout of a residual block", "X")
    alpha: float = option(0.2, "weight of the alignment losses", "X")
    beta: float = option(0.4, "weight of entailment within them", "X")
    curvature: float = option(1.0, "initial curvature magnitude c", "X")
    fixed_curvature: bool = option(False, "do not learn the curvature")
    temperature: float = option(0.07, "initial temperature of the contrast", "X")
    decoder_space: Literal["tangent", "hyperbolic", "points"] = option(
        "tangent", "what the decoder reads: vectors before the exponential map, or points without or with their time"
    )
    image_network: Literal["own", "none"] = option(
        "own", "after the encoder: a network for spots and one for niches, or none", since="0.2"
    )
    gene_network: Literal["own", "shared"] = option(
        "own", "of expression: a network for spots and one for niches, or one for both", since="0.2"
    )
    map_scale: Literal["learned", "one"] = option(
        "learned", "what vectors are multiplied by before the exponential map, per modality", since="0.2"
    )
    limits: Literal["kept", "none"] = option("kept", "of curvature, temperature and scales", since="0.2")

    def __post_init__(self) -> None:
        """Check ranges; `InputError` names the flag."""
        low, high = CURVATURE_RANGE if self.limits == "kept" else (0.0, sys.float_info.max)
        coldest = 1 / MAX_INVERSE_TEMPERATURE if self.limits == "kept" else 0.0
        limits = {
            "width": self.width >= 1,
            "depth": self.depth >= 0,
            "dropout": 0 <= self.dropout < 1,
            "alpha": self.alpha >= 0,
            "beta": self.beta >= 0,
            "curvature": low <= self.curvature <= high and self.curvature > 0,
            "temperature": coldest <= self.temperature < math.inf and self.temperature > 0,
        }
        for name, holds in limits.items():
            if not holds:
                limit = f" ({low} to {high})" if name == "curvature" and self.limits == "kept" else ""
                raise InputError(f"{flag(name)} {getattr(self, name)}: out of range{limit}")


@dataclass(frozen=True)
class RidgeConfig(ModelConfig):
    """Ridge has nothing to set: its strength is chosen on the validation slides."""


@dataclass(frozen=True)
class KnnConfig(ModelConfig):
    """The number of train spots that a prediction averages."""

    nearest: int = option(50, "train spots whose mean expression is predicted", "N")

    def __post_init__(self) -> None:
        """Check the range; `InputError` names the flag."""
        if self.nearest < 1:
            raise InputError(f"--nearest {self.nearest}: must be above 0")
