"""The options of the training loop. Nothing here imports torch, so that `--help` is fast."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from hist_cache.options import check_ranges, option
from hist_cache.values import COUNT, NOT_NEGATIVE, POSITIVE, Interval, Precision, SelectBy

SEEDS = Interval(0, 2**32 - 1)  # of scikit-learn's random states
STEP_COUNT = Interval(0, 10_000_000)
DECAY = Interval(0, 1, below=True)
MAX_GRADIENT_NORM = 5.0  # entailment gradients reach 1e4 at a cone's border
Tested = Literal["best", "last"]


@dataclass(frozen=True)
class FitConfig:
    """The defaults are those of HiST's appendix B.2; docs/method.md says what is not."""

    epochs: int = option(200, "epochs at most", "N", within=COUNT)
    patience: int = option(10, "stop after so many epochs without a better validation error", "N", within=COUNT)
    batch_size: int = option(128, "spots a step", "N", within=COUNT)
    lr: float = option(1e-4, "learning rate of AdamW", "X", within=POSITIVE)
    weight_decay: float = option(0.01, "weight decay of AdamW", "X", within=NOT_NEGATIVE)
    seed: int = option(42, "seeds weights, dropout, order of spots and the permuted baseline", "N", within=SEEDS)
    select_by: SelectBy = option(
        "mse",
        "validation score of early stopping and of the best epoch: error; error less each slide's offset; PCC within "
        "slides; or the whole loss with alignment",
        since="0.2",
    )
    patience_steps: int = option(
        0, "and after so many steps at least, where epochs are short", "N", since="0.2", within=STEP_COUNT
    )
    clip_norm: float = option(
        MAX_GRADIENT_NORM,
        "longer gradients are scaled down to this norm; 0 leaves them",
        "X",
        since="0.2",
        within=NOT_NEGATIVE,
    )

    pearson: float = option(
        0.0,
        "weight of 1 - PCC in the loss: over a batch, of predictions with what is learnt",
        "X",
        since="0.2",
        within=NOT_NEGATIVE,
    )
    ema: float = option(
        0.0,
        "decay of the moving average of weights that is tested; 0: the weights",
        "X",
        since="0.2",
        within=DECAY,
    )

    # What --precision is resolved to, for the matrix products of the model; no option itself.
    precision: Precision = field(default="fp32", metadata={"since": "0.2"})

    def watched(self, row: Mapping[str, float]) -> float:
        """What early stopping watches of an epoch's row: the lower, the better."""
        value = row[f"val_{self.select_by}"]
        return -value if self.select_by == "pcc" else value

    def patience_in_epochs(self, steps: int) -> int:
        """Epochs of `steps` steps without a better validation score after which training stops."""
        return max(self.patience, math.ceil(self.patience_steps / steps))

    def __post_init__(self) -> None:
        """Check ranges; `InputError` names the flag."""
        check_ranges(self)


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
        if self.micro_batch is not None:
            COUNT.check("--micro-batch", self.micro_batch)
