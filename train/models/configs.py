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

    @property
    def sampling(self) -> str:
        """How predictions are drawn, to be said beside every number; "" where nothing is drawn."""
        return ""


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
class StevsConfig(ModelConfig):
    """The latent space of the STevs-style model, and which experts predict."""

    experts: Literal["image", "both"] = option(
        "image", "what predicts: the image expert alone, or with that of the coordinates on the slide"
    )
    niche_expert: bool = option(False, "a second image expert, of the niche")
    latent_width: int = option(64, "width of the latent space", "N", within=Interval(1, 100_000))
    kl_weight: float = option(1e-3, "weight of the divergence from the prior", "X", within=NOT_NEGATIVE)
    warm_up_steps: int = option(1000, "steps until the divergence has that weight", "N", within=COUNT)
    align_weight: float = option(0.1, "weight of the distance between the experts' means", "X", within=NOT_NEGATIVE)
    coordinate_dropout: float = option(
        0.3, "share of spots whose coordinate expert is left out in a step", "X", within=FRACTION
    )
    variance_floor: float = option(
        0.1, "what is added to the variance of the coordinate expert", "X", within=NOT_NEGATIVE
    )

    def __post_init__(self) -> None:
        """Check ranges; `InputError` names the flag."""
        check_ranges(self)


@dataclass(frozen=True)
class StemConfig(ModelConfig):
    """Stem's network, and how expression is drawn; the published sampler is ddpm with 1000 steps."""

    width: int = option(384, "width of a gene's token", "N", within=Interval(1, 100_000))
    depth: int = option(12, "transformer blocks", "N", within=Interval(1, 1000))
    heads: int = option(6, "heads of attention", "N", within=Interval(1, 1000))
    standardize_genes: bool = option(False, "learn genes with mean 0 and variance 1 over the train spots")
    sampler: Literal["ddpm", "ddim"] = option("ddim", "draw noise in every step (ddpm), or only before the first one")
    sampling_steps: int = option(50, "steps from noise to expression", "N", within=Interval(1, 1000))
    samples: int = option(20, "profiles drawn for a spot, whose mean is predicted", "N", within=Interval(1, 10_000))

    def __post_init__(self) -> None:
        """Check ranges; `InputError` names the flag."""
        check_ranges(self)
        if self.width % self.heads:
            raise InputError(f"--width {self.width}: must be a multiple of --heads {self.heads}")

    @property
    def sampling(self) -> str:
        """The sampler, its steps and the number of profiles."""
        return f"mean of {self.samples} profiles drawn by {self.sampler.upper()} in {self.sampling_steps} steps"


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
