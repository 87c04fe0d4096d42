"""The options of the training loop. Nothing here imports torch, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hist_cache.errors import InputError
from hist_cache.options import flag, option

MAX_SEED = 2**32 - 1  # of scikit-learn's random states
MAX_GRADIENT_NORM = 5.0  # entailment gradients reach 1e4 at a cone's border
Tested = Literal["best", "last"]


@dataclass(frozen=True)
class FitConfig:
    """The defaults are those of HiST's appendix B.2; docs/method.md says what is not."""

    epochs: int = option(200, "epochs at most", "N")
    patience: int = option(10, "stop after so many epochs without a better validation error", "N")
    batch_size: int = option(128, "spots a step", "N")
    lr: float = option(1e-4, "learning rate of AdamW", "X")
    weight_decay: float = option(0.01, "weight decay of AdamW", "X")
    seed: int = option(42, "seeds weights, order of spots, drawn splits and baselines", "N")
    stop_on: Literal["mse", "loss"] = option(
        "mse", "what early stopping watches: the prediction error, or the whole loss with alignment", since="0.2"
    )
    clip_norm: float = option(
        MAX_GRADIENT_NORM, "longer gradients are scaled down to this norm; 0 leaves them", "X", since="0.2"
    )

    @property
    def watched(self) -> str:
        """The entry of an epoch's row that early stopping watches: the lower, the better."""
        return f"val_{self.stop_on}"

    def __post_init__(self) -> None:
        """Check ranges; `InputError` names the flag."""
        for name in ("epochs", "patience", "batch_size", "lr"):
            if not getattr(self, name) > 0:
                raise InputError(f"{flag(name)} {getattr(self, name)}: must be above 0")
        for name in ("weight_decay", "clip_norm"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{flag(name)} {getattr(self, name)}: must be 0 or more")
        if not 0 <= self.seed <= MAX_SEED:
            raise InputError(f"--seed {self.seed}: must be from 0 to {MAX_SEED}")


@dataclass(frozen=True)
class EncodingConfig:
    """How an encoder that is fine-tuned is fed; it changes nothing on cached embeddings.

    Attributes:
        micro_batch: Spots encoded at once; the loss is over the whole batch all the same. None: all of the batch.
        augment: Turn and mirror the crops of a spot, spot and niche alike, while training.
    """

    micro_batch: int | None = None
    augment: bool = False

    def __post_init__(self) -> None:
        """Check the range; `InputError` names the flag."""
        if self.micro_batch is not None and self.micro_batch < 1:
            raise InputError(f"--micro-batch {self.micro_batch}: must be above 0")
