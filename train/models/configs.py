"""The options of every model, one dataclass a model. Nothing here imports torch, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hist_cache.errors import InputError
from hist_cache.options import check_ranges, option
from hist_cache.values import COUNT, FRACTION, LARGEST, NOT_NEGATIVE, POSITIVE, Interval

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

    width: int = option(1024, "latent width d", "N", within=Interval(1, 100_000))
    depth: int = option(2, "residual blocks a stream", "N", within=Interval(0, 1000))
    dropout: float = option(0.1, "dropout of a residual block", "X", within=FRACTION)
    alpha: float = option(0.2, "weight of the alignment losses", "X", within=NOT_NEGATIVE)
    beta: float = option(0.4, "weight of entailment within them", "X", within=NOT_NEGATIVE)
    curvature: float = option(1.0, "initial curvature magnitude c", "X", within=POSITIVE)
    fixed_curvature: bool = option(False, "do not learn the curvature")
    temperature: float = option(0.07, "initial temperature of the contrast", "X", within=POSITIVE)
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
        check_ranges(self)
        if self.limits == "kept":
            Interval(*CURVATURE_RANGE).check("--curvature", self.curvature)
            Interval(1 / MAX_INVERSE_TEMPERATURE, LARGEST).check("--temperature", self.temperature)


@dataclass(frozen=True)
class RidgeConfig(ModelConfig):
    """Ridge has nothing to set: its strength is chosen on the validation slides."""


@dataclass(frozen=True)
class TunedRidgeConfig(ModelConfig):
    """Tuned ridge has nothing to set: what it reads and learns is the recipe's."""


@dataclass(frozen=True)
class KnnConfig(ModelConfig):
    """The number of train spots that a prediction averages."""

    nearest: int = option(50, "train spots whose mean expression is predicted", "N", within=COUNT)

    def __post_init__(self) -> None:
        """Check the range; `InputError` names the flag."""
        check_ranges(self)


@dataclass(frozen=True)
class StNetConfig(ModelConfig):
    """ST-Net has nothing to set."""


@dataclass(frozen=True)
class StNetMlpConfig(ModelConfig):
    """ST-Net with a hidden layer."""

    width: int = option(1024, "hidden width", "N", within=Interval(1, 100_000))

    def __post_init__(self) -> None:
        """Check the range; `InputError` names the flag."""
        check_ranges(self)


@dataclass(frozen=True)
class BleepConfig(ModelConfig):
    """BLEEP's projection heads, its contrast and its retrieval."""

    projection: int = option(256, "width of the space of images and expression", "N", within=Interval(1, 100_000))
    retrieved: int = option(50, "train spots whose mean expression is predicted", "N", within=COUNT)
    softness: float = option(1.0, "temperature of the contrast and of its targets", "X", within=POSITIVE)
    dropout: float = option(0.1, "dropout of the projection heads", "X", within=FRACTION)

    def __post_init__(self) -> None:
        """Check ranges; `InputError` names the flag."""
        check_ranges(self)


@dataclass(frozen=True)
class IstarConfig(ModelConfig):
    """iSTAR's networks."""

    networks: int = option(5, "networks whose median is predicted", "N", within=Interval(1, 100))
    hidden: int = option(256, "width of their hidden layers", "N", within=Interval(1, 100_000))

    def __post_init__(self) -> None:
        """Check ranges; `InputError` names the flag."""
        check_ranges(self)


@dataclass(frozen=True)
class TriplexConfig(ModelConfig):
    """TRIPLEX's blocks: those of the slide, of the neighbours, and those that join them."""

    width: int = option(512, "width of all tokens", "N", within=Interval(1, 100_000))
    heads: int = option(8, "heads of attention, which divide the width", "N", within=Interval(1, 1000))
    fusion_depth: int = option(2, "blocks that join the streams", "N", within=Interval(1, 1000))
    global_depth: int = option(2, "blocks among all spots of a slide", "N", within=Interval(1, 1000))
    neighbor_depth: int = option(2, "blocks among a spot and its neighbours", "N", within=Interval(0, 1000))
    hidden_ratio: int = option(2, "width of a block's hidden layer, in that of tokens", "N", within=Interval(1, 100))
    dropout: float = option(0.1, "dropout of feed-forward layers", "X", within=FRACTION)

    def __post_init__(self) -> None:
        """Check ranges; `InputError` names the flag."""
        check_ranges(self)
        if self.width % self.heads:
            raise InputError(f"--width {self.width}: must be a multiple of --heads, which is {self.heads}")
